"""What training needs of memory, about, and which setting would fit when it was too much."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from job.config import Config
from job.model.loss import LOGIT_BYTES
from job.training.learner import Learner

_BYTES_OF_A_PARAMETER = 16  # fp32: itself, its gradient and two moments
# Bytes kept for the backward pass for each token, channel and layer: two residuals, two norms, q, k, v, attention, and
# four times the width before and after the activation.
_KEPT = {"fp32": 70, "bf16": 46, "fp16": 46}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that training takes: `fixed`, and `a_sequence` for each one of a forward pass."""

    fixed: int
    a_sequence: int

    def rows_within(self, total: int) -> int:
        """The most sequences of one forward pass, a power of two, that fit `total` bytes; 0 when none does."""
        rows = (total - self.fixed) // self.a_sequence
        return 0 if rows < 1 else 1 << (int(rows).bit_length() - 1)


def need_of(learner: Learner, config: Config) -> Need:
    """What training `learner` takes, within about a fifth."""
    model, precision = learner.model, learner.numerics.precision
    head = model.vocab_size * config.model.n_embd
    width = 2 if precision != "fp32" else 4
    fixed = _BYTES_OF_A_PARAMETER * model.parameter_count + width * head + 2 * LOGIT_BYTES
    tokens = config.model.context_length
    return Need(fixed, tokens * config.model.n_layer * config.model.n_embd * _KEPT[precision])


@contextmanager
def memory_explained(learner: Learner, config: Config) -> Iterator[None]:
    """Add to an error for want of memory what there is, and the nearest setting that fits.

    Raises:
        MemoryError: Device or host had no room inside the block.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        total, free = _memory(learner.device)
        raise MemoryError(f"{error}; {advice(need_of(learner, config), config, total, free)}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        total, free = _memory(learner.device)
        reason = str(error).partition("can't allocate memory: ")[2].splitlines()[0]
        raise MemoryError(f"{reason} {advice(need_of(learner, config), config, total, free)}") from error


def advice(need: Need, config: Config, total: int, free: int) -> str:
    """What was to be had, and what to set so that it fits."""
    rows, now = need.rows_within(total), config.training.rows_per_pass
    there = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free; "
    asked = f"{now} sequences at once take about {(need.fixed + now * need.a_sequence) / 2**30:.1f} GiB"
    if rows == 0:
        return (
            f"{there}{asked}, and one alone {(need.fixed + need.a_sequence) / 2**30:.1f}: take a smaller "
            "model.context_length or model.n_layer, or several GPUs with runtime.parallel=fsdp"
        )
    fitting = min(rows, max(1, now // 2))
    return f"{there}{asked}: start again with --set training.micro_batch_size={fitting}"


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the device, or of this machine as the kernel tells them: in all, and free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(told[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, free
