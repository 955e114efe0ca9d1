"""Beam search: the best continuation found while following several at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from job.model.rows import Rows, check_prompt
from job.model.sampling import require


def beam_search(
    rows: Rows,
    prompt: Sequence[int],
    max_new_tokens: int,
    beams: int,
    length_penalty: float = 1.0,
    stop_token: int | None = None,
) -> list[int]:
    """The best continuation of the prompt found while following `beams` of them at once; `rows` ends up used.

    A continuation's score is the sum of its log-probabilities / its length ** length_penalty; a stop token counts in
    both and is not part of the result. Rules are those of transformers with early_stopping=False: a continuation ends
    where its stop token is among the `beams` best next steps, and the search when `beams` have ended and the best open
    one, at its present length, scores no higher. One beam is greedy decoding.

    Args:
        rows: None in use, and room for `beams`.

    Raises:
        ConfigError: An argument has no meaning.
    """
    require(
        (max_new_tokens >= 0, f"max_new_tokens={max_new_tokens} must be at least 0"),
        (beams >= 1, f"beams={beams} must be at least 1"),
    )
    check_prompt(prompt, rows.vocab_size)
    if max_new_tokens == 0:
        return []
    logits = rows.add(prompt)[None]  # (n, V)
    running: list[list[int]] = [[]]  # n continuations, best first
    sums = torch.zeros(1, device=logits.device)  # (n,)
    ended: list[tuple[float, list[int]]] = []  # score and continuation, best first
    best_open: list[tuple[float, list[int]]] = []
    for length in range(1, max_new_tokens + 1):
        parents, tokens, totals = _best_steps(logits, sums, 2 * beams)
        scores = (totals / length**length_penalty).tolist()
        steps = [(scores[rank], [*running[parents[rank]], token]) for rank, token in enumerate(tokens)]
        ended += [(score, tokens[:-1]) for score, tokens in steps[:beams] if tokens[-1] == stop_token]
        ended = sorted(ended, key=_score, reverse=True)[:beams]
        open_ranks = [rank for rank, token in enumerate(tokens) if token != stop_token][:beams]
        best_open = [steps[rank] for rank in open_ranks[:1]]
        if not best_open or (len(ended) == beams and _score(best_open[0]) <= _score(ended[-1])):
            break
        running, sums = [steps[rank][1] for rank in open_ranks], totals[open_ranks]
        if length < max_new_tokens:
            rows.select([parents[rank] for rank in open_ranks])
            logits = rows.extend([tokens[rank] for rank in open_ranks])
    return max(ended + best_open, key=_score)[1]


def _best_steps(logits: Tensor, sums: Tensor, count: int) -> tuple[list[int], list[int], Tensor]:
    """The `count` likeliest one-token steps of n sequences, best first: whose, to which token, and the sums then.

    Args:
        logits: (n, V).
        sums: (n,) log-probabilities so far.
    """
    n, V = logits.shape
    totals = (sums[:, None] + logits.float().log_softmax(-1)).flatten()
    best, chosen = totals.topk(min(count, n * V))
    return (chosen // V).tolist(), (chosen % V).tolist(), best


def _score(scored: tuple[float, list[int]]) -> float:
    return scored[0]
