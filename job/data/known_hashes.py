"""Hashes of files that were read before: a file that has not been touched since is not read again.

hashes/<sha256 of the path>.json   what the file looked like when it was hashed, and its hash

A file that was changed just before it was hashed may be changed again within the same tick of its clock, and look the
same: of such a one nothing is noted. That the time of a change cannot be set by hand, unlike that of the content, is
what a file that was changed in place is told by.
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from job.data.cache import Advance, digest, hash_file, read_json
from job.errors import DataError
from job.infra.object_store import folder_errors

WORTH_NOTING = 1 << 20  # bytes from which on a look at the note is cheaper than the hash
SETTLED = 3_000_000_000  # nanoseconds; the coarsest clock of a file system has two seconds


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file looks like from outside; another one whenever its content was changed."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file's own, now."""
        with folder_errors(f"read {path}"):
            found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def known_hash(cache: Path, path: Path, advance: Advance) -> tuple[str, Stamp]:
    """SHA-256, in hex, of the file's bytes, and what it looked like then.

    Args:
        cache: The folder where it is noted.

    Raises:
        DataError: It was changed while it was read.
    """
    stamp = Stamp.of(path)
    note = cache / "hashes" / f"{digest(str(path.absolute()))}.json"
    if stamp.size >= WORTH_NOTING:
        known = read_json(note)
        if known.get("stamp") == asdict(stamp) and isinstance(known.get("sha256"), str):
            return known["sha256"], stamp
    settled = stamp.changed < time.time_ns() - SETTLED
    found = hash_file(path, advance)
    require_unchanged(path, stamp)
    if settled and stamp.size >= WORTH_NOTING:
        _write(note, {"path": str(path), "sha256": found, "stamp": asdict(stamp)})
    return found, stamp


def require_unchanged(path: Path, stamp: Stamp) -> None:
    """Pass when the file still looks as it did; DataError when not."""
    if Stamp.of(path) != stamp:
        raise DataError(f"{path}: changed while it was read; start again when nobody writes to it")


def _write(note: Path, facts: dict[str, object]) -> None:
    """Not durably: a note that is lost is made again."""
    with folder_errors(f"write {note}"):
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f".{note.name}.{os.getpid()}-{threading.get_ident()}.partial")
        partial.write_text(json.dumps(facts, indent=1) + "\n")
        partial.replace(note)
