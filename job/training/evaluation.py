"""Loss of a model on fixed windows of a split: no dropout, no gradients, nothing of the training state touched."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from job.data.cache import Advance
from job.data.shards import TokenSplit
from job.infra.device import Numerics
from job.infra.ranks import ALONE, Ranks
from job.model.gpt import GPT, evaluating

_PASS_BYTES = 256 << 20  # of one forward pass: its logits, or a feed-forward before and after its activation
_NOT_SCORED = -100  # no token


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
    """The fixed windows on which a split is measured.

    Args:
        starts: (N,) int64, where each window begins.
        window: Tokens that the model reads of each; the token after them is a target too.
        scored: (N,) int64, how many targets at the end of each window count; unset: all.
    """

    tokens: TokenSplit
    starts: np.ndarray
    bytes_per_token: float
    window: int
    scored: np.ndarray | None = None


class Evaluator:
    """Measures a model on the same windows every time.

    Args:
        sets: The windows of each split.
        numerics: Precision of the forward pass.
        device: Where the model is.
        rows_at_least: Windows per forward pass; more are taken where each takes little.
        advance: Called after each pass with the windows that all ranks have done, as often on every rank; may raise
            to stop.
        ranks: Who share the windows among them.
    """

    def __init__(
        self,
        sets: Mapping[str, EvaluationSet],
        numerics: Numerics,
        device: torch.device,
        rows_at_least: int = 1,
        advance: Advance = lambda *_: None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.sets = sets
        self._ranks = ranks
        self._numerics = numerics
        self._device = device
        self._rows_at_least = rows_at_least
        self._advance = advance

    def measure(self, model: GPT, split: str) -> SplitLoss:
        """The loss of `model` on the windows of `split`."""
        chosen = self.sets[split]
        T = chosen.window
        rank, world_size = self._ranks.place.rank, self._ranks.place.world_size
        rows = max(self._rows_at_least, _PASS_BYTES // (4 * T * max(model.vocab_size, 8 * model.config.n_embd)))
        rows = min(rows, math.ceil(len(chosen.starts) / world_size))
        total = 0.0
        with evaluating(model), torch.inference_mode():
            for first in range(0, len(chosen.starts), world_size * rows):
                begin = first + rank * rows
                part = slice(begin, begin + rows) if begin < len(chosen.starts) else slice(0, 1)
                windows = chosen.tokens.windows(chosen.starts[part], T + 1)
                found = self._sum(model, windows, None if chosen.scored is None else chosen.scored[part])
                total += found if begin < len(chosen.starts) else 0.0  # with none left it only keeps the others company
                self._advance(min(world_size * rows, len(chosen.starts) - first))
        total = self._ranks.total(total)
        count = len(chosen.starts) * T if chosen.scored is None else int(chosen.scored.sum())
        return SplitLoss(total / count, count, chosen.bytes_per_token)

    def _sum(self, model: GPT, windows: np.ndarray, scored: np.ndarray | None) -> float:
        """Windows (N, T + 1) int64 -> nats that the last `scored` (N,) targets of each cost, or all of them."""
        tokens = torch.from_numpy(windows).to(self._device)
        with self._numerics.autocast():
            logits = model(tokens[:, :-1])
        targets = tokens[:, 1:]
        if scored is not None:
            T = targets.shape[1]
            first = torch.from_numpy(T - scored).to(self._device)[:, None]
            targets = targets.masked_fill(torch.arange(T, device=self._device) < first, _NOT_SCORED)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="sum", ignore_index=_NOT_SCORED
        )
        return float(losses)


def strided_windows(tokens: int, context_length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Where windows begin, and how many targets at the end of each count, so that each token but the first counts once.

    Each is predicted from at least `context_length - stride` tokens, where there are so many before it; this is how
    perplexities are published (a stride of context_length gives consecutive windows). The last window is moved back
    so that it ends where the text does.
    """
    T = min(context_length, tokens - 1)
    ends = np.minimum(np.arange(T, tokens - 1 + stride, stride, dtype=np.int64), tokens - 1)  # targets before it
    return ends - T, np.diff(ends, prepend=0)
