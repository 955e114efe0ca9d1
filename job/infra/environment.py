"""Facts about this process that records keep for information: versions, and who runs it."""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("gpt-pretrain-job", "torch", "numpy", "tiktoken", "safetensors")
_OWNERS = ("JOBSET_NAME", "TRAINJOB_NAME", "JOB_NAME", "JOB_UID", "POD_NAME", "HOSTNAME")


def code_facts(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Versions of what computes, and the revision and image where the environment names them."""
    return {
        "git": environ.get("GPT_JOB_REVISION"),
        "image": environ.get("GPT_JOB_IMAGE"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def machine_facts(gpu: str | None = None) -> dict[str, Any]:
    """What computes: processor, cores, bytes of memory, and the GPU's name if there is one."""
    facts: dict[str, Any] = {"cpu": _processor(), "cores": os.cpu_count(), "memory_bytes": _memory(), "gpu": gpu}
    return {name: value for name, value in facts.items() if value is not None}


def instruction_set() -> str:
    """What the processor can do, as the system lists it: code compiled for one list may not run with another."""
    return _of_cpu("flags") or _of_cpu("Features") or platform.machine()


def process_seconds() -> float:
    """Seconds since this process was started, what it took to import everything among them; 0 where nobody says."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    return 0.0


def owner_facts(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Names under which a cluster knows this process."""
    return {name.lower(): environ[name] for name in _OWNERS if environ.get(name)}


def _processor() -> str | None:
    return _of_cpu("model name") or platform.processor() or platform.machine() or None


def _of_cpu(fact: str) -> str | None:
    """What Linux says of the first core under this name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(fact):
                return line.partition(":")[2].strip()
    return None


def _memory() -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
