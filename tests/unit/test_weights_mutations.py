"""Spoilt weights files: refused as data, or loaded for what they say; never a crash, a hang or other numbers.

Where the format has checksums, whatever loads is what was written; where it has none, it is what the file says.
"""

import json
import resource
import time
from pathlib import Path
from random import Random

import pytest
import torch

import tests.tensorflow
from job.errors import DataError, NotFoundError
from job.model.weights import find_weights, load_weights
from tests.chaos.mutations import spoil_bytes, spoil_json, spoil_safetensors
from tests.tensorflow.bundle import block, masked
from tests.unit.weights_support import hugging_tensors, listed, loaded, model, parameters, same, write_huggingface

KEPT = Path(tests.tensorflow.__file__).parent / "checkpoint"
SECONDS = 2.0  # of CPU, for a case
MEMORY = 512 << 10  # KiB of growth
COUNTS = [1000, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]


def play(folder, whole, count, spoil, fits):
    """Spoil one file of the folder at a time; how many were refused, and whether all that loaded `fits`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused, wrong = 0, []
    for number in range(count):
        pick = Random(number)
        name = pick.choice(sorted(contents))
        spoilt = spoil(name, contents[name], sorted(contents.values()), pick)
        (folder / name).write_bytes(spoilt)
        began = time.process_time()
        try:
            files = listed(folder)
            found = load_weights(find_weights(files, str(folder)))
            if not fits(found, whole, spoilt == contents[name], name):
                wrong.append(number)
        except (DataError, NotFoundError):
            refused += 1
        if time.process_time() - began > SECONDS:
            wrong.append(number)
        (folder / name).write_bytes(contents[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    return refused, wrong


@pytest.mark.parametrize("count", COUNTS)
def test_spoilt_bundles(tmp_path, count):
    """A spoilt TensorFlow checkpoint is refused, unless what was spoilt says nothing: then it loads bit for bit."""
    for path in KEPT.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def spoil(name, content, others, pick):
        if name == "hparams.json" and pick.random() < 0.5:
            return spoil_json(content, pick)
        if name.endswith(".index") and pick.random() < 0.5:
            return resealed(spoil_bytes(content, others, pick), content)
        return spoil_bytes(content, others, pick)

    def fits(found, whole, unchanged, name):
        return same(found, whole)

    refused, wrong = play(tmp_path, loaded(KEPT), count, spoil, fits)

    assert wrong == []
    assert refused > 0.6 * count


def resealed(spoilt, content):
    """A spoilt index whose first block has the checksum of what is now in it: what it says is what is judged."""
    size = content.index(block([])) - 5  # of the only block of data, before its trailer
    sealed = bytearray(spoilt)
    sealed[size + 1 : size + 5] = masked(spoilt[: size + 1]).to_bytes(4, "little")
    return bytes(sealed)


def test_a_resealed_index_is_read_further(tmp_path):
    """The mutations reach behind the checksums: a resealed block with another dtype is refused for the dtype."""
    content = (KEPT / "model.ckpt.index").read_bytes()
    at = content.index(b"model/h0/attn/c_attn/b") + len("model/h0/attn/c_attn/b") + 1
    for path in KEPT.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.ckpt.index").write_bytes(resealed(content[:at] + b"\2" + content[at + 1 :], content))
    with pytest.raises(DataError, match="dtype number 2, expected 1"):
        loaded(tmp_path)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("sharded", [False, True])
def test_spoilt_safetensors(tmp_path, count, sharded):
    """Spoilt safetensors are refused, or load with finite numbers in every place; the structure is never believed."""
    ours = model(n_layer=1)
    files = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(sorted(hugging_tensors(ours)))}
    write_huggingface(tmp_path, ours, files=files if sharded else None)

    def spoil(name, content, others, pick):
        if pick.random() < 0.4:
            return spoil_bytes(content, others, pick)
        return (spoil_safetensors if name.endswith(".safetensors") else spoil_json)(content, pick)

    def fits(found, whole, unchanged, name):
        numbers = parameters(found)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in numbers.values())
        return finite and (same(found, whole) or name.endswith(".safetensors"))

    refused, wrong = play(tmp_path, ours, count, spoil, fits)

    assert wrong == []
    assert refused > 0.3 * count


def test_a_config_decides_no_memory(tmp_path):
    """A config of enormous sizes is refused before anything is allocated for it."""
    folder = write_huggingface(tmp_path, model(), vocab_size=1 << 24, n_embd=1 << 24, n_positions=1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="misshapen"):
        loaded(folder)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert json.loads((folder / "config.json").read_bytes())["n_embd"] == 1 << 24
