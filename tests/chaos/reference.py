"""What files of a checkpoint say, read by a second, slow and strict reader that shares no code with the job."""

import hashlib
import json
import math
import struct
from typing import Any

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def read_tensors(content: bytes) -> Tensors | None:
    """The tensors of a safetensors file; None when it is not one, by its specification."""
    if len(content) < 8 or (length := struct.unpack("<Q", content[:8])[0]) > len(content) - 8:
        return None
    data = content[8 + length :]
    try:
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        found = [(name, *_entry(**entry)) for name, entry in header.items()]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    end = 0
    for _, dtype, shape, start, stop in sorted(found, key=lambda entry: entry[3:]):
        if start != end or stop - start != SIZES[dtype] * math.prod(shape):
            return None
        end = stop
    if end != len(data):
        return None
    return {name: (dtype, shape, data[start:stop]) for name, dtype, shape, start, stop in found}


def _entry(dtype: str, shape: list[int], data_offsets: list[int], **_: Any) -> tuple[str, tuple[int, ...], int, int]:
    start, stop = data_offsets
    if dtype not in SIZES or not isinstance(shape, list) or not all(map(is_count, (*shape, start, stop))):
        raise ValueError
    return dtype, tuple(shape), start, stop


def digest(*files: Tensors) -> str:
    """The same hash that `small_run.digest` makes of a learner."""
    found = hashlib.sha256()
    for name, (dtype, shape, content) in sorted({k: v for file in files for k, v in file.items()}.items()):
        found.update(f"{name} torch.{TORCH[dtype]} {shape} ".encode())
        found.update(content)
    return found.hexdigest()


def fits(tensors: Tensors | None, like: Tensors) -> bool:
    """Whether these are the names, types and shapes of the others; optimizer entries may be single numbers or not."""
    if tensors is None or tensors.keys() != like.keys():
        return False
    shapes = {name.rpartition(".")[0]: {like[name][1], ()} for name in like if name.endswith(".exp_avg")}
    return all(
        tensors[name][0] == dtype and tensors[name][1] in shapes.get(name.rpartition(".")[0], {shape})
        for name, (dtype, shape, _) in like.items()
    )


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
