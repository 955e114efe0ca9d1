"""OpenAI's checkpoints without TensorFlow: a table that says where each tensor is, and files of plain numbers.

The entry of the empty name describes the whole, every other one a tensor: dtype, shape, file, place and checksum.
(tensorflow/core/protobuf/tensor_bundle.proto)
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError
from job.model.stored import StoredTensor
from job.model.table import read_table
from job.model.wire import Damaged, checksum, fields

MAX_INDEX = 8 << 20  # bytes
MAX_SHARDS = 16
MAX_DIMENSIONS = 16
_FLOAT32 = 1  # DT_FLOAT
_VERSION = 1  # newest that is read


def read_bundle(index: Path, files: Mapping[str, Path]) -> dict[str, StoredTensor]:
    """The tensors of the checkpoint with this index, by name, sorted.

    Args:
        index: Its `.index` file.
        files: Files beside it by name, the `.data-...` ones among them.

    Raises:
        DataError: A part is damaged, missing, or says what cannot be.
    """
    try:
        if (size := index.stat().st_size) > MAX_INDEX:
            raise Damaged(f"it has {size} bytes, at most {MAX_INDEX} are read")
        entries = read_table(index.read_bytes())
        shards = _shards(index, entries.pop(b"", None), files)
        return {name: tensor for key, entry in entries.items() for name, tensor in [_tensor(_text(key), entry, shards)]}
    except Damaged as error:
        raise DataError(f"{index}: {error}") from error
    except OSError as error:
        raise DataError(f"{index}: cannot be read: {error}") from error


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise Damaged(f"the name {key!r} is not UTF-8") from None


def _shards(index: Path, header: bytes | None, files: Mapping[str, Path]) -> list[tuple[Path, int]]:
    """The data files in order, each with its size, as the header of the bundle counts them."""
    if header is None:
        raise Damaged("it has no entry that describes the whole")
    facts = dict(fields(header))
    count, order, versions = facts.get(1, 0), facts.get(2, 0), facts.get(3, b"")
    if not isinstance(count, int) or not 1 <= count <= MAX_SHARDS:
        raise Damaged(f"it says {count!r} data files, expected 1 to {MAX_SHARDS}")
    if order != 0:
        raise Damaged(f"its numbers are big-endian ({order!r}), expected little-endian")
    needed = dict(fields(versions)).get(2, 0) if isinstance(versions, bytes) else versions
    if not isinstance(needed, int) or needed > _VERSION:
        raise Damaged(f"it needs a reader of version {needed!r}, this one is of version {_VERSION}")
    found = []
    for number in range(count):
        name = f"{index.stem}.data-{number:05d}-of-{count:05d}"
        if name not in files:
            raise Damaged(f"{name} is missing beside it")
        found.append((files[name], files[name].stat().st_size))
    return found


def _tensor(name: str, entry: bytes, shards: list[tuple[Path, int]]) -> tuple[str, StoredTensor]:
    facts: dict[int, int | bytes] = {}
    for number, value in fields(entry):
        if number in facts:
            raise Damaged(f"{name}: field {number} stands twice")
        facts[number] = value
    if facts.get(1) != _FLOAT32:
        raise Damaged(f"{name}: dtype number {facts.get(1, 0)!r}, expected {_FLOAT32} (float32)")
    if 7 in facts:
        raise Damaged(f"{name}: it is stored in slices, expected whole")
    shard, start, size = (facts.get(number, 0) for number in (3, 4, 5))
    if not isinstance(shard, int) or not 0 <= shard < len(shards):
        raise Damaged(f"{name}: data file {shard!r} of {len(shards)}")
    if not isinstance(start, int) or not isinstance(size, int) or start < 0 or size < 0:
        raise Damaged(f"{name}: {size!r} bytes from byte {start!r}")
    path, length = shards[shard]
    shape, crc = _shape(name, facts.get(2, b"")), facts.get(6)
    if size != 4 * math.prod(shape):
        raise Damaged(f"{name}: shape {list(shape)} takes {4 * math.prod(shape)} bytes, it has {size}")
    if start + size > length:
        raise Damaged(f"{name}: ends at byte {start + size} of {path.name}, which has {length}")
    if not isinstance(crc, bytes) or len(crc) != 4:
        raise Damaged(f"{name}: has no checksum")
    check = partial(_compare, f"{path}: {name}", int.from_bytes(crc, "little"))
    return name, StoredTensor(name=name, path=path, dtype="float32", shape=shape, start=start, check=check)


def _shape(name: str, message: int | bytes) -> tuple[int, ...]:
    if not isinstance(message, bytes):
        raise Damaged(f"{name}: its shape is no message")
    found: list[int] = []
    for number, value in fields(message):
        if number != 2 or not isinstance(value, bytes):
            raise Damaged(f"{name}: its shape is not known")
        size = dict(fields(value)).get(1, 0)
        if not isinstance(size, int) or not 0 <= size < 1 << 40 or len(found) == MAX_DIMENSIONS:
            raise Damaged(f"{name}: a dimension of {size!r}")
        found.append(size)
    return tuple(found)


def _compare(what: str, stored: int, data: NDArray[np.uint8]) -> None:
    if (found := checksum(data)) != stored:
        raise DataError(f"{what}: expected masked CRC-32C {stored:08x}, got {found:08x}")
