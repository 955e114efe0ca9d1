"""How a model is spread over the ranks: whole in one process, whole in each (DDP), or in shards (FSDP2).

The learner and whatever stores or loads its tensors see them through one of these, and need not know which.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from torch import Tensor

from job.config import Config
from job.errors import ConfigError
from job.infra.ranks import ALONE, Ranks
from job.model.gpt import GPT


class Pass(NamedTuple):
    """One forward and backward pass of a rank within a step.

    Args:
        rows: Which of the rank's sequences.
        weight: What their mean loss counts in the gradients that the ranks average.
        last: Whether it is the last of the step.
    """

    rows: slice
    weight: float
    last: bool


class Parallel(Protocol):
    """A model as one of the ranks has it."""

    ranks: Ranks
    forward: Callable[[Tensor, Tensor], Tensor]  # tokens, targets (b, T) -> their mean loss

    def passes(self, rows: int, rows_per_pass: int) -> Iterator[Pass]:
        """How the rank's `rows` sequences of a step are cut; as many passes on every rank."""

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        """The block of a pass, in which gradients are summed over the ranks; with DDP only in the `last` of a step."""

    def total(self, loss: Tensor) -> Tensor:
        """The loss of the whole batch from the sums of weighted losses of each rank."""

    def number(self, norm: Tensor) -> Tensor:
        """A norm over all parameters as a plain tensor, the same on all ranks."""

    def place(self, target: Tensor, source: Tensor | None) -> None:
        """Copy what rank 0 has as `source` into a parameter, or into state like it."""

    def owned(self, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        """Those of the tensors that this rank stores, whole and one at a time."""

    def whole(self, model: GPT) -> GPT:
        """The model with plain parameters: itself, or on rank 0 a copy in host memory."""


def require_sequences(config: Config, world_size: int) -> None:
    """Raise ConfigError when there are more ranks than sequences in a batch."""
    if (batch_size := config.training.batch_size) < world_size:
        raise ConfigError(
            f"training.batch_size={batch_size} is too small for {world_size} processes: one each at least"
        )


class Whole:
    """The one process that there is has everything."""

    def __init__(self, model: GPT) -> None:
        self.ranks: Ranks = ALONE
        self.forward: Callable[[Tensor, Tensor], Tensor] = model

    def passes(self, rows: int, rows_per_pass: int) -> Iterator[Pass]:
        for first in range(0, rows, rows_per_pass):
            count = min(rows_per_pass, rows - first)
            yield Pass(slice(first, first + count), count / rows, first + count == rows)

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def total(self, loss: Tensor) -> Tensor:
        return loss

    def number(self, norm: Tensor) -> Tensor:
        return norm

    def place(self, target: Tensor, source: Tensor | None) -> None:
        assert source is not None
        target.copy_(source)

    def owned(self, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
        return tensors.items()

    def whole(self, model: GPT) -> GPT:
        return model
