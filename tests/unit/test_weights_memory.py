"""What loading weights takes beside the memory of the parameters: measured in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from job.config import ModelConfig
from job.model import names
from job.model.gpt import unfilled
from job.model.shapes import Shape, to_huggingface

V = 50257
NAMES = ("taken", "of parameters", "of the largest tensor")
SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 8, "context_length": 8}
PROGRAM = """
import re, sys
from pathlib import Path
from job.model.weights import find_weights, load_weights

def load(folder):
    return load_weights(find_weights({path.name: path for path in Path(folder).iterdir()}, folder))

def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

load(sys.argv[1])  # what is imported, and torch's own buffers
now = memory("VmRSS")
model = load(sys.argv[2])
sizes = [parameter.nbytes for parameter in model.parameters()]
print(memory("VmHWM") - now, sum(sizes), max(sizes))
"""


def empty_weights(folder, vocab_size, **shape):
    """A folder in Hugging Face's layout whose tensors are all zeros, without a byte of them on the disk."""
    config = ModelConfig(**shape)
    outline = dict(unfilled(config, vocab_size, "meta").named_parameters())
    header, end = {}, 0
    for name, tensor in names.to_huggingface(outline).items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_huggingface(Shape(config, vocab_size), None)))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see the memory in use")
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({}, id="124M"),
        pytest.param({"n_layer": 48, "n_head": 25, "n_embd": 1600}, id="1558M", marks=pytest.mark.slow),
    ],
)
def test_memory_of_loading(shape, tmp_path):
    """Loading takes the memory of the parameters, and of one tensor more."""
    small, whole = empty_weights(tmp_path / "small", 8, **SMALL), empty_weights(tmp_path / "whole", V, **shape)
    program = [sys.executable, "-c", PROGRAM, str(small), str(whole)]
    ended = subprocess.run(
        program, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    taken, parameters, largest = map(int, ended.stdout.split())
    found = zip(NAMES, (taken, parameters, largest), strict=True)
    print("\nMiB:", *(f"{size / 2**20:,.0f} {name}" for name, size in found))

    assert parameters < taken < parameters + 1.1 * largest + (32 << 20)
