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
    """Step results that stay on the device, folded into the chain of steps when read.

    Args:
        capacity: Steps that fit before they have to be read.
        chain: The chain so far, in hex.
        step: Steps taken so far.
    """

    def __init__(self, capacity: int, chain: str = GENESIS, step: int = 0) -> None:
        self.chain = chain
        self._step = step
        self._capacity = capacity
        self._samples: list[bytes] = []
        self._numbers: list[Tensor] = []  # loss and norm of each

    @property
    def full(self) -> bool:
        """Whether the next step does not fit."""
        return len(self._samples) == self._capacity

    def add(self, samples: bytes, loss: Tensor, gradient_norm: Tensor) -> None:
        """Keep the result of the next step; `samples` is the hash of its batch's sample numbers."""
        self._samples.append(samples)
        self._numbers += loss, gradient_norm

    def fold(self) -> list[StepResult]:
        """Each step since the last fold, in order; the chain has them in."""
        values = torch.stack(self._numbers).view(-1, 2).tolist() if self._numbers else []
        samples, self._samples, self._numbers = self._samples, [], []
        results = []
        for digest, (loss, norm) in zip(samples, values, strict=True):
            self._step += 1
            self.chain = extend(self.chain, self._step, digest, loss, norm)
            results.append(StepResult(self._step, loss, norm))
        return results
