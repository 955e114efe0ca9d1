"""The table of contents of a safetensors file, read and checked before a byte of a tensor is.

Nothing is allocated by what the file says: its header is bounded, and every tensor must lie where the one before it
ends, have the bytes that its shape takes, and together they must be the whole file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER = 8 << 20  # bytes
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 16
BITS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8)
BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
BITS |= dict.fromkeys(("U32", "I32", "F32"), 32) | dict.fromkeys(("U64", "I64", "F64"), 64)


class DamagedTensors(ValueError):
    """The file is not a whole safetensors file."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file, and where its bytes are."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read_contents(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name. Raises DamagedTensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise DamagedTensors(f"its header has {length} bytes, the file {size}")
        if length > MAX_HEADER:
            raise DamagedTensors(f"its header has {length} bytes, at most {MAX_HEADER} are read")
        header = _parse(file.read(length))
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise DamagedTensors(f"it has {len(header)} tensors, at most {MAX_TENSORS} are read")
    found = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_places(found, 8 + length, size)
    return found


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DamagedTensors(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise DamagedTensors("its header is not a JSON object")
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _tensor(path: Path, name: str, entry: Any, origin: int) -> TensorEntry:
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DamagedTensors(f"{name}: not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise DamagedTensors(f"{name}: dtype {dtype!r} is none of {', '.join(BITS)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise DamagedTensors(f"{name}: shape {shape!r} is not a list of at most {MAX_DIMENSIONS} sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise DamagedTensors(f"{name}: data_offsets {offsets!r} are not a start and an end")
    stored = TensorEntry(path, dtype, tuple(shape), origin + offsets[0], origin + offsets[1])
    wanted = stored.elements * BITS[dtype] // 8
    if wanted != stored.stop - stored.start:
        raise DamagedTensors(f"{name}: {stored} takes {wanted} bytes, it has {stored.stop - stored.start}")
    return stored


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_places(tensors: Mapping[str, TensorEntry], origin: int, size: int) -> None:
    end = origin
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if stored.start != end:
            raise DamagedTensors(f"{name}: begins at byte {stored.start}, the one before it ends at {end}")
        end = stored.stop
    if end != size:
        raise DamagedTensors(f"its tensors end at byte {end}, the file at {size}")
