"""The next token's probabilities, and drawing from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from job.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a token is chosen: repetition penalty, top-k keeping ties, temperature, softmax, top-p, in this order.

    Args:
        temperature: 0 takes the highest logit, the first of equals, and draws nothing.
        top_k: Logits below the k-th highest are out; k beyond the vocabulary leaves all in.
        top_p: Only the fewest most probable tokens that together reach it are in, the first of equals first.
        repetition_penalty: Logits of tokens that are in the sequence already, the prompt's too, are divided by it when
            above 0, else multiplied (Keskar et al. 2019, section 4.1, as transformers has it); 1 changes nothing.

    Raises:
        ConfigError: A value has no meaning; names each that has none.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(
            (0 <= self.temperature < math.inf, f"temperature={self.temperature} must be at least 0 and finite"),
            (self.top_k is None or self.top_k >= 1, f"top_k={self.top_k} must be at least 1"),
            (self.top_p is None or 0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1"),
            (
                0 < self.repetition_penalty < math.inf,
                f"repetition_penalty={self.repetition_penalty} must be above 0 and finite",
            ),
        )

    def choose(self, logits: Tensor, sequence: Sequence[int], generator: torch.Generator | None) -> int:
        """The token that follows `sequence`, from its logits (V,); the same generator state gives the same one."""
        if self.repetition_penalty != 1:
            logits = penalize_repetition(logits, sequence, self.repetition_penalty)
        if self.temperature == 0:
            return int(logits.argmax())
        probabilities = next_token_probabilities(logits[None], self.temperature, self.top_k, self.top_p)
        return int(_draw(probabilities, generator))


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits (B, V) -> probabilities (B, V) float32: what `Sampling` with these values draws from."""
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = logits.float()
    V = logits.shape[-1]
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), V).float()
    if top_k is not None and top_k < V:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    below_best = logits - logits.amax(-1, keepdim=True)  # at most 0, so that no temperature can overflow
    probabilities = (below_best / _as_float32(temperature)).softmax(-1)
    return probabilities if top_p is None or top_p == 1 else _nucleus(probabilities, top_p)


def penalize_repetition(logits: Tensor, sequence: Sequence[int], penalty: float) -> Tensor:
    """Logits (V,) -> (V,) float32 in which the tokens of `sequence` are less likely when `penalty` is above 1."""
    seen = torch.tensor(sorted(set(sequence)), dtype=torch.int64, device=logits.device)
    logits = logits.float()
    before = logits[seen]
    return logits.index_copy(0, seen, torch.where(before < 0, before * penalty, before / penalty))


def require(*rules: tuple[bool, str]) -> None:
    """Raise ConfigError with the text of every rule that does not hold."""
    problems = [text for holds, text in rules if not holds]
    if problems:
        raise ConfigError(*problems)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(B, V) -> (B, V) with the least probable tokens beyond mass `top_p` at 0 and the others summing to 1 again."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(mass_before >= _as_float32(top_p), 0.0)
    return torch.zeros_like(kept).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


def _as_float32(value: float) -> float:
    """The nearest positive float32, so that no setting becomes 0 or infinite beside logits."""
    limits = torch.finfo(torch.float32)
    return min(max(value, limits.tiny), limits.max)


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """Probabilities (B, V) -> tokens (B, 1) int64, drawn on the generator's device."""
    device = probabilities.device if generator is None else generator.device
    return torch.multinomial(probabilities.to(device), 1, generator=generator)
