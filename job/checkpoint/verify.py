"""Reading a checkpoint back: nothing is used before its bytes have been hashed."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from job.checkpoint.record import Record, StoredObject
from job.infra.object_store import ObjectStore

Reason = Literal["record", "missing", "size", "sha256", "format", "shape"]
REASONS: tuple[str, ...] = get_args(Reason)
_READS = 5  # of an object whose bytes come out different each time


class Rejected(Exception):
    """A checkpoint that is not what its record says; `reason` is one of REASONS."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def fetch(objects: ObjectStore, record: Record, folder: Path, names: Collection[str] | None = None) -> Path:
    """Download a checkpoint's files into `folder`, each hashed on the way.

    Args:
        objects: Where the run is kept.
        record: The checkpoint.
        folder: An existing folder for the files.
        names: Files that are wanted, a rank's number in them left out; all when unset.

    Raises:
        Rejected: A file is missing, has another size or another hash.
    """
    check_sizes(objects, record)
    for stored in record.objects:
        if names is None or stored.name in names or stored.kind in names:
            _compare(stored, partial(objects.get, stored.key, folder / stored.name))
    return folder


def check(objects: ObjectStore, record: Record) -> None:
    """Read a checkpoint's files and hash them; nothing is kept. Raises Rejected."""
    check_sizes(objects, record)
    for stored in record.objects:
        _compare(stored, partial(objects.digest, stored.key))


def check_sizes(objects: ObjectStore, record: Record) -> None:
    """Compare the size of each object with the record. Raises Rejected."""
    for stored in record.objects:
        try:
            size = objects.size(stored.key)
        except KeyError:
            raise Rejected("missing", f"{stored.key} is missing") from None
        if size != stored.size:
            raise Rejected("size", f"{stored.key} has {size} bytes, the record says {stored.size}")


def settled_sha256(stored: StoredObject, read: Callable[[], str]) -> str:
    """An object's hash, read until it is right, or twice the same wrong one: then it was not bent on the way."""
    wrong: set[str] = set()
    for _ in range(_READS):
        found = read()
        if found == stored.sha256 or found in wrong:
            break
        wrong.add(found)
    return found


def _compare(stored: StoredObject, read: Callable[[], str]) -> None:
    try:
        found = settled_sha256(stored, read)
    except KeyError:
        raise Rejected("missing", f"{stored.key} is missing") from None
    if found != stored.sha256:
        raise Rejected("sha256", f"{stored.key} has sha256 {found}, the record says {stored.sha256}")
