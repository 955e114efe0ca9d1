"""Tensor files read without torch: what they hold, what makes one damaged, and how two tensors differ."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from job.checkpoint.tensor_diff import compare
from job.tensor_file import DamagedTensors, read_contents
from job.training.tensors import to_safetensors

TWO = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "I8", "shape": [], "data_offsets": [8, 9]},
}


def write(path, header, body=bytes(9)):
    """A file with this header, a dict or the bytes themselves, and these bytes of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def changed(**fields):
    """TWO with other fields for its first tensor."""
    return {**TWO, "a": {**TWO["a"], **fields}}


def test_contents_are_what_the_library_wrote(tmp_path):
    """Names, dtypes, shapes and places agree with a file by safetensors itself."""
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array(7, np.int64), "z": np.zeros((0, 4))}
    save_file(arrays, tmp_path / "file", {"made": "by a library"})
    found = read_contents(tmp_path / "file")
    raw = (tmp_path / "file").read_bytes()

    assert {name: str(tensor) for name, tensor in found.items()} == {
        "x": "F32 [2, 3]",
        "y": "I64 []",
        "z": "F64 [0, 4]",
    }
    assert all(raw[tensor.start : tensor.stop] == arrays[name].tobytes() for name, tensor in found.items())


DAMAGED = {
    "an empty file": (b"", b""),
    "no JSON": (b"{", bytes(9)),
    "a list": ([], bytes(9)),
    "a name twice": (b'{"a":{"dtype":"I8","shape":[],"data_offsets":[0,1]},"a":0}', bytes(1)),
    "an unknown dtype": (changed(dtype="F7"), bytes(9)),
    "a negative size": (changed(shape=[-2]), bytes(9)),
    "a size that is no number": (changed(shape=[True, 2]), bytes(9)),
    "more dimensions than anything has": (changed(shape=[2] + [1] * 99), bytes(9)),
    "a shape that takes more bytes": (changed(shape=[1 << 62]), bytes(9)),
    "an end before the start": (changed(data_offsets=[8, 0]), bytes(9)),
    "an overlap": (changed(dtype="F64", shape=[1], data_offsets=[1, 9]), bytes(9)),
    "bytes that belong to nobody": (TWO, bytes(10)),
    "a tensor beyond the end": (TWO, bytes(8)),
    "a field too few": ({"a": {"dtype": "I8", "shape": []}}, b""),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named(tmp_path, damage):
    """A header that does not describe the whole file is refused."""
    with pytest.raises(DamagedTensors):
        read_contents(write(tmp_path / "file", *DAMAGED[damage]))


def test_a_header_longer_than_the_file_is_not_read(tmp_path):
    """The length that a file claims for its header is compared before anything is read."""
    (tmp_path / "file").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(DamagedTensors, match="the file 10"):
        read_contents(tmp_path / "file")


def test_a_header_with_any_bit_flipped_is_refused_or_harmless(tmp_path):
    """2,000 mutated headers: an error of ours, or tensors that lie within the file."""
    whole = write(tmp_path / "file", TWO).read_bytes()
    pick = random.Random(1)
    for _ in range(2000):
        mutated = bytearray(whole)
        for _ in range(pick.randint(1, 4)):
            mutated[pick.randrange(len(whole) - 9)] ^= 1 << pick.randrange(8)
        (tmp_path / "file").write_bytes(mutated)
        try:
            found = read_contents(tmp_path / "file")
        except DamagedTensors:
            continue
        assert all(0 < tensor.start <= tensor.stop <= len(whole) for tensor in found.values())


def difference(folder, first, second):
    """How two torch tensors differ once they are stored."""
    stored = []
    for number, tensor in enumerate((first, second)):
        path = folder / str(number)
        path.write_bytes(b"".join(to_safetensors({"t": tensor})))
        stored.append(read_contents(path)["t"])
    return compare(*stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_unequal_elements_are_counted(tmp_path, dtype):
    """Two of twelve elements differ, by at most 3, whatever the dtype."""
    first = torch.arange(12).to(dtype).reshape(3, 4)
    second = first.clone()
    second[0, 1] += 1
    second[2, 3] -= 3
    found = difference(tmp_path, first, second)

    assert (found.unequal, found.largest) == (2, 3.0)


def test_equal_bits_are_equal_even_when_they_are_no_number(tmp_path):
    """The same NaN on both sides is no difference."""
    tensor = torch.tensor([float("nan"), 1.0])

    assert difference(tmp_path, tensor, tensor.clone()).unequal == 0


def test_bits_decide_and_not_values(tmp_path):
    """Zero and minus zero are unequal, by nothing."""
    found = difference(tmp_path, torch.tensor([0.0]), torch.tensor([-0.0]))

    assert (found.unequal, found.largest) == (1, 0.0)


def test_a_difference_without_a_number_has_no_size(tmp_path):
    """A number against NaN is unequal; there is no largest difference to tell."""
    found = difference(tmp_path, torch.tensor([1.0]), torch.tensor([float("nan")]))

    assert (found.unequal, found.largest) == (1, None)


def test_every_piece_of_a_large_tensor_is_compared(tmp_path):
    """A difference in the last of three million elements is found."""
    first = torch.zeros(3_000_000)
    second = first.clone()
    second[-1] = 0.5
    found = difference(tmp_path, first, second)

    assert (found.unequal, found.largest) == (1, 0.5)
