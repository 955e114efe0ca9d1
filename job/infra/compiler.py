"""Whether torch can compile here, found out by compiling, and where it keeps what it compiled."""

import os
from dataclasses import replace
from pathlib import Path

import structlog
import torch

from job.config import RuntimeConfig
from job.errors import ConfigError
from job.infra.device import Numerics

log = structlog.get_logger(__name__)


def settle_compiling(numerics: Numerics, runtime: RuntimeConfig, cache: Path) -> Numerics:
    """`numerics`, if what they say about compiling can be done; else without, after one warning.

    What is compiled is kept in `cache`, so that a restart is quick. It is code: it stays on this machine, and is never
    taken from a bucket.

    Raises:
        ConfigError: Compiling was asked for by name and cannot be done.
    """
    if not numerics.compile:
        return numerics
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
    problem = _problem(torch.device(numerics.device))
    if problem is None:
        return numerics
    if runtime.compile == "on":
        raise ConfigError(f"runtime.compile='on', but torch cannot compile here: {problem}")
    log.warning("training without compiling, which is slower", reason=problem)
    return replace(numerics, compile=False)


def _problem(device: torch.device) -> str | None:
    """Why torch cannot compile a small function for `device`; None when it can."""
    try:
        compiled = torch.compile(lambda x: (x * 2 + 1).sum())
        compiled(torch.ones(64, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return lines[0]
    return None
