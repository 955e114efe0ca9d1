"""Token files on disk: shards with the header of llm.c, and a split's shards as one stream of tokens.

Header: 256 little-endian int32, of which magic, version and token count are used. The magic tells the width of the
tokens that follow.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError
from job.infra.object_store import folder_errors

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
UINT16: np.dtype[Any] = np.dtype("<u2")
UINT32: np.dtype[Any] = np.dtype("<u4")
KINDS = {(20240520, 1): UINT16, (20240801, 7): UINT32}  # by magic and version
SHARD_TOKENS = 100_000_000

AnyTokens = NDArray[Any]  # of an unsigned integer type


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type of token that holds a vocabulary."""
    return UINT16 if vocab_size <= 1 << 16 else UINT32


class ShardWriter:
    """Writes one split's tokens to `{split}_{n:06d}.bin`; a shard has its header only once it is whole.

    Args:
        written: Tokens that an earlier writer left in the folder and that stay; what it wrote after them does not.
    """

    def __init__(
        self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int = SHARD_TOKENS, written: int = 0
    ) -> None:
        self._folder, self._split, self._dtype, self._shard_tokens = folder, split, dtype, shard_tokens
        self._file: BinaryIO | None = None
        self._held = written % shard_tokens  # tokens in the shard under way
        self.paths = [shard_path(folder, split, number) for number in range(-(-written // shard_tokens))]
        self.tokens = written  # in all shards
        if self._held:
            self._file = self._reopen(self.paths[-1])

    def write(self, tokens: AnyTokens) -> None:
        """Append (t,) tokens."""
        while len(tokens):
            with folder_errors(f"write {self._folder}"):
                file = self._file or self._open()
                some = tokens[: self._shard_tokens - self._held]
                file.write(some.astype(self._dtype, copy=False).data)
            self._held += len(some)
            self.tokens += len(some)
            tokens = tokens[len(some) :]
            if self._held == self._shard_tokens:
                self.close()

    def flush(self) -> None:
        """Let what was written survive a power cut."""
        if self._file is not None:
            with folder_errors(f"write {self.paths[-1]}"):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Finish the shard under way, durably."""
        if self._file is None:
            return
        with folder_errors(f"write {self.paths[-1]}"):
            self._file.seek(0)
            self._file.write(_header(self._held, self._dtype))
            self.flush()
            self._file.close()
        self._file, self._held = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._file:
            with suppress(OSError):  # the disk is full, most likely: that has been said
                self._file.close()

    def _open(self) -> BinaryIO:
        path = shard_path(self._folder, self._split, len(self.paths))
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))
        self.paths.append(path)
        return self._file

    def _reopen(self, path: Path) -> BinaryIO:
        with folder_errors(f"write {path}"):
            file = path.open("r+b")
            file.truncate(shard_bytes(self._held, self._dtype))
            file.seek(0)
            file.write(bytes(HEADER_BYTES))
            file.seek(0, os.SEEK_END)
        return file


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard of a split lies."""
    return folder / f"{split}_{number:06d}.bin"


def shard_bytes(tokens: int, dtype: np.dtype[Any]) -> int:
    """Size of a shard's file."""
    return HEADER_BYTES + tokens * dtype.itemsize


def _header(tokens: int, dtype: np.dtype[Any]) -> bytes:
    magic, version = next(kind for kind, known in KINDS.items() if known == dtype)
    return np.array([magic, version, tokens, *[0] * (HEADER_INTS - 3)], "<i4").tobytes()


def require_written(folder: Path, split: str, tokens: int, dtype: np.dtype[Any], shard_tokens: int) -> None:
    """Pass when the folder holds that many tokens of a split: whole shards, and the rest in one under way.

    Raises:
        DataError, StorageError: It does not.
    """
    whole, held = divmod(tokens, shard_tokens)
    for number in range(whole):
        if len(open_shard(shard_path(folder, split, number))) != shard_tokens:
            raise DataError(f"{shard_path(folder, split, number)}: not {shard_tokens} tokens")
    path = shard_path(folder, split, whole)
    with folder_errors(f"read {path}"):
        if held and path.stat().st_size < shard_bytes(held, dtype):
            raise DataError(f"{path}: {path.stat().st_size} bytes, expected {shard_bytes(held, dtype)} or more")


def open_shard(path: Path, named: str | None = None) -> AnyTokens:
    """(t,) tokens of a shard, mapped from disk. DataError when header, count and size do not agree.

    Args:
        named: What to call it then: where it came from, if it lies in the cache.
    """
    with folder_errors(f"read {path}"), path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        size = path.stat().st_size
    if len(header) < HEADER_BYTES:
        raise DataError(f"{named or path}: {size} bytes, shorter than a token file's header of {HEADER_BYTES}")
    magic, version, count = np.frombuffer(header, "<i4")[:3].tolist()
    dtype = KINDS.get((magic, version))
    if dtype is None:
        raise DataError(f"{named or path}: magic {magic} version {version} is no token file; known are {sorted(KINDS)}")
    if count < 0 or size != shard_bytes(count, dtype):
        raise DataError(f"{named or path}: {size} bytes, but {count} tokens of {dtype.itemsize} bytes were announced")
    if count == 0:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(count,)))


class TokenSplit:
    """All shards of a split as one stream of tokens; read from disk where it is touched, cheap to send to a process."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._shards = [open_shard(path) for path in self.paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self._tokens = int(self._ends[-1]) if len(self._ends) else 0
        self._views: dict[tuple[int, int], AnyTokens] = {}  # by shard and length

    def __len__(self) -> int:
        return self._tokens

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Path, ...]]]:
        return type(self), (self.paths,)

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """(length,) int64: the tokens from `start` on."""
        (found,) = self.windows(np.array([start], np.int64), length)
        return np.asarray(found)

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Starts (n,) -> the tokens from each on (n, length) int64. IndexError when one leaves the split."""
        if len(starts) and (starts.min() < 0 or starts.max() > self._tokens - length):
            raise IndexError(f"windows of {length} tokens from {starts.min()}..{starts.max()} in {self._tokens}")
        if len(self._shards) == 1:
            return self._view(0, length)[starts].astype(np.int64)
        found = np.empty((len(starts), length), np.int64)
        shards = np.searchsorted(self._ends, starts, "right")
        whole = starts + length <= self._ends[shards]
        for shard in np.unique(shards[whole]).tolist():
            rows = whole & (shards == shard)
            found[rows] = self._view(shard, length)[starts[rows] - self._begin(shard)]
        for row in np.flatnonzero(~whole).tolist():
            found[row] = self._across(int(shards[row]), int(starts[row]), length)
        return found

    def _begin(self, shard: int) -> int:
        return int(self._ends[shard]) - len(self._shards[shard])

    def _view(self, shard: int, length: int) -> AnyTokens:
        """(windows, length): every window of a shard, without a copy; picking rows from it is fast."""
        key = shard, length
        if key not in self._views:
            self._views[key] = np.lib.stride_tricks.sliding_window_view(self._shards[shard], length)
        return self._views[key]

    def _across(self, shard: int, start: int, length: int) -> AnyTokens:
        """(length,): a window that begins in `shard` and ends in a later one."""
        parts = [self._shards[shard][start - self._begin(shard) :]]
        while (missing := length - sum(map(len, parts))) > 0:
            shard += 1
            parts.append(self._shards[shard][:missing])
        return np.concatenate(parts)
