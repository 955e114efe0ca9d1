"""Which tokens are read when: a pure function of the seed and the number of a sample.

Batch `step` holds the samples step * batch_size + i, and as many more as were passed over by then. Sample g is window
perm(epoch)[g mod windows] of epoch g div windows, so that batches are always full, run across the ends of epochs, and
any of them is found at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from job.data.permutation import GOLDEN, key, mix, permuted
from job.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOffset:
    """From `step` on, `samples` more are passed over."""

    step: int
    samples: int


def passed_over(step: int, offsets: Sequence[DataOffset]) -> int:
    """Samples passed over before those of `step`."""
    return sum(offset.samples for offset in offsets if offset.step <= step)


def sample_numbers(steps: range, batch_size: int, offsets: Sequence[DataOffset] = ()) -> NDArray[np.int64]:
    """(len(steps), batch_size) int64: the samples of each step."""
    first = [step * batch_size + passed_over(step, offsets) for step in steps]
    return np.array(first, np.int64)[:, None] + np.arange(batch_size, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which the windows of a split are read.

    Args:
        kind: `windows` reads each window once per epoch; `random` takes blocks anywhere, each drawn by itself.
        tokens: Tokens of the split (N).
        context_length: Tokens of a window (T), to which one more is read as the last target.
        stride: Tokens from one window to the next.
        purpose: Evaluation has an order of its own under the same seed.
    """

    kind: Literal["windows", "random"]
    tokens: int
    context_length: int
    stride: int
    seed: int
    purpose: Literal["training", "evaluation"] = "training"

    @property
    def windows(self) -> int:
        """Windows of one epoch; for `random`, as many blocks as there would be windows."""
        return len(range(0, self.tokens - self.context_length, self.stride))

    @property
    def dropped_tail(self) -> int:
        """Tokens at the end of the split that no window reaches."""
        if not self.windows:
            return self.tokens
        return 0 if self.kind == "random" else (self.tokens - self.context_length - 1) % self.stride

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample numbers (n,) -> the first token of each (n,) int64. DataError when the split holds no window."""
        windows = self.windows
        if not windows:
            raise DataError(f"no window of {self.context_length} + 1 tokens in a split of {self.tokens}")
        secret = key(self.seed, f"{self.purpose}:{self.kind}")
        if self.kind == "random":
            drawn = mix(secret + mix(samples.astype(np.uint64) + GOLDEN))
            return (drawn % np.uint64(self.tokens - self.context_length)).astype(np.int64)
        epochs, places = np.divmod(samples, windows)
        return permuted(places, epochs, windows, secret) * self.stride
