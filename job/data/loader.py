"""Batches of tokens for torch: any step at once, any number of workers, any world size, always the same."""

import hashlib
import signal
import threading
from collections.abc import Generator, Sequence
from itertools import count
from sys import maxsize
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from job.data.order import DataOffset, Order, sample_numbers
from job.data.shards import TokenSplit
from job.errors import JobError

BLOCK = 1024  # samples whose starts are computed together
_TOKENS = 1 << 16  # of a block, up to which its windows are read together too: a call costs more than they do


class Batch(NamedTuple):
    """One step's tokens.

    Args:
        inputs: (b, T) int64.
        targets: (b, T) int64, each the token after its input.
        samples: SHA-256 of where every window of the whole batch begins, in order: which data this is.
    """

    inputs: Tensor
    targets: Tensor
    samples: bytes


class StepDataset(Dataset[Batch]):
    """The batches of a split, indexed by step.

    Args:
        batch_size: Sequences of a step over all ranks.
        offsets: What is passed over, and from which step on.
        rank, world_size: Which rows of each batch are this process's: the batch is dealt out in runs, in order.
    """

    def __init__(
        self,
        split: TokenSplit,
        order: Order,
        batch_size: int,
        offsets: Sequence[DataOffset] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._split, self._order = split, order
        self._batch_size, self._offsets = batch_size, tuple(offsets)
        self._rows = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._steps = max(1, BLOCK // batch_size)  # of a block
        self._block = -1
        self._starts: NDArray[np.int64] = np.empty((0, batch_size), np.int64)  # of the block's steps
        self._windows: tuple[Tensor, Tensor] | None = None  # of all of them, where they are few

    def __getitem__(self, step: int) -> Batch:
        block, row = divmod(step, self._steps)
        if block != self._block:
            steps = range(block * self._steps, (block + 1) * self._steps)
            samples = sample_numbers(steps, self._batch_size, self._offsets)
            self._starts = self._order.starts(samples.ravel()).reshape(samples.shape)
            few = samples.size * self._order.context_length <= _TOKENS
            self._windows = self._read(self._starts[:, self._rows]) if few else None
            self._block = block
        starts = self._starts[row]
        digest = hashlib.sha256(starts.astype("<i8", copy=False).tobytes()).digest()
        if self._windows is None:
            return Batch(*self._read(starts[self._rows]), digest)
        inputs, targets = self._windows
        return Batch(inputs[row], targets[row], digest)

    def _read(self, starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Starts of any shape -> inputs and targets, of that shape and T."""
        length = self._order.context_length + 1
        tokens = self._split.windows(starts.ravel(), length).reshape(*starts.shape, length)
        inputs, targets = np.ascontiguousarray(tokens[..., :-1]), np.ascontiguousarray(tokens[..., 1:])
        return torch.from_numpy(inputs), torch.from_numpy(targets)


class BatchLoader:
    """Batches of consecutive steps, from any step on, read ahead by worker processes.

    Args:
        workers: Processes that read ahead; 0 reads when asked.
        pin_memory: Put batches into memory from which a GPU copies without waiting.
    """

    def __init__(self, dataset: StepDataset, workers: int = 0, *, pin_memory: bool = False) -> None:
        self._dataset, self._workers, self._pin_memory = dataset, workers, pin_memory

    def from_step(self, step: int) -> Generator[Batch, None, None]:
        """The batches of `step`, `step` + 1 and so on, without end; closing the iterator ends its workers.

        Raises, while it is read:
            JobError: A worker died.
        """
        if not self._workers and not self._pin_memory:  # what a loader does then costs more than a small batch
            yield from map(self._dataset.__getitem__, count(step))
        before = signal.getsignal(signal.SIGCHLD)
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=range(step, maxsize),
            collate_fn=_as_it_is,
            num_workers=self._workers,
            pin_memory=self._pin_memory,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # so that torch's own is not drawn from
        )
        try:
            batches = iter(loader)
            if self._workers and threading.current_thread() is threading.main_thread():
                # torch's handler would raise a worker's death anywhere in the main thread; now the next read does.
                signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
            yield from batches
        except (RuntimeError, OSError, EOFError) as error:  # the last two when it died while handing a batch over
            if not self._workers or str(error).startswith("Caught "):  # what the dataset itself raised
                raise
            raise JobError(
                f"a loader worker died ({error}). Most often memory ran out, or shared memory: set data.workers=0, or "
                "give the container more of either (/dev/shm)."
            ) from error


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Leave signals to the main process: it ends its workers."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
