"""What each step came to, kept on the device until someone looks: the loop never waits for a number."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from job.checkpoint.chain import GENESIS, extend


@dataclass(frozen=True, slots=True)
class StepResult:
    """Loss (nats per token) and gradient norm (before clipping) of one step."""

    step: int
    loss: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Whether the update of this step was made."""
        return isfinite(self.loss) and isfinite(self.gradient_norm)


class StepLedger:
    """A ring of step results on the device, folded into the chain of steps when read.

    Args:
        device: Where losses are computed.
        capacity: Steps that fit before they have to be read.
        chain: The chain so far, in hex.
        step: Steps taken so far.
    """

    def __init__(self, device: torch.device, capacity: int, chain: str = GENESIS, step: int = 0) -> None:
        self.chain = chain
        self._step = step
        self._ring = torch.zeros(capacity, 2, device=device)
        self._samples: list[bytes] = []

    @property
    def full(self) -> bool:
        """Whether the next step does not fit."""
        return len(self._samples) == len(self._ring)

    def add(self, samples: bytes, loss: Tensor, gradient_norm: Tensor) -> None:
        """Keep the result of the next step; `samples` is the hash of its batch's sample numbers."""
        row = self._ring[len(self._samples)]
        row[0] = loss
        row[1] = gradient_norm
        self._samples.append(samples)

    def fold(self) -> list[StepResult]:
        """Each step since the last fold, in order; the chain has them in."""
        values = self._ring[: len(self._samples)].tolist()
        samples, self._samples = self._samples, []
        results = []
        for digest, (loss, norm) in zip(samples, values, strict=True):
            self._step += 1
            self.chain = extend(self.chain, self._step, digest, loss, norm)
            results.append(StepResult(self._step, loss, norm))
        return results
