"""What can be said of the machine without torch: its driver, its shared memory, its disks, its memory."""

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from job.checks.finding import Finding, size
from job.config import Config
from job.data.cache import cache_folder
from job.errors import AccessError, ConfigError, StorageError
from job.uris import local_folder

# The oldest Linux driver for each major version of CUDA (NVIDIA, CUDA Compatibility: minor version compatibility).
OLDEST_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
_LITTLE = 1 << 30  # bytes left on a disk, below which a person should know
_PREFETCHED = 2  # batches that each loader worker has ready


def driver(config: Config, proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> Iterator[Finding]:
    """Whether the kernel's NVIDIA driver can serve torch's CUDA."""
    asked, cuda = config.runtime.device, torch_cuda()
    with suppress(OSError):
        text = (proc / "driver/nvidia/version").read_text()
        yield judge_driver(cuda, text, asked)
        return
    if any(dev.glob("nvidia[0-9]*")):
        said = "there are NVIDIA devices in /dev, but no driver answers in /proc/driver/nvidia"
        advice = "start the container with --gpus all, or with the NVIDIA device plugin"
        yield Finding(about="driver", level="error", said=said, advice=advice, code=ConfigError.exit_code)
    elif asked == "cuda":
        yield Finding(
            about="driver",
            level="error",
            said="runtime.device='cuda', but this machine has no NVIDIA driver",
            advice="run where there is a GPU (docker --gpus all; nvidia.com/gpu in the pod), or set runtime.device=cpu",
            code=ConfigError.exit_code,
        )
    else:
        yield Finding(about="driver", said="no NVIDIA driver; none is needed without a GPU")


def judge_driver(cuda: str | None, text: str, asked: str) -> Finding:
    """Whether the driver that describes itself so serves torch's CUDA, for a run that asks for this device."""
    match = re.search(r"\b(\d+)\.(\d+)(?:\.(\d+))?\b", text)
    version = tuple(int(part or 0) for part in match.groups()) if match else None
    named = match[0] if match else "of unknown version"
    if cuda is None:
        error = asked in ("cuda", "auto")
        return Finding(
            about="driver",
            level="error" if error else "ok",
            said=f"NVIDIA driver {named}, but this torch is a build without CUDA",
            advice="install torch's CUDA build, or set runtime.device=cpu" if error else "",
            code=ConfigError.exit_code if error else 0,
        )
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    if version and oldest and version < oldest:
        return Finding(
            about="driver",
            level="error",
            said=f"NVIDIA driver {named}; torch's CUDA {cuda} expects {'.'.join(map(str, oldest))} or newer",
            advice=f"update the driver, or install torch built for an older CUDA than {cuda}",
            code=ConfigError.exit_code,
        )
    return Finding(about="driver", said=f"NVIDIA driver {named} serves torch's CUDA {cuda}")


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built for, read without importing it; None without CUDA."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("torch is not installed: pip install torch")
    text = Path(spec.submodule_search_locations[0], "version.py").read_text()
    match = re.search(r"^cuda[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def shared_memory(config: Config, place: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108
    """Whether loader workers can hand their batches over."""
    if not place.is_dir():
        yield Finding(
            about="shared memory", said=f"{place} is not there", level="warning" if config.data.workers else "ok"
        )
        return
    free = shutil.disk_usage(place).free
    batch = 2 * 8 * config.tokens_per_step  # inputs and targets, int64
    needed = config.data.workers * (_PREFETCHED + 1) * batch
    facts = {"free": free, "needed": needed}
    if needed > free:
        yield Finding(
            about="shared memory",
            level="error",
            said=f"{place} has {size(free)}; {config.data.workers} loader workers need about {size(needed)}",
            advice="docker run --shm-size=1g (or --ipc=host), an emptyDir of medium Memory in a pod, or data.workers=0",
            code=ConfigError.exit_code,
            facts=facts,
        )
        return
    used = f"loader workers need about {size(needed)}" if needed else "no loader workers need it"
    yield Finding(about="shared memory", said=f"{place} has {size(free)}; {used}", facts=facts)


def disk(config: Config, state_bytes: int, corpus_bytes: int | None) -> Iterator[Finding]:
    """Whether there is room for checkpoints, for the corpus and its tokens, and for what is on its way.

    Args:
        state_bytes: Of one checkpoint.
        corpus_bytes: Of the text that will be cached; None when nobody knows.
    """
    kept = config.checkpoint.keep_last + config.checkpoint.keep_best + 1  # and the one that is being written
    wanted = {"cache": (cache_folder(config.data), int(1.5 * (corpus_bytes or 0)))}
    if folder := local_folder(config.run_uri):
        wanted["run"] = (folder, kept * state_bytes)
    wanted["temporary files"] = (
        Path(tempfile.gettempdir()),
        state_bytes if local_folder(config.run_uri) is None else 0,
    )
    for name, (place, needed) in wanted.items():
        yield _room(f"disk: {name}", place, needed)


def _room(about: str, folder: Path, needed: int) -> Finding:
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    facts = {"folder": str(folder), "free": free, "needed": needed}
    said = f"{folder} has room for {size(free)}; about {size(needed)} are needed"
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(
            about=about,
            level="error",
            said=f"{place} cannot be written to by user {os.getuid()}",
            advice="name another folder, or mount it writable for this user",
            code=AccessError.exit_code,
            facts=facts,
        )
    if free < needed:
        advice = "free space, or name a folder on a larger disk (run_uri, data.cache_dir, TMPDIR)"
        return Finding(about=about, level="error", said=said, advice=advice, code=StorageError.exit_code, facts=facts)
    if free < needed + _LITTLE:
        return Finding(about=about, level="warning", said=said, advice="it will be nearly full", facts=facts)
    return Finding(about=about, said=said, facts=facts)


def memory_limit() -> int | None:
    """Bytes of memory this process may still take: what the machine has left, or its container; None when unknown."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        found.append(int(re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0]) << 10)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            found.append(int((root / limit).read_text()) - int((root / used).read_text()))
    return min(found, default=None)
