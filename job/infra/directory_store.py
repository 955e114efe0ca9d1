"""Objects as files below a folder: each whole and durable before its name can be seen.

A file is written beside its place under a hidden name, flushed, and renamed; a commit is a hard link, which the file
system grants to one writer only.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from job.errors import ConfigError
from job.infra.hashing import hashed
from job.infra.object_store import (
    NO_CONDITIONS,
    UNSAFE,
    Content,
    Moved,
    check_key,
    folder_errors,
    is_hidden,
    is_key,
    unwatched,
)

_CHUNK = 1 << 20  # bytes read at once
_STRIDE = 8 << 20  # bytes written at once
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial")  # the hidden name of a file that is being written
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

log = structlog.get_logger(__name__)


class DirectoryObjectStore:
    """Objects as files below `root`, which the first write makes. No key may be the folder of another.

    Args:
        root: The folder.
        uri: What to call it; its path when unset.
        moved: Called whenever some bytes were written or read.
        single_writer_unsafe: A person's word that nobody else writes: without hard links, look and then write.
    """

    def __init__(
        self,
        root: Path,
        uri: str | None = None,
        moved: Callable[[], None] = lambda: None,
        single_writer_unsafe: bool = False,
    ) -> None:
        self._root = root.absolute()
        self._moved = moved
        self._single_writer_unsafe = single_writer_unsafe
        self._warned = False
        self.uri = uri or str(root)

    def put(self, key: str, content: Content) -> str:
        """Store `content` under `key`, durably, replacing what was there; returns its SHA-256, in hex."""
        path = self._path(key)
        with folder_errors(f"put {path}"), hashed(content) as sha256, _written(path, content, self._moved) as partial:
            digest = sha256()
            partial.replace(path)
        return digest

    def create(self, key: str, content: bytes) -> bool:
        """Store `content` only if `key` does not exist; False when it does.

        Raises:
            ConfigError: The file system has no hard links, and so no way to publish a whole file conditionally.
        """
        path = self._path(key)
        with folder_errors(f"create {path}"), _written(path, [content], self._moved) as partial:
            try:
                return _link(partial, path)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                self._do_without_links(path, error)
            if path.exists():
                return False
            partial.replace(path)
            return True

    def _do_without_links(self, path: Path, error: OSError) -> None:
        if not self._single_writer_unsafe:
            raise ConfigError(f"create {path}: {NO_CONDITIONS} (hard links: {error.strerror})") from error
        if not self._warned:
            log.warning(UNSAFE, run_uri=self.uri)
            self._warned = True

    def get(self, key: str, target: Path, moved: Moved = unwatched, resumable: bool = False) -> str:
        """Copy the object, always all of it, to the file `target`; returns the SHA-256, in hex, of what was copied."""
        path = self._path(key)
        with folder_errors(f"get {path} into {target}"), _open(path, key) as source, target.open("wb") as copy:
            return self._read_through(source, lambda chunk: moved(copy.write(chunk)))

    def version(self, key: str) -> str:
        """Inode, size and times of the object's file, which is never written to."""
        path = self._path(key)
        with folder_errors(f"version of {path}"), _open(path, key) as file:
            found = os.fstat(file.fileno())
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"

    def digest(self, key: str) -> str:
        """The SHA-256, in hex, of the object's bytes."""
        path = self._path(key)
        with folder_errors(f"digest of {path}"), _open(path, key) as source:
            return self._read_through(source, lambda chunk: None)

    def _read_through(self, source: BinaryIO, keep: Callable[[bytes], object]) -> str:
        digest = hashlib.sha256()
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            keep(chunk)
            self._moved()
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
            found = [key for key, name in _files(self._root / folder, folder + slash) if not is_hidden(name)]
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove the object, and the folders that it leaves empty."""
        path = self._path(key)
        with folder_errors(f"delete {path}"):
            path.unlink(missing_ok=True)
        self._remove_empty_folders(key)

    def unfinished(self, prefix: str) -> list[str]:
        """Keys that start with `prefix` beside which there is a half-written file, sorted."""
        folder, slash, _ = prefix.rpartition("/")
        if slash and not is_key(folder):
            return []
        with folder_errors(f"list unfinished writes of {self._root / folder}"):
            found = {
                path.removesuffix(name) + match[1]
                for path, name in _files(self._root / folder, folder + slash)
                if (match := _PARTIAL.fullmatch(name))
            }
        return sorted(key for key in found if key.startswith(prefix))

    def abandon(self, key: str) -> None:
        """Remove the half-written files beside `key`; a writer that is still at it will fail."""
        path = self._path(key)
        with folder_errors(f"abandon {path}"), suppress(FileNotFoundError):
            for beside in path.parent.iterdir():
                if (match := _PARTIAL.fullmatch(beside.name)) and match[1] == path.name:
                    beside.unlink(missing_ok=True)
        self._remove_empty_folders(key)

    def _remove_empty_folders(self, key: str) -> None:
        with suppress(OSError):  # the first folder that is not empty
            for folder in self._path(key).parents[: key.count("/")]:
                folder.rmdir()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)


def _open(path: Path, key: str) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise KeyError(key) from None


def _files(folder: str | Path, prefix: str) -> Iterator[tuple[str, str]]:
    """`prefix` and the path below `folder`, and the name, of every file, whatever its name; what vanishes was deleted.

    Folders that are hidden are not looked into: there are no objects.
    """
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if not entry.is_dir():
            yield prefix + entry.name, entry.name
        elif not is_hidden(entry.name):
            yield from _files(entry.path, f"{prefix}{entry.name}/")


@contextmanager
def _written(path: Path, content: Content, moved: Callable[[], None]) -> Iterator[Path]:
    """A whole, durable, hidden file beside `path`, gone at the end; what became of it by then is durable too."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with _new_file(partial) as file:
            for piece in content:
                view = memoryview(piece).cast("B")
                for at in range(0, len(view), _STRIDE):
                    file.write(view[at : at + _STRIDE])
                    moved()
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
    return True
