"""OpenAI's checkpoints, read without TensorFlow: one that it wrote, and others that say what cannot be."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import tests.tensorflow
from job.errors import DataError
from job.model.table import MAX_ENTRIES, read_table
from job.model.tensor_bundle import read_bundle
from job.model.wire import Damaged, checksum
from tests.tensorflow import bundle
from tests.tensorflow.bundle import write_bundle
from tests.tensorflow.numbers import HPARAMS, variables
from tests.unit.weights_support import listed, loaded, model, openai_sizes, openai_variables, parameters, same

KEPT = Path(tests.tensorflow.__file__).parent / "checkpoint"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"


def read(folder):
    return {name: tensor.read() for name, tensor in read_bundle(folder / INDEX, listed(folder)).items()}


def test_checksum():
    """CRC-32C of RFC 3720's 32 zeros is 8a9136aa; what is stored is that, turned and shifted."""
    crc = 0x8A9136AA

    assert checksum(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)


def test_what_tensorflow_wrote():
    """Every variable of a checkpoint in three files that TensorFlow wrote comes back bit for bit."""
    found, expected = read(KEPT), variables()

    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name].numpy(), expected[name]) for name in expected)


def test_the_model_that_tensorflow_wrote():
    """Matrices are turned, their first dimension goes, and each finds its place under our names."""
    found, there = parameters(loaded(KEPT)), variables()

    assert len(found) == len(there)
    assert np.array_equal(found["h.2.mlp.c_proj.weight"].numpy(), there["model/h2/mlp/c_proj/w"][0].T)
    assert np.array_equal(found["h.0.ln_1.weight"].numpy(), there["model/h0/ln_1/g"])
    assert np.array_equal(found["wpe.weight"].numpy(), there["model/wpe"])


@pytest.mark.parametrize("shards", [1, 2, 16])
def test_any_number_of_files(tmp_path, shards):
    """Tensors are found in whichever data file they are."""
    folder = write_bundle(tmp_path, variables(), HPARAMS, shards)

    assert same(loaded(folder), loaded(KEPT))


def test_a_flipped_bit_in_a_tensor_is_named(tmp_path):
    """One bit of one weight is noticed by the tensor's checksum, and the error names file and tensor."""
    folder = write_bundle(tmp_path, variables(), HPARAMS)
    data = bytearray((folder / DATA).read_bytes())
    data[-1] ^= 1
    (folder / DATA).write_bytes(data)
    with pytest.raises(DataError) as refused:
        loaded(folder)

    assert str(refused.value).startswith(f"{folder / DATA}: model/wte: expected masked CRC-32C")


def test_every_bit_of_the_index_is_covered():
    """There is no bit of the index whose flip goes unnoticed."""
    whole = (KEPT / INDEX).read_bytes()
    unnoticed = []
    for bit in range(8 * len(whole)):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        with suppress(Damaged):
            read_table(bytes(spoilt))
            unnoticed.append(bit)

    assert unnoticed == []


ONES = np.ones(2, np.float32)
CRC = bundle.masked(ONES.tobytes())
WRONG = {
    "another dtype": (bundle.entry((2,), 0, 8, CRC, dtype=2), "dtype number 2, expected 1"),
    "no such file": (bundle.entry((2,), 0, 8, CRC, shard=1), "data file 1 of 1"),
    "beyond the file": (bundle.entry((2,), 4, 8, CRC), "ends at byte 12"),
    "before the file": (bundle.entry((2,), -4, 8, CRC), "bytes from byte -4"),
    "negative size": (bundle.entry((2,), 0, -8, CRC), "-8 bytes"),
    "another size": (bundle.entry((3,), 0, 8, CRC), "shape [3] takes 12 bytes, it has 8"),
    "negative dimension": (bundle.entry((-2,), 0, 8, CRC), "a dimension of -2"),
    "many dimensions": (bundle.entry((1,) * 17, 0, 4, CRC), "a dimension of 1"),
    "huge": (bundle.entry((1 << 39, 1 << 39), 0, 8, CRC), "takes"),
    "in slices": (bundle.entry((2,), 0, 8, CRC, more=bundle.message(7, b"")), "stored in slices"),
    "another checksum": (bundle.entry((2,), 0, 8, CRC ^ 1), "expected masked CRC-32C"),
    "twice": (bundle.entry((2,), 0, 8, CRC, more=bundle.number(5, 8)), "field 5 stands twice"),
    "long number": (bundle.entry((2,), 0, 8, CRC, more=b"\x48" + b"\xff" * 10), "more than 64 bits"),
    "cut": (bundle.entry((2,), 0, 8, CRC)[:-1], "field 6 has 4 bytes"),
}


def written(folder, entries, **options):
    (folder / INDEX).write_bytes(bundle.table(entries, **options))
    (folder / DATA).write_bytes(ONES.tobytes())
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be(tmp_path, case):
    """An entry with good checksums that says what cannot be is refused, and the error says what."""
    entry, said = WRONG[case]
    with pytest.raises(DataError, match="model") as refused:
        read(written(tmp_path, [(b"", bundle.header()), (b"model/x", entry)]))

    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (bundle.header(shards=0), "says 0 data files"),
        (bundle.header(shards=17), "says 17 data files"),
        (bundle.header(shards=2), "model.ckpt.data-00000-of-00002 is missing"),
        (bundle.header(order=1), "big-endian"),
        (bundle.header(oldest_reader=2), "needs a reader of version 2"),
    ],
)
def test_what_cannot_be_of_the_whole(tmp_path, header, said):
    """A header that promises other files, byte order or version is refused."""
    with pytest.raises(DataError, match=said):
        read(written(tmp_path, [(b"", header)]))


def test_compressed_blocks_are_named(tmp_path):
    """A table compressed with snappy is refused as that."""
    with pytest.raises(DataError, match="compressed with snappy"):
        read(written(tmp_path, [(b"", bundle.header())], compression=1))


def test_names_out_of_order(tmp_path):
    """A table whose names do not sort, or repeat, is refused."""
    one = (b"model/x", bundle.entry((2,), 0, 8, CRC))
    with pytest.raises(DataError, match="does not sort after"):
        read(written(tmp_path, [(b"", bundle.header()), one, one], per_block=1))


def test_too_many_entries(tmp_path):
    """More tensors than any model has are not read."""
    entries = [(b"", bundle.header()), *((f"x{n:06d}".encode(), b"") for n in range(MAX_ENTRIES))]
    with pytest.raises(DataError, match="more than"):
        read(written(tmp_path, entries, per_block=2000))


def test_no_table(tmp_path):
    """Any other file is refused by its last bytes."""
    (tmp_path / INDEX).write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="its last 8 bytes are"):
        read(tmp_path)


def test_several_checkpoints_in_a_folder(tmp_path):
    """Of several, the one that the file `checkpoint` names is read."""
    folder = write_bundle(tmp_path, variables(), HPARAMS)
    (folder / "old.index").write_bytes(b"nothing")
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')

    assert same(loaded(folder), loaded(KEPT))


def test_logits_do_not_depend_on_the_layout(tmp_path):
    """A model of ours, written as OpenAI would, computes the same."""
    ours = model(vocab_size=19, n_layer=3, context_length=8)
    folder = write_bundle(tmp_path, openai_variables(ours), openai_sizes(ours))
    tokens = torch.arange(8)[None]

    assert torch.equal(loaded(folder)(tokens), ours(tokens))
