"""Loss of a model on fixed windows of a split: no dropout, no gradients, nothing of the training state touched."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from job.data.shards import TokenSplit
from job.infra.device import Numerics
from job.model.gpt import GPT, evaluating

_LOGIT_BYTES = 256 << 20  # of one forward pass


@dataclass(frozen=True, slots=True)
class SplitLoss:
    """What a model costs on a split.

    Args:
        loss: Mean cross-entropy, nats per token.
        tokens: Tokens it was measured on.
        bytes_per_token: UTF-8 bytes of the split's text per token; 0 when unknown.
    """

    loss: float
    tokens: int
    bytes_per_token: float

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is more than a float holds."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Loss in bits per byte of text, which compares across tokenizers."""
        return self.loss / math.log(2) / self.bytes_per_token if self.bytes_per_token else None

    def plain(self) -> dict[str, float | int | None]:
        """As JSON values."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
        }


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The fixed windows on which a split is measured."""

    tokens: TokenSplit
    starts: np.ndarray  # (N,) int64: where each window begins
    bytes_per_token: float


class Evaluator:
    """Measures a model on the same windows every time.

    Args:
        sets: The windows of each split.
        numerics: Precision of the forward pass.
        device: Where the model is.
        rows_at_least: Windows per forward pass; more are taken where logits are small.
        advance: Called after each pass; may raise to stop.
    """

    def __init__(
        self,
        sets: Mapping[str, EvaluationSet],
        numerics: Numerics,
        device: torch.device,
        rows_at_least: int = 1,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.sets = sets
        self._numerics = numerics
        self._device = device
        self._rows_at_least = rows_at_least
        self._advance = advance

    def measure(self, model: GPT, split: str) -> SplitLoss:
        """The loss of `model` on the windows of `split`."""
        chosen = self.sets[split]
        T = model.context_length
        rows = max(self._rows_at_least, _LOGIT_BYTES // (4 * T * model.vocab_size))
        total = 0.0
        with evaluating(model), torch.inference_mode():
            for first in range(0, len(chosen.starts), rows):
                total += self._sum(model, chosen.tokens.windows(chosen.starts[first : first + rows], T + 1))
                self._advance()
        count = len(chosen.starts) * T
        return SplitLoss(total / count, count, chosen.bytes_per_token)

    def _sum(self, model: GPT, windows: np.ndarray) -> float:
        """Windows (N, T + 1) int64 -> summed cross-entropy in nats."""
        tokens = torch.from_numpy(windows).to(self._device)
        with self._numerics.autocast():
            logits = model(tokens[:, :-1])
        return float(F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum"))
