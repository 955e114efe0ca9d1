"""Where bytes are kept: one seam to the outside, what a key is, and what errors become.

On a folder it is in `directory_store.py`, on S3 in `s3.py`; both keep the promises of `ObjectStore`, and one test suite
holds them to it.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from job.errors import AccessError, StorageError

Content = Sequence[bytes | memoryview]  # an object's bytes, in pieces
Moved = Callable[[int], object]

NO_CONDITIONS = (
    "the store lacks conditional writes, so two jobs could overwrite each other; use another store, "
    "or --single-writer-unsafe if nobody else ever writes here"
)
UNSAFE = "the store lacks conditional writes: nothing but your word keeps two jobs from overwriting each other"


def unwatched(count: int) -> None:
    """Nobody waits for the bytes."""


class ObjectStore(Protocol):
    """A flat map from key to bytes. A key is visible only once it is whole.

    Every method raises AccessError when permission is refused (never KeyError: refused is not absent) and
    StorageError when storage does not answer or is full.
    """

    uri: str

    def put(self, key: str, content: Content) -> str:
        """Store `content` under `key`, durably, replacing what was there; returns its SHA-256, in hex."""

    def create(self, key: str, content: bytes) -> bool:
        """Store `content` only if `key` does not exist; False when it does. The only way to commit."""

    def get(self, key: str, target: Path, moved: Moved = unwatched, resumable: bool = False) -> str:
        """Write the object to the file `target`; returns the SHA-256, in hex, of the bytes that are there.

        Args:
            moved: Called with the number of bytes that have come, from any thread; may raise to stop.
            resumable: The file outlives this process: what an earlier such `get` of the same version left there may be
                gone on with.

        Raises:
            KeyError: There is no such object.
        """

    def version(self, key: str) -> str:
        """A name for the object's bytes: another one whenever others were put. KeyError when there is none."""

    def digest(self, key: str) -> str:
        """The SHA-256, in hex, of the object's bytes, which are kept nowhere. KeyError when there is none."""

    def read(self, key: str) -> bytes:
        """The object whole, for small ones. KeyError when there is none."""

    def size(self, key: str) -> int:
        """Bytes of the object. KeyError when there is none."""

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted and complete, or an error."""

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is already gone."""

    def unfinished(self, prefix: str) -> list[str]:
        """Keys that start with `prefix` and have writes that began and did not end, sorted: under way, or cut."""

    def abandon(self, key: str) -> None:
        """Free what unfinished writes of `key` hold, of the object itself nothing; no error when there are none."""


def is_key(key: str) -> bool:
    """Whether an object can have this key: names joined by single slashes, none of them hidden, `.` or `..`."""
    return "\0" not in key and not any(map(is_hidden, key.split("/")))


def is_hidden(name: str) -> bool:
    """Whether a file of this name is no object: half-written, or the file system's own."""
    return name == "" or name.startswith(".") or name == "lost+found"


def check_key(key: str) -> str:
    """`key` itself; KeyError when no object can have it, whoever wrote it down."""
    if not is_key(key):
        raise KeyError(f"{key!r} is not a key")
    return key


@contextmanager
def folder_errors(action: str) -> Iterator[None]:
    """Turn the operating system's errors into ours: AccessError when it refuses, else StorageError."""
    try:
        yield
    except OSError as error:
        refused = isinstance(error, PermissionError) or error.errno == errno.EROFS
        raise (AccessError if refused else StorageError)(f"{action}: {error}") from error
