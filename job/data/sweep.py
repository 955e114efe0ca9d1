"""What processes that died have left half-made in the cache: removed once nobody has gone on with it for long."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import structlog

from job.data.cache import free_lock
from job.errors import JobError
from job.infra.object_store import folder_errors

KEPT_DAYS = 7.0

log = structlog.get_logger(__name__)


def sweep(cache: Path, now: float) -> None:
    """Remove what is older than KEPT_DAYS at `now` (seconds of the epoch) and whose lock nobody holds.

    A cache from which nothing can be removed is a warning.
    """
    try:
        with folder_errors(f"sweep {cache}"):
            for lock, paths in _half_made(cache).items():
                _remove(cache, lock, paths, now)
            for path in cache.glob("*/.*.json.*partial"):  # notes that were being written, for a moment each
                _remove(cache, "", [path], now)
    except JobError as error:
        log.warning("what is left over in the cache stays", reason=str(error))


def _half_made(cache: Path) -> dict[str, list[Path]]:
    """What lies there, by the lock of whoever works on it."""
    found: dict[str, list[Path]] = {}
    for path in _entries(cache / "partial"):
        found.setdefault(path.name.partition(".")[0], []).append(path)
    for path in _entries(cache / "tokens"):
        if path.name.startswith(".") and path.suffix in {".partial", ".incoming"}:
            found.setdefault(f"tokens-{path.stem.removeprefix('.')}", []).append(path)
    return found


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _remove(cache: Path, lock: str, paths: list[Path], now: float) -> None:
    if _touched(paths) > now - KEPT_DAYS * 86400:
        return
    with free_lock(cache, lock) as free:
        if not free or _touched(paths) > now - KEPT_DAYS * 86400:
            return
        size = 0
        for path in paths:
            size += sum(inner.stat().st_size for inner in [path, *path.rglob("*")] if inner.is_file())
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    log.info("removed what an earlier process left unfinished", paths=[str(path) for path in paths], bytes=size)


def _touched(paths: list[Path]) -> float:
    """When any of them was last written to; 0 when they have gone meanwhile."""
    inside = (inner for path in paths for inner in [path, *path.rglob("*")])
    return max((inner.stat().st_mtime for inner in inside if inner.exists()), default=0.0)
