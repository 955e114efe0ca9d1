"""EleutherAI's lm-evaluation-harness runs on an export and on our server, and finds what the model says itself.

The task is three sentences whose ends are scored: what LAMBADA is, in small.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from job.config_file import load_config
from job.data.alphabets import ByteTokenizer
from job.infra.storage import open_store
from job.serving.testing.client import ServeClient
from job.serving.testing.process import ServerProcess, wait_until_ready
from job.training.export import export
from tests.unit.data_support import still
from tests.unit.weights_support import model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
for needed in ("lm_eval", "transformers"):
    pytest.importorskip(needed, reason=f"needs {needed}: make parity installs it")

ITEMS = (
    ("Every effort moves", " you"),
    ("A token costs one pass over the weights,", " whatever came before it"),
    ("The end of a", " text"),
)
TASK = """
task: ends
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{start}}}}"
doc_to_target: "{{{{end}}}}"
target_delimiter: ""
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def ours():
    """A small model of bytes with random weights."""
    return model(vocab_size=257, n_layer=2, n_head=2, n_embd=32, context_length=96)


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory):
    """That model as `weights export` writes it."""
    folder = tmp_path_factory.mktemp("exported")
    config = load_config(None).config
    export(open_store(str(folder), config.storage), "", ours, ByteTokenizer(), config, {})
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with the task."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "ends.jsonl").write_text("".join(json.dumps({"start": a, "end": b}) + "\n" for a, b in ITEMS))
    (folder / "ends.yaml").write_text(TASK.format(data=folder / "ends.jsonl"))
    return folder


def perplexity_of(ours):
    """exp of the mean negative log-probability of an end, as the harness defines it for such tasks."""
    found = []
    for start, end in ITEMS:
        tokens = torch.tensor(list((start + end).encode()))
        logprobs = ours(tokens[None])[0].log_softmax(-1)
        found.append(logprobs[range(len(start) - 1, len(tokens) - 1), tokens[len(start) :]].sum().item())
    return math.exp(-sum(found) / len(found))


def harness(task, tmp_path, *arguments):
    """The results of the task."""
    command = [sys.executable, "-m", "lm_eval", "--tasks", "ends", "--include_path", str(task), *arguments]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    said = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")],
        env={**os.environ, **offline, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-4000:]
    (results,) = Path(tmp_path / "out").rglob("results_*.json")
    return json.loads(results.read_text())["results"]["ends"]


def test_the_harness_runs_on_an_export(ours, exported, task, tmp_path):
    """With `--model hf` and the folder, the ends have the probabilities that our model gives them."""
    found = harness(
        task, tmp_path, "--model", "hf", "--model_args", f"pretrained={exported},dtype=float32", "--device", "cpu"
    )

    assert found["perplexity,none"] == pytest.approx(perplexity_of(ours), rel=1e-3)


def test_the_harness_runs_on_our_server(ours, exported, task, tmp_path):
    """With `--model local-completions` and our address, the same."""
    with ServerProcess(["--weights", str(exported), "--model-name", "ours"], tmp_path / "log") as server:
        url = server.wait_for_url(120, still)
        wait_until_ready(ServeClient(url), server, 120, still)
        where = f"model=ours,base_url={url}/v1/completions,tokenizer={exported},max_length=96,num_concurrent=2"
        found = harness(task, tmp_path, "--model", "local-completions", "--model_args", where)

    assert found["perplexity,none"] == pytest.approx(perplexity_of(ours), rel=1e-3)
