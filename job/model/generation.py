"""Decoding: which tokens follow a prompt, by sampling, greedily or by beam search.

Pure over a model that answers with the next token's logits. Shape letters are those of `gpt.py`.
"""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from job.errors import ConfigError


class NextLogits(Protocol):
    """What decoding asks of a model. It sees the last `context_length` tokens at most; GPT is one."""

    context_length: int

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> logits (B, V) of the token after the last."""


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits (B, V) -> probabilities (B, V) float32: top-k keeping ties, temperature, softmax, top-p, in this order.

    Args:
        temperature: 0 puts all probability on the highest logit, the first of equals.
        top_k: Logits below the k-th highest get probability 0.
        top_p: Only the fewest most probable tokens that together reach it are kept, the first of equals first.

    Raises:
        ConfigError: An argument has no meaning; names each that has none.
    """
    _check_sampling(temperature, top_k, top_p)
    logits = logits.float()
    V = logits.shape[-1]
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), V).float()
    if top_k is not None and top_k < V:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    below_best = logits - logits.amax(-1, keepdim=True)  # at most 0, so that no temperature can overflow
    probabilities = (below_best / max(temperature, torch.finfo(torch.float32).tiny)).softmax(-1)
    return probabilities if top_p is None or top_p == 1 else _nucleus(probabilities, top_p)


def generate(
    model: NextLogits,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop_token: int | None = None,
) -> Iterator[int]:
    """The tokens that continue the prompt (T,) int64, each as soon as it is known.

    The same generator state gives the same tokens; temperature 0 draws nothing. A prompt longer than the context
    keeps its end, and past the context the window slides.

    Args:
        generator: Source of the draws; torch's own when there is none.
        stop_token: Ends the continuation and is not part of it; without one, nothing but the count does.

    Raises:
        ConfigError: At the call, not at the first token: an argument has no meaning.
    """
    _check_sampling(temperature, top_k, top_p)
    _check_prompt(tokens, max_new_tokens)

    def endless() -> Iterator[int]:
        window = tokens[None]  # (1, T)
        while True:
            window = window[:, -model.context_length :]
            probabilities = next_token_probabilities(model.next_logits(window), temperature, top_k, top_p)
            drawn = probabilities.argmax(-1, keepdim=True) if temperature == 0 else _draw(probabilities, generator)
            token = int(drawn)
            if token == stop_token:
                return
            yield token
            window = torch.cat((window, drawn), dim=1)

    return islice(endless(), max_new_tokens)


def beam_search(
    model: NextLogits,
    tokens: Tensor,
    max_new_tokens: int,
    beams: int,
    length_penalty: float = 1.0,
    stop_token: int | None = None,
) -> list[int]:
    """The best continuation of the prompt (T,) int64 found while following `beams` of them at once.

    A continuation's score is the sum of its log-probabilities / its length ** length_penalty; a stop token counts in
    both and is not part of the result. Rules are those of transformers with early_stopping=False: a continuation ends
    where its stop token is among the `beams` best next steps, and the search when `beams` have ended and the best open
    one, at its present length, scores no higher. One beam is greedy decoding.

    Raises:
        ConfigError: An argument has no meaning.
    """
    _check_prompt(tokens, max_new_tokens, (beams >= 1, f"beams={beams} must be at least 1"))
    running, sums = tokens[None], torch.zeros(1, device=tokens.device)  # (beams, T) and (beams,), best first
    scores = sums
    ended: list[tuple[float, Tensor]] = []  # score and sequence (T,), best first
    for length in range(1, max_new_tokens + 1):
        steps, sums = _best_steps(model, running, sums, 2 * beams)
        scores = sums / length**length_penalty
        stops = steps[:, -1] == (-1 if stop_token is None else stop_token)  # no token is -1
        ended += [(float(scores[rank]), steps[rank, :-1]) for rank in stops[:beams].nonzero().flatten().tolist()]
        ended = sorted(ended, key=_score, reverse=True)[:beams]
        running, sums, scores = (kept[~stops][:beams] for kept in (steps, sums, scores))
        if len(running) == 0 or (len(ended) == beams and float(scores[0]) <= _score(ended[-1])):
            break
    finalists = ended + [(float(score), sequence) for score, sequence in zip(scores[:1], running[:1], strict=True)]
    best: list[int] = max(finalists, key=_score)[1][len(tokens) :].tolist()
    return best


def _best_steps(model: NextLogits, running: Tensor, sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest one-token extensions of (n, T) sequences, and their log-probabilities; best first."""
    logits = model.next_logits(running[:, -model.context_length :]).float()  # (n, V)
    n, V = logits.shape
    totals = (sums[:, None] + logits.log_softmax(-1)).flatten()
    sums, chosen = totals.topk(min(count, n * V))
    return torch.cat((running[chosen // V], (chosen % V)[:, None]), dim=1), sums


def _score(scored: tuple[float, Tensor]) -> float:
    return scored[0]


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(B, V) -> (B, V) with the least probable tokens beyond mass `top_p` at 0 and the others summing to 1 again."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(mass_before >= top_p, 0.0)
    return torch.zeros_like(kept).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Probabilities (B, V) -> tokens (B, 1) int64, drawn on the generator's device."""
    device = probabilities.device if generator is None else generator.device
    return torch.multinomial(probabilities.to(device), 1, generator=generator).to(probabilities.device)


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    _require(
        (0 <= temperature < math.inf, f"temperature={temperature} must be at least 0 and finite"),
        (top_k is None or top_k >= 1, f"top_k={top_k} must be at least 1"),
        (top_p is None or 0 < top_p <= 1, f"top_p={top_p} must be above 0 and at most 1"),
    )


def _check_prompt(tokens: Tensor, max_new_tokens: int, *rules: tuple[bool, str]) -> None:
    _require(
        (tokens.dim() == 1, f"the prompt's shape {tuple(tokens.shape)} must be (T,)"),
        (tokens.numel() > 0, "the prompt is empty; at least one token is needed"),
        (max_new_tokens >= 0, f"max_new_tokens={max_new_tokens} must be at least 0"),
        *rules,
    )


def _require(*rules: tuple[bool, str]) -> None:
    problems = [text for holds, text in rules if not holds]
    if problems:
        raise ConfigError(*problems)
