"""The room that there is for training, and what is said when it was not enough: what was asked, and what would fit."""

import gc
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from job.config import Config
from job.infra.allocator import give_back_freed_memory
from job.infra.device import Numerics, wanting
from job.training.memory import Memory, estimate


class Room:
    """Memory for a model and its training, as seen before any of it is taken.

    Args:
        numerics: What the model will compute with, and on which device.
        vocab_size: Of its tokenizer.
    """

    def __init__(self, config: Config, numerics: Numerics, vocab_size: int) -> None:
        self._config, self._numerics, self._vocab_size = config, numerics, vocab_size
        self._taken = _mapped()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add to an error for want of memory what there is, and the nearest setting that fits.

        Raises:
            MemoryError: Device or host had no room inside the block.
        """
        try:
            yield
        except (MemoryError, RuntimeError, OSError) as error:  # torch's own are RuntimeErrors
            reason = wanting(error)
            if reason is None:
                raise
            traceback.clear_frames(error.__traceback__)  # what the step still holds: without it there is room to count
            gc.collect()
            with suppress(OSError):  # the kernel does not tell
                reason = f"{reason}; {self._advice()}"
            raise MemoryError(reason) from error

    def _advice(self) -> str:
        total, free = self._memory()
        give_back_freed_memory()
        counted_on = replace(self._numerics, device="cpu", compile=False)
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # it asks the kernel for room for its code
        try:
            need = estimate(self._config, self._vocab_size, counted_on, torch.device("cpu"))
        except (MemoryError, RuntimeError):
            return f"{_of(free, total)}, not enough to count what would fit: {_halve(self._config)}"
        return advice(need, total, free)

    def _memory(self) -> tuple[int, int]:
        """Bytes of the device, or what this process may have of the machine: for training in all, and free."""
        if self._numerics.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            return total, free
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(told[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return total, free
        return min(total, limit - self._taken), min(free, limit - _mapped())


def advice(need: Memory, total: int, free: int) -> str:
    """What was to be had, and what to set so that it fits; never what has just been too much."""
    now = need.sequences
    fitting = min(need.sequences_within(total), now // 2)
    there = f"{_of(free, total)}; "
    asked = f"{now} sequences at once take about {_size(need.step)}"
    if fitting == 0:
        return (
            f"{there}{asked}, and one alone {_size(need.with_sequences(1))}: take a smaller "
            "model.context_length or model.n_layer, or several GPUs with runtime.parallel=fsdp"
        )
    return f"{there}{asked}: start again with --set training.micro_batch_size={fitting}"


def _of(free: int, total: int) -> str:
    return f"{_size(free)} of {_size(total)} are free"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{max(0, count) / 2**20:.0f} MiB"


def _halve(config: Config) -> str:
    half = config.training.rows_per_pass // 2
    return f"start again with --set training.micro_batch_size={half}" if half else "take a smaller model"


def _mapped() -> int:
    """Bytes of this process's address space; 0 where the kernel does not tell them."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0
