"""Eight clients at a time: our server beside transformers' pipeline in FastAPI, with the same GPT-2 of 124M parameters.

Both are processes of their own, measured in turns in one run, the other one idle; each figure is the median of the
rounds' ratios. The machine must have nothing else to do.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from job.config import ModelConfig
from job.config_file import load_config
from job.data.gpt2_files import gpt2_tokenizer
from job.data.huggingface_tokenizer import huggingface_files
from job.model.gpt import GPT
from job.serving.testing.client import ServeClient
from job.serving.testing.figures import Timeline, figures
from job.serving.testing.load import Load, run_load
from job.serving.testing.process import ServerProcess, wait_until_ready
from tests.unit.data_support import published, still
from tests.unit.weights_support import write_huggingface

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
pytest.importorskip("transformers", reason="needs transformers, the peer")
pytest.importorskip("fastapi", reason="needs FastAPI, what the peer is served with")

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
REQUESTS, TOKENS, AT_ONCE = 16, 64, 8
THREADS = os.cpu_count() or 1
PROMPT = "Every effort moves you closer to the place from which you can see how far there is still to go, and"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights of GPT-2's smallest shape with its tokenizer, as transformers and we read them."""
    config = load_config(None, overrides=[f"data.tokenizer_dir={published('vocab.bpe').parent}"]).config
    torch.manual_seed(0)
    found = write_huggingface(tmp_path_factory.mktemp("124M"), GPT(ModelConfig(context_length=1024), 50257).eval())
    for name, content in huggingface_files(gpt2_tokenizer(config.data, still), 1024).items():
        (found / name).write_bytes(content)
    return found


@pytest.fixture(scope="module", params=["fp32", "auto"])
def ours(request, folder, tmp_path_factory):
    """A client of our server, and seconds that it took to be ready."""
    log, started = tmp_path_factory.mktemp("ours") / "log", time.monotonic()
    with threads(), ServerProcess(["--weights", str(folder), "--dtype", request.param], log) as server:
        client = ServeClient(server.wait_for_url(120, still), connections=AT_ONCE)
        wait_until_ready(client, server, 120, still)
        print(f"\nready after {time.monotonic() - started:.1f} s ({request.param})")
        yield client


@pytest.fixture(scope="module")
def theirs(folder):
    """A client of the peer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.benchmarks.plain_peer", str(folder), str(port), str(THREADS)]
    with threads(), subprocess.Popen(command, cwd=ROOT) as process:
        try:
            client = ServeClient(f"http://127.0.0.1:{port}", connections=AT_ONCE, seconds=600)
            wait_until_ready(client, None, 300, still)
            yield client
        finally:
            process.kill()


class threads:  # noqa: N801 - a context manager
    """Children see as many threads as the machine has, whatever the tests use."""

    def __enter__(self):
        self.before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(THREADS)

    def __exit__(self, *_):
        if self.before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = self.before


def ask_ours(client, due, body):
    return client.timed(due, {"temperature": 0, "ignore_eos": True, **body})


def ask_theirs(client, due, body):
    started = time.perf_counter()
    answer = client.request("POST", "/generate", json.dumps(body).encode())
    ended = time.perf_counter()
    assert answer.status == 200, answer.content
    return Timeline(due=due, started=started, chunks=(ended,), ended=ended, completion_tokens=body["max_tokens"])


def tokens_per_second(ask, client, requests=REQUESTS):
    timelines = run_load(Load(requests=requests, concurrency=AT_ONCE), BODIES, 0, partial(ask, client))
    assert not {one.error for one in timelines} - {""}
    return figures(timelines)["output_throughput"]


BODIES = [{"prompt": PROMPT[: 40 + 4 * number], "max_tokens": TOKENS} for number in range(AT_ONCE)]


def test_beside_transformers_behind_fastapi(ours, theirs):
    """At least twice the new tokens a second."""
    tokens_per_second(ask_ours, ours, AT_ONCE)
    tokens_per_second(ask_theirs, theirs, 2)
    pairs = [(tokens_per_second(ask_ours, ours), tokens_per_second(ask_theirs, theirs)) for _ in range(ROUNDS)]
    ratios = [one / other for one, other in pairs]
    for name, values in (("ours", [p[0] for p in pairs]), ("theirs", [p[1] for p in pairs]), ("ratio", ratios)):
        print(f"  {name:<8} {statistics.median(values):8.2f}   ({min(values):.2f} to {max(values):.2f})")

    assert statistics.median(ratios) >= 2
