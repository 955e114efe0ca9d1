"""OpenAI's released weights say what they are known to say, after Raschka, "Build a Large Language Model", chapter 5.

The weights come from the folder $GPT_JOB_WEIGHTS (with the files of 124M in it or in `124M` below it), or else from the
network; the tests are skipped, visibly, where neither has them.
"""

import os
from pathlib import Path

import pytest
import torch

from job.config_file import load_config
from job.data.weight_files import KNOWN_BYTES, find_weight_files
from job.errors import JobError
from job.evaluate import evaluate
from job.infra.storage import open_store
from job.model.generation import generate
from job.training.pretrained import load_weights
from tests.unit.data_support import published, still

HOST = "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/hparams.json"
SHORT = "it's not enough.\n\n\"I'm not going to sit here and say, 'I'm not going to do this,'"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tutorial's settings, on the CPU; a cache that lasts where weights are downloaded."""
    return load_config("verdict", overrides=["runtime.device=cpu", "runtime.precision=fp32"]).config


@pytest.fixture(scope="module")
def uri(config):
    """Where the released 124M is."""
    if named := os.environ.get("GPT_JOB_WEIGHTS"):
        folder = Path(named) / "124M" if (Path(named) / "124M").is_dir() else Path(named)
        return str(folder)
    if not reachable():
        pytest.skip("no $GPT_JOB_WEIGHTS, and OpenAI's host does not answer")
    return "gpt2:124M"


def reachable():
    """Whether OpenAI's host gives the smallest file within a few seconds."""
    from urllib3 import PoolManager
    from urllib3.exceptions import HTTPError

    try:
        return PoolManager().request("GET", HOST, timeout=5.0, retries=False).status == 200
    except HTTPError:
        return False


@pytest.fixture(scope="module")
def released(uri, config):
    try:
        return load_weights(config, uri)
    except JobError as error:
        if os.environ.get("GPT_JOB_WEIGHTS"):
            raise
        pytest.skip(f"the weights cannot be had: {error}")


def test_sizes_of_files(uri, config, released):
    """The files have the sizes that are known of them."""
    files = find_weight_files(uri, config.data, lambda address: open_store(address, config.storage), still).files
    if "model.ckpt.index" not in files:
        pytest.skip("these weights are not in OpenAI's layout")

    assert {name: files[name].stat().st_size for name in KNOWN_BYTES["124M"]} == KNOWN_BYTES["124M"]


def test_parameters(released):
    """124,439,808 parameters, and the tokenizer of 50,257."""
    assert (released.model.parameter_count, released.tokenizer.vocab_size) == (124_439_808, 50257)


def test_greedy_continuation(released):
    """The most probable continuation of "Every effort moves" is the one that the book prints."""
    prompt = torch.tensor(released.tokenizer.encode("Every effort moves").tolist())
    text = released.tokenizer.decode(list(generate(released.model, prompt, 30)))

    assert text == f" forward, but {SHORT}"


@pytest.mark.parametrize(("split", "loss"), [("train", 3.75475), ("validation", 3.55962)])
def test_losses_on_the_verdict(config, uri, released, monkeypatch, split, loss):
    """Windows of 256 tokens of the-verdict cost what the book's exercise 5.5 prints."""
    monkeypatch.setenv("GPT_JOB_ASSETS", str(published("the-verdict.txt").parent))
    measured = evaluate(config, "last", lambda *_: None, weights=uri, window=256)

    assert measured[split]["loss"] == pytest.approx(loss, abs=1e-4)
