"""Whether torch can compile here, found out by compiling; told where it keeps what it compiled."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import structlog
import torch

from job.config import RuntimeConfig
from job.errors import ConfigError
from job.infra.compiled_code import KEPT_IN, CompiledCode
from job.infra.device import Numerics

log = structlog.get_logger(__name__)


def settle_compiling(numerics: Numerics, runtime: RuntimeConfig, code: CompiledCode, before: bool = False) -> Numerics:
    """`numerics`, if what they say about compiling can be done; else without, after one warning.

    Args:
        code: Where what is compiled is kept, so that a restart is quick.
        before: The run was compiled so far: without, its numbers would be others.

    Raises:
        ConfigError: Compiling was asked for by name, or done before, and cannot be done.
    """
    if numerics.compile:
        os.environ[KEPT_IN] = str(code.folder)
    problem = _unwritable()
    if not numerics.compile:
        return numerics
    if problem is None:
        taken = code.take()
        problem = _problem(torch.device(numerics.device))
        if problem is not None and taken:
            problem += f" (with code from {code.uri}: remove it, if this machine's libraries are others than it needs)"
    if problem is None:
        return numerics
    if runtime.compile == "on":
        raise ConfigError(f"runtime.compile='on', but torch cannot compile here: {problem}")
    if before:
        raise ConfigError(
            f"the run was compiled so far, but torch cannot compile here: {problem}; mend that, or go on without by "
            "--set runtime.compile=off: numbers will differ from those of an unbroken run"
        )
    log.warning("training without compiling, which is slower", reason=problem)
    return replace(numerics, compile=False)


def compiler_identity() -> list[object]:
    """The C++ compiler that torch calls, so that code is told apart from another one's."""
    path = shutil.which(os.environ.get("CXX") or "g++")
    return [None] if path is None else [os.path.realpath(path), Path(path).stat().st_size]


def _unwritable() -> str | None:
    """Why nothing can be kept where torch is told to; None when it can, or is told nothing.

    It is told so no more then: torch loads its compiler for an optimizer too, and that makes the folder.
    """
    if (folder := os.environ.get(KEPT_IN)) is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        del os.environ[KEPT_IN]
        return f"{folder} cannot be written: {error.strerror}"


def _problem(device: torch.device) -> str | None:
    """Why torch cannot compile a small function for `device`; None when it can."""
    try:
        compiled = torch.compile(lambda x: (x * 2 + 1).sum())
        compiled(torch.ones(64, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return lines[0]
    return None
