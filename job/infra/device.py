"""What the machine offers, what `auto` becomes on it, and switching torch to it.

The outcome is stored with the run and used again on resume, because results repeat bit for bit only on the same
device, with the same precision and the same number of threads.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from job.config import RuntimeConfig
from job.errors import ConfigError
from job.infra.cores import cores_of_quota
from job.infra.place import ALONE, Crew, Place
from job.infra.volumes import IMAGE_MARK

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """Everything about the machine that decides the bits of a result."""

    device: str
    precision: str
    compile: bool
    deterministic: bool
    threads: int
    world_size: int = 1
    parallel: str = "none"
    attention: str = "sdpa"

    def plain(self) -> dict[str, Any]:
        """As JSON values, with the versions that matter beside them."""
        return {**asdict(self), "torch": torch.__version__, "cuda": torch.version.cuda}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which a forward pass runs."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=_DTYPES[self.precision])


class OnCpu(NamedTuple):
    """What is fastest on a CPU depends on the model; `threads` unset: one a core."""

    precision: str = "fp32"
    threads: int | None = None


PLAIN = OnCpu()


def choose_numerics(
    runtime: RuntimeConfig, stored: Mapping[str, Any] | None, place: Place = ALONE, *, on_cpu: OnCpu = PLAIN
) -> Numerics:
    """What this run computes with.

    Args:
        runtime: What was asked for; `auto` takes what the run used before, else the best of this machine.
        stored: Numerics of the checkpoint that is continued.
        place: How many processes compute together, and how many of them on this machine.
        on_cpu: The best for the model, if it is to be on a CPU.

    Raises:
        ConfigError: What was asked for, or used before, is not to be had here.
    """
    before = stored or {}
    device = _asked(runtime.device) or before.get("device") or _best_device()
    _require_device(device)
    precision = _asked(runtime.precision) or before.get("precision") or _best_precision(device, on_cpu)
    several = place.world_size > 1
    parallel = (_asked(runtime.parallel) or _parallel_before(before) or "ddp") if several else "none"
    if (parallel, precision) == ("fsdp", "fp16"):
        raise ConfigError("runtime.parallel='fsdp' does not scale gradients: take runtime.precision=bf16, not fp16")
    threads = before.get("threads") if before.get("world_size", 1) == place.world_size else None
    if device == "cpu":
        threads = threads or on_cpu.threads
    compiled = {"on": True, "off": False, "auto": bool(before.get("compile", device == "cuda"))}[runtime.compile]
    return Numerics(
        device=device,
        precision=precision,
        compile=compiled,
        deterministic=runtime.deterministic,
        threads=runtime.threads or threads or max(1, usable_cores() // place.local_world_size),
        world_size=place.world_size,
        parallel=parallel,
    )


def _parallel_before(stored: Mapping[str, Any]) -> str | None:
    found: str | None = stored.get("parallel")
    return None if found == "none" else found


def changes(numerics: Numerics, stored: Mapping[str, Any]) -> list[str]:
    """What differs from the numerics a run was saved with, one sentence each."""
    now = numerics.plain()
    return [
        f"{name} was {stored[name]}, is {value}"
        for name, value in now.items()
        if name in stored and stored[name] != value
    ]


def apply_numerics(numerics: Numerics, place: Place = ALONE) -> torch.device:
    """Switch torch to `numerics`; returns the device. ConfigError when there are fewer GPUs than processes."""
    torch.set_num_threads(numerics.threads)
    take_own_gpu(numerics, place)
    if numerics.compile:
        torch.use_deterministic_algorithms(numerics.deterministic)  # tells the compiler too, and so loads it: a second
    else:
        torch.set_deterministic_debug_mode("error" if numerics.deterministic else "default")
    if numerics.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    return torch.device(numerics.device)


def take_own_gpu(numerics: Numerics, place: Place) -> None:
    """Of several processes, let each have the GPU of its number, before anything of it is on another's.

    Raises:
        ConfigError: There are fewer GPUs than processes.
    """
    if numerics.device == "cuda" and place.world_size > 1:
        require_gpus(place.local_rank + 1, place)
        torch.cuda.set_device(place.local_rank)


def require_gpus(count: int, place: Place) -> None:
    """Raise ConfigError unless this machine, with the processes that it has by `place`, has so many GPUs."""
    if (found := torch.cuda.device_count()) < count:
        raise ConfigError(f"{place.local_world_size} processes on this machine need as many GPUs; it has {found}")


def processes_of(crew: Crew) -> int:
    """How many processes a crew has on this machine. ConfigError when its GPUs are to be counted and there are none."""
    if crew.processes != "gpu":
        return crew.processes
    if found := torch.cuda.device_count():
        return found
    raise ConfigError("--processes gpu: torch finds no GPU on this machine; say a number")


def gpu_use() -> dict[str, float]:
    """Memory of the present CUDA device in bytes, used by this process and in all; its utilization where it is told.

    NVIDIA's management library for Python (the extra `gpu`) tells it.
    """
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    use = {"memory_used_bytes": float(torch.cuda.memory_allocated()), "memory_total_bytes": float(total)}
    with contextlib.suppress(Exception):  # the library is absent, or the driver refuses: errors of its own kinds
        use["utilization_ratio"] = torch.cuda.utilization() / 100
    return use


def gpu_name() -> str:
    """What the present CUDA device is called."""
    return str(torch.cuda.get_device_name())


def usable_cores() -> int:
    """Threads this process should use: torch's own choice, bounded by the container's CPU quota."""
    return max(1, min(torch.get_num_threads(), cores_of_quota()))


def _asked(setting: str) -> str | None:
    return None if setting == "auto" else setting


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if any(Path("/dev").glob("nvidia[0-9]*")):
        raise ConfigError(
            f"this machine has an NVIDIA GPU that torch cannot use: {_cuda_problem()}; "
            "mend that, or say --set runtime.device=cpu"
        )
    return "cpu"


def _require_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"runtime.device='cuda', but torch finds no GPU: {_cuda_problem()} (a CPU would do with "
            f"--set runtime.device=cpu, if this size is meant for one){_how_to_give_one()}"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("runtime.device='mps', but torch finds no Metal GPU on this machine")


def _cuda_problem() -> str:
    """torch's own reason why CUDA does not work."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no reason given"


def _how_to_give_one() -> str:
    """What brings a GPU into a container."""
    if IMAGE_MARK not in os.environ:
        return ""
    if torch.version.cuda is None:
        return "; this is the image's CPU build: take the one built with TORCH=cuda"
    return "; a container gets one by docker run --gpus all, or a limit of nvidia.com/gpu in Kubernetes"


def _best_precision(device: str, on_cpu: OnCpu) -> str:
    if device == "cpu":
        return on_cpu.precision
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn what torch and the system raise when there is no memory into a MemoryError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if (reason := wanting(error)) is None:
            raise
        raise MemoryError(reason) from error


def wanting(error: BaseException) -> str | None:
    """What an error says was asked for, if it is raised for want of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return str(error)
    if "can't start new thread" in str(error):
        return "no room for another thread, in memory or in what the system lets a process start"
    _, found, reason = str(error).partition("can't allocate memory: ")
    if found:
        return reason.splitlines()[0]
    return str(error) if os.strerror(errno.ENOMEM) in str(error) else None  # of a file: an OSError, or torch's own
