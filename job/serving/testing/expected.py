"""What a model says by itself, computed here: what its server is held to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from job.data.tokenizer import Tokenizer
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.rows import CachedRows, Rows

UNKNOWN = "\ufffd"
TIE_FP32 = 1e-3  # of two logits so close, rounding may prefer either
TIE_BF16 = 2**-6  # the same, of their size: two steps of bf16


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The most probable continuation of a prompt.

    Args:
        ends: After each token of the continuation, the characters of `text` that are whole.
        margins: Of each token, and of the end where the model made it, how far its logit lies above the second best.
        tie: How close two logits must lie for rounding to prefer either.
        prompt_tokens: The prompt's token ids; None where only the server knows them.
        prompt_logprobs: Log-probability of each token of the prompt but the first.
    """

    prompt: str
    text: str
    ends: tuple[int, ...]
    margins: tuple[float, ...]
    tie: float
    prompt_tokens: tuple[int, ...] | None = None
    prompt_logprobs: tuple[float, ...] | None = None

    def contradicts(self, text: str) -> str:
        """How `text` is another answer; empty when it is this one, or leaves it where two tokens are tied."""
        if text == self.text:
            return ""
        pairs = enumerate(zip(text, self.text, strict=False))
        agreed = next((place for place, (one, other) in pairs if one != other), min(len(text), len(self.text)))
        place = next((number for number, end in enumerate(self.ends) if end > agreed), len(self.ends))
        befores = (0, *self.ends)  # several tokens may make one character: each of them may be the one that differs
        first = befores.index(befores[place])
        margin = min(self.margins[first : place + 1], default=math.inf)
        if margin <= self.tie:
            return ""
        return (
            f"prompt {_short(self.prompt)}: at character {agreed} expected {_short(self.text[agreed:])}, "
            f"got {_short(text[agreed:])}, where the best token leads by {margin:.4f}"
        )


class _Watched:
    """Rows whose logits are looked at on their way."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.context_length, self.vocab_size = rows.context_length, rows.vocab_size
        self.best: list[tuple[float, float]] = []

    def add(self, tokens: Sequence[int]) -> Tensor:
        return self._seen(self._rows.add(tokens))

    def extend(self, tokens: Sequence[int]) -> Tensor:
        return self._seen(self._rows.extend(tokens))

    def select(self, rows: Sequence[int]) -> None:
        self._rows.select(rows)

    def remove(self, row: int) -> None:
        self._rows.remove(row)

    def _seen(self, logits: Tensor) -> Tensor:
        best = logits.flatten().float().topk(min(2, self.vocab_size)).values.tolist()
        self.best.append((best[0], best[-1]))
        return logits


def expect(
    decoder: Decoder, tokenizer: Tokenizer, prompt: str, max_tokens: int, stop_token: int | None = None
) -> Expected:
    """What `generate` makes of a prompt, greedily, and how sure the model is of it."""
    prompt_tokens = tokenizer.encode(prompt).tolist()
    rows = _Watched(CachedRows(decoder, 1))
    tokens = list(generate(rows, prompt_tokens, max_tokens, stop_token=stop_token))
    text = tokenizer.decode(tokens)
    ends = [len(tokenizer.decode(tokens[: count + 1]).rstrip(UNKNOWN)) for count in range(len(tokens))]
    largest = max((abs(best) for best, _ in rows.best), default=0.0)
    return Expected(
        prompt=prompt,
        text=text,
        ends=tuple(ends),
        margins=tuple(best - second for best, second in rows.best),
        tie=TIE_FP32 if decoder.dtype == torch.float32 else max(TIE_FP32, TIE_BF16 * largest),
        prompt_tokens=tuple(prompt_tokens),
        prompt_logprobs=tuple(_logprobs(decoder, prompt_tokens)),
    )


def expect_of_answer(prompt: str, answer: dict[str, Any]) -> Expected:
    """The same from a server's own answer with `logprobs` 2: what its other answers must agree with."""
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    ends = [offset - logprobs["text_offset"][0] for offset in logprobs["text_offset"][1:]]
    margins = []
    for best in logprobs["top_logprobs"]:
        values = sorted(best.values(), reverse=True)
        margins.append(values[0] - values[1] if len(values) > 1 else 0.0)
    return Expected(
        prompt=prompt,
        text=choice["text"],
        ends=(*ends, len(choice["text"])),
        margins=tuple(margins),
        tie=TIE_BF16,
    )


@torch.inference_mode()
def _logprobs(decoder: Decoder, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token but the first, given those before it."""
    read = tokens[: decoder.context_length]
    cache = decoder.new_cache(1)
    logits = decoder.logits(decoder.hidden(cache, cache.open(), read))[:-1]
    targets = torch.tensor(read[1:], device=logits.device)
    return list(logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].tolist())


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
