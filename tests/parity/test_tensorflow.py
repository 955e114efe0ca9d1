"""TensorFlow itself writes the checkpoint again that is kept for the tests, and it is the same."""

import os
import subprocess
from pathlib import Path

import pytest

import tests.tensorflow

KEPT = Path(tests.tensorflow.__file__).parent / "checkpoint"
ROOT = Path(__file__).parents[2]


def test_tensorflow_writes_the_kept_checkpoint(tmp_path):
    """The script that made the kept checkpoint makes it again, byte for byte."""
    python = Path(os.environ.get("TENSORFLOW_VENV", ROOT / ".venv-tensorflow")) / "bin/python"
    if not python.exists():
        pytest.skip(f"no TensorFlow in {python.parents[1]}: run `make .venv-tensorflow`")
    subprocess.run([python, "-m", "tests.tensorflow.write", tmp_path], cwd=ROOT, check=True, capture_output=True)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in KEPT.iterdir()
    }
