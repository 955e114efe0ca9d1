"""Which files a path, a folder or a glob stands for."""

import difflib
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

from job.data import formats
from job.data.numbered import require_every_shard
from job.errors import ConfigError, NotFoundError
from job.infra.object_store import folder_errors

SHOWN = 10  # unknown files named in a warning

log = structlog.get_logger(__name__)


def find_files(pattern: str) -> list[Path]:
    """Files with a known format, sorted by path: the one named, or all in a folder, below it, or under a glob.

    Hidden names are passed over (a mounted ConfigMap holds every file twice); others of unknown format are listed
    in a warning.

    Raises:
        NotFoundError: There is no such file, nothing of a known format, or a numbered shard lacks between two others.
        ConfigError: The file named is of no known format.
    """
    path = Path(pattern).expanduser()
    with folder_errors(f"read {path}"):
        if path.is_dir():
            return _known(pattern, _walk(path))
        if path.exists():
            if formats.format_of(path.name) is None:
                raise ConfigError(f"data.corpus: {pattern}: the format is told by the name: {formats.KNOWN}")
            return [path]
        if glob.has_magic(pattern):
            matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207  # is absolute too
            return _known(pattern, (match for match in matches if match.is_file()))
    raise NotFoundError(f"data.corpus: no file or folder at {path}{_nearest(path)}")


def _walk(root: Path) -> Iterator[Path]:
    """Every file below `root` that is not hidden; linked folders too, each once."""
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=_raise):
        below[:] = [name for name in below if not name.startswith(".")]
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _known(pattern: str, paths: Iterable[Path]) -> list[Path]:
    found = sorted(paths, key=lambda path: path.as_posix())
    unknown = [str(path) for path in found if formats.format_of(path.name) is None]
    if unknown:
        log.warning("files of unknown format left out", corpus=pattern, count=len(unknown), files=unknown[:SHOWN])
    known = [path for path in found if formats.format_of(path.name)]
    if not known:
        raise NotFoundError(f"data.corpus: nothing under {pattern} is {formats.KNOWN}")
    require_every_shard(pattern, (path.as_posix() for path in known))
    return known


def _nearest(path: Path) -> str:
    """What the folder has instead, for an error message; empty when it has nothing similar."""
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder})"
    nearest = difflib.get_close_matches(path.name, sorted(entry.name for entry in folder.iterdir()), n=1, cutoff=0.5)
    return f"; did you mean {folder / nearest[0]}?" if nearest else ""
