"""The folder where pulled texts and token files stay between runs, and what makes it safe to share.

content/<sha256><suffixes>   pulled files, named by what is in them
sources/<sha256 of URI>.json what a URI last gave
partial/<sha256 of URI>      downloads under way
hashes/<sha256 of path>.json what a file hashed to when it looked as it says
tokens/<fingerprint>/        token files
published/<fingerprint>.json what was counted in token files of others
locks/                       one process at a time does each of the above
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import structlog

from job.config import DataConfig
from job.errors import ConfigError
from job.infra.directory_store import flush
from job.infra.object_store import folder_errors


class Advance(Protocol):
    """Called whenever bytes or documents have moved; may raise Interrupted."""

    def __call__(self, done: int = 0, more: int = 0, /) -> None:
        """So many bytes are done, and so many more are known of that will be."""


LOCK_POLL = 0.2  # seconds
READ_BYTES = 1 << 20

log = structlog.get_logger(__name__)


def cache_folder(config: DataConfig) -> Path:
    """`data.cache_dir`, else $XDG_CACHE_HOME/gpt-pretrain-job, else ~/.cache/gpt-pretrain-job."""
    if config.cache_dir:
        return Path(config.cache_dir).expanduser().absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base, "gpt-pretrain-job").absolute()
    try:
        return Path.home() / ".cache" / "gpt-pretrain-job"
    except RuntimeError as error:
        raise ConfigError("data.cache_dir is unset and this user has no home folder: set it") from error


def digest(facts: object) -> str:
    """SHA-256, in hex, of facts written as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path, advance: Advance) -> str:
    """SHA-256, in hex, of the file's bytes."""
    found = hashlib.sha256()
    with folder_errors(f"read {path}"), path.open("rb") as file:
        advance(0, os.fstat(file.fileno()).st_size)
        while chunk := file.read(READ_BYTES):
            found.update(chunk)
            advance(len(chunk))
    return found.hexdigest()


@contextmanager
def locked(cache: Path, name: str, advance: Advance) -> Iterator[None]:
    """Hold the lock `name` of this cache; waits, as long as it takes, for the process that has it."""
    path = cache / "locks" / f"{name}.lock"
    with folder_errors(f"lock {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(descriptor, path, advance)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a child has the descriptor too
        os.close(descriptor)


@contextmanager
def free_lock(cache: Path, name: str) -> Iterator[bool]:
    """Hold the lock `name` of this cache if nobody has it; whether that is so. The empty name is nobody's."""
    if not name:
        yield True
        return
    path = cache / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _wait_for(descriptor: int, path: Path, advance: Advance) -> None:
    announced = False
    while True:
        with folder_errors(f"lock {path}"), suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if not announced:
            log.info("waiting for another process", lock=str(path))
            announced = True
        advance()
        time.sleep(LOCK_POLL)


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write `facts` durably: readers see the old file or the new one."""
    with folder_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        publish(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """The facts in the file; empty when it is missing or is not a JSON object."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def publish(partial: Path, target: Path) -> None:
    """Give a finished file or folder its name, durably and at once."""
    flush(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)
    flush(target.parent)
