"""How two stored tensors differ, bit for bit, read in pieces; knows no torch.

bfloat16 is the upper half of a float32, so its bits become numbers by being put back there.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.tensor_file import BITS, TensorEntry

_ELEMENTS = 1 << 20  # compared at once
_UNSIGNED = {8: "u1", 16: "<u2", 32: "<u4", 64: "<u8"}
_NUMBERS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_NUMBERS |= {"BOOL": "u1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}


@dataclass(frozen=True, slots=True)
class Difference:
    """How many elements have other bits, and the largest |difference| between numbers that both are finite."""

    unequal: int
    largest: float | None


def compare(first: TensorEntry, second: TensorEntry) -> Difference:
    """The difference of two tensors of one dtype and shape."""
    unequal, largest = 0, -math.inf
    for bits, others in zip(_pieces(first), _pieces(second), strict=True):
        differing = bits != others
        if not (count := int(np.count_nonzero(differing))):
            continue
        unequal += count
        if first.dtype == "BF16" or first.dtype in _NUMBERS:
            with np.errstate(invalid="ignore", over="ignore"):
                gap = np.abs(_numbers(bits[differing], first.dtype) - _numbers(others[differing], first.dtype))
            largest = max(largest, gap[np.isfinite(gap)].max(initial=-math.inf))
    return Difference(unequal, float(largest) if math.isfinite(largest) else None)


def _pieces(tensor: TensorEntry) -> Iterator[NDArray[Any]]:
    """A tensor's elements as unsigned numbers, a piece at a time."""
    kind = _UNSIGNED[BITS[tensor.dtype]]
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.elements
        while left:
            piece: NDArray[Any] = np.fromfile(file, kind, min(left, _ELEMENTS))
            if not len(piece):
                raise EOFError(f"{tensor.path} ends {left} elements early")
            left -= len(piece)
            yield piece


def _numbers(bits: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Bits as the numbers they mean."""
    if dtype == "BF16":
        bits, dtype = bits.astype(np.uint32) << 16, "F32"
    numbers: NDArray[np.float64] = bits.view(_NUMBERS[dtype]).astype(np.float64)
    return numbers
