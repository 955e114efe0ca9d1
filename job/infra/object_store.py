"""Where bytes are kept: one seam to the outside, and its implementation on a folder.

The implementation on S3 is in `s3.py`; both keep the promises of `ObjectStore`, and one test suite holds them to it.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from job.errors import AccessError, ConfigError, StorageError

Content = Sequence[bytes | memoryview]  # an object's bytes, in pieces

_CHUNK = 1 << 20  # bytes read at once
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class ObjectStore(Protocol):
    """A flat map from key to bytes. A key is visible only once it is whole.

    Every method raises AccessError when permission is refused (never KeyError: refused is not absent) and
    StorageError when storage does not answer or is full.
    """

    uri: str

    def put(self, key: str, content: Content) -> None:
        """Store `content` under `key`, durably, replacing what was there."""

    def create(self, key: str, content: bytes) -> bool:
        """Store `content` only if `key` does not exist; False when it does. The only way to commit."""

    def get(self, key: str, target: Path) -> str:
        """Write the object to the file `target`; returns the SHA-256, in hex, of the bytes that arrived.

        Raises:
            KeyError: There is no such object.
        """

    def read(self, key: str) -> bytes:
        """The object whole, for small ones. KeyError when there is none."""

    def size(self, key: str) -> int:
        """Bytes of the object. KeyError when there is none."""

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted and complete, or an error."""

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is already gone."""


def is_key(key: str) -> bool:
    """Whether an object can have this key: names joined by single slashes, none of them hidden, `.` or `..`."""
    return "\0" not in key and not any(map(_is_hidden, key.split("/")))


def _is_hidden(name: str) -> bool:
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


class DirectoryObjectStore:
    """Objects as files below `root`, which the first write makes. No key may be the folder of another."""

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self._root = root.absolute()
        self.uri = uri or str(root)

    def put(self, key: str, content: Content) -> None:
        """Store `content` under `key`, durably, replacing what was there."""
        path = self._path(key)
        with folder_errors(f"put {path}"), _written(path, content) as partial:
            partial.replace(path)

    def create(self, key: str, content: bytes) -> bool:
        """Store `content` only if `key` does not exist; False when it does.

        Raises:
            ConfigError: The file system has no hard links, and so no way to publish a whole file conditionally.
        """
        path = self._path(key)
        with folder_errors(f"create {path}"), _written(path, [content]) as partial:
            return _link(partial, path)

    def get(self, key: str, target: Path) -> str:
        """Copy the object to the file `target`; returns the SHA-256, in hex, of what was copied."""
        path, digest = self._path(key), hashlib.sha256()
        with folder_errors(f"get {path} into {target}"), _open(path, key) as source, target.open("wb") as copy:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
        return digest.hexdigest()

    def read(self, key: str) -> bytes:
        """The object whole."""
        path = self._path(key)
        with folder_errors(f"read {path}"), _open(path, key) as file:
            return file.read()

    def size(self, key: str) -> int:
        """Bytes of the object."""
        path = self._path(key)
        with folder_errors(f"size of {path}"), _open(path, key) as file:
            return os.fstat(file.fileno()).st_size

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted."""
        folder, slash, _ = prefix.rpartition("/")
        if slash and not is_key(folder):
            return []
        with folder_errors(f"list {self._root / folder}"):
            return sorted(key for key in _keys(self._root / folder, folder + slash) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove the object, and the folders that it leaves empty."""
        path = self._path(key)
        with folder_errors(f"delete {path}"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # the first folder that is not empty
            for folder in path.parents[: key.count("/")]:
                folder.rmdir()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)


def _open(path: Path, key: str) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise KeyError(key) from None


def _keys(folder: str | Path, prefix: str) -> Iterator[str]:
    """`prefix` and the path of every object below `folder`; what vanishes meanwhile was deleted."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not _is_hidden(entry.name)]
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir():
            yield from _keys(entry.path, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


@contextmanager
def _written(path: Path, content: Content) -> Iterator[Path]:
    """A whole, durable, hidden file beside `path`, gone at the end; what became of it by then is durable too."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with _new_file(partial) as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()
    flush(path.parent)


def _new_file(path: Path, tries: int = 8) -> BinaryIO:
    """A new file in a folder that is made if need be: again when a deletion has just removed it for being empty."""
    try:
        _make_folder(path.parent)
        return path.open("xb")
    except FileNotFoundError:
        if tries == 1:
            raise
        return _new_file(path, tries - 1)


def _make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> bool:
    """Give the file `source` the name `target` too, unless that is taken; the whole file appears at once."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise ConfigError(
                f"create {target}: the file system lacks conditional writes (hard links: {error.strerror}), so two "
                "jobs could overwrite each other; use another folder or a bucket"
            ) from error
        raise
    return True
