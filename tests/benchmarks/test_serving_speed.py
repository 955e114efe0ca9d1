"""What serving costs: GPT-2's smallest shape with random weights behind HTTP, greedy, 64 new tokens of 32.

The server is a process of its own. Each figure is a ratio of two things done one after the other in one run, the median
of several rounds. The machine must have nothing else to do.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import httpx2 as httpx
import pytest
import torch

from job.config import ModelConfig
from job.data.bpe import BpeTokenizer
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.gpt import GPT
from job.model.projection import fastest_dtype
from job.model.rows import CachedRows
from tests.unit.weights_support import write_huggingface

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
V, PROMPT, NEW, WIDTH = 50257, 32, 64, 8
ROOT = Path(__file__).parents[2]
DTYPES = ("fp32", "auto")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT(ModelConfig(), V).eval()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """A folder with the model, and a tokenizer of as many tokens as GPT-2's."""
    folder = write_huggingface(tmp_path_factory.mktemp("weights"), model)
    pairs = [bytes(pair) for pair in product(range(256), repeat=2)]
    ranks = {token: rank for rank, token in enumerate([bytes([byte]) for byte in range(256)] + pairs[: V - 256])}
    (folder / "job_tokenizer.json").write_bytes(BpeTokenizer("pairs", r"\S+|\s+", ranks, {}).to_json())
    return folder


class Served:
    """A server in a process of its own, and how long it took to be ready."""

    def __init__(self, weights, dtype, log):
        started = time.perf_counter()
        words = ("serve", "--weights", str(weights), "--port", "0", "--dtype", dtype, "--model-name", "bench")
        own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environ = {**own, "PYTHONPATH": str(ROOT)}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "job", *words], cwd=log.parent, env=environ, stderr=stderr
            )
        while '"serving"' not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.02)
        self.ready_seconds = time.perf_counter() - started
        said = [json.loads(line) for line in log.read_text().splitlines()]
        self.url = next(line["url"] for line in said if line["event"] == "serving")
        self.http = httpx.Client(trust_env=False, timeout=600)

    def tokens_per_second(self, clients, requests=None):
        """Of so many clients who each ask as soon as they are answered."""

        def ask(number):
            body = {"prompt": prompt(number), "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
            answer = self.http.post(f"{self.url}/v1/completions", json=body)
            assert answer.json()["usage"]["completion_tokens"] == NEW

        count = requests or clients
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(count)))
        return count * NEW / (time.perf_counter() - started)


@pytest.fixture(scope="module", params=DTYPES)
def served(request, weights, tmp_path_factory):
    found = Served(weights, request.param, tmp_path_factory.mktemp("log") / "log")
    found.dtype = torch.float32 if request.param == "fp32" else fastest_dtype(torch.device("cpu"))
    found.tokens_per_second(1)
    found.tokens_per_second(WIDTH)
    yield found
    found.process.terminate()
    assert found.process.wait(60) == 0


def prompt(number):
    return torch.randint(V, (PROMPT,), generator=torch.Generator().manual_seed(number)).tolist()


def show(title, **figures):
    print(f"\n{title} ({torch.get_num_threads()} threads)")
    for name, values in figures.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name.replace('_', ' '):<44} {middle:8.3f}   ({low:.3f} to {high:.3f})")


def test_eight_at_once(served):
    """Eight requests at once bring at least three times the tokens a second of one at a time."""
    one, eight = [], []
    for _ in range(ROUNDS):
        one.append(served.tokens_per_second(1))
        eight.append(served.tokens_per_second(WIDTH))
    ratios = [many / few for few, many in zip(one, eight, strict=True)]
    show(f"tokens a second, {served.dtype}", one_at_a_time=one, eight_at_once=eight, ratio=ratios)

    assert statistics.median(ratios) >= 3


def test_one_at_a_time(served, model):
    """One at a time is within a tenth of `generate`: the server costs nearly nothing."""
    decoder = Decoder(model, served.dtype)

    def plain():
        started = time.perf_counter()
        with torch.inference_mode():
            count = len(list(generate(CachedRows(decoder, 1), prompt(0), NEW)))
        return count / (time.perf_counter() - started)

    plain()
    ours, theirs = [], []
    for _ in range(2 * ROUNDS):
        ours.append(served.tokens_per_second(1))
        theirs.append(plain())
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    show(f"tokens a second, {served.dtype}", served=ours, generate=theirs, ratio=ratios)

    assert statistics.median(ratios) >= 0.9


def test_ready(served):
    """From the command to the first answer it takes at most ten seconds."""
    print(f"\nready after {served.ready_seconds:.1f} s")

    assert served.ready_seconds <= 10
