"""The preflight: what it says of machines, of stores and of settings, and that one finding never hides another."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from job.check import check
from job.checks import machine
from job.checks.compute import autograd, step
from job.checks.finding import Finding, exit_code
from job.checks.storage import storage
from job.checks.text import Outlook
from job.config import StorageConfig
from job.config_file import load_config
from job.data.reachable import reach
from job.errors import ConfigError, NotFoundError
from job.infra.device import choose_numerics
from tests.unit.data_support import Plan, config_for, no_store, serving

CONFIG = load_config().config
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to count")


def resolved(*settings, preset="quickstart"):
    return load_config(preset, overrides=settings)


def by_level(findings, level="error"):
    return [(finding.about, finding.code) for finding in findings if finding.level == level]


def finding(code):
    return Finding(about="x", level="error" if code else "ok", said="x", code=code)


@pytest.mark.parametrize(
    ("codes", "worst"), [((), 0), ((0, 0), 0), ((69, 0), 69), ((69, 66, 77), 77), ((65, 78, 69), 78), ((1, 69), 69)]
)
def test_the_worst_finding(codes, worst):
    """What a retry repeats is worse than what may pass; the exit code is the worst one's."""
    assert exit_code(map(finding, codes)) == worst


def test_a_machine_on_which_all_is_well(tmp_path):
    """Every question is answered, none with an error, and the check leaves nothing behind."""
    run = tmp_path / "run"
    found = list(check(resolved(f"run_uri={run}", f"data.cache_dir={tmp_path}/cache")))
    asked = {one.about for one in found}

    assert by_level(found) == []
    assert {"settings", "driver", "shared memory", "corpus", "tokenizer", "device", "autograd", "memory"} <= asked
    assert {"disk: run", "disk: cache", "time", "storage"} <= asked
    assert not run.exists()
    assert next(one for one in found if one.about == "time").facts["measured"]


def test_everything_broken_at_once(tmp_path):
    """Driver, shared memory, corpus, tokenizer, device and storage: each is said, and each with what to do."""
    (tmp_path / "file").write_text("")
    broken = resolved(
        f"run_uri={tmp_path}/file/run",
        f"data.cache_dir={tmp_path}/cache",
        f'data.corpus=["{tmp_path}/none.txt", "{tmp_path}/file/x.txt", "ftp://host/x.txt"]',
        "data.tokenizer=cl1ook_base",
        "data.workers=10000000",
        "runtime.device=cuda",
    )
    found = list(check(broken))
    errors = [one for one in found if one.level == "error"]

    assert {"driver", "shared memory", "corpus", "tokenizer", "device", "storage: write"} <= {e.about for e in errors}
    assert {"autograd", "disk: cache", "disk: run"} <= {one.about for one in found}
    assert all(one.said and one.advice and one.code for one in errors)
    assert exit_code(found) == 78


def test_every_wrong_setting_and_the_machine_too():
    """A config that is wrong in two places: both are said, and gradients are looked at all the same."""
    with pytest.raises(ConfigError) as wrong:
        resolved("model.n_head=0", "training.batch_size=-1")
    found = list(check(wrong.value))

    assert by_level(found) == [("settings", 78), ("settings", 78)]
    assert found[-1].about == "autograd"


def test_several_processes(tmp_path):
    """What each of two needs is said, all that the machine needs is judged, and a step is one process's."""
    settings = resolved(f"run_uri={tmp_path}/run", f"data.cache_dir={tmp_path}/cache", "runtime.parallel=fsdp")
    alone, two = ({one.about: one for one in check(settings, processes=asked)} for asked in (None, "2"))
    share, whole = two["memory"].facts, alone["memory"].facts

    assert "processes" not in alone
    assert two["processes"].said == "2 train together (fsdp), 2 on this machine"
    assert (share["optimizer"], share["snapshot"]) == (whole["optimizer"] // 2, whole["snapshot"])
    assert share["needed"] == 2 * share["step"] + share["snapshot"]
    assert "for one of 2 processes" in two["time"].said


@pytest.mark.parametrize(
    ("processes", "about", "said"),
    [
        ("two", "device", "--processes='two' must be a number from 1 to 4095"),
        ("64", "processes", "training.batch_size=16 is too small for 64 processes"),
        pytest.param("gpu", "device", "--processes gpu: torch finds no GPU", marks=needs_no_gpu),
    ],
)
def test_processes_that_cannot_be(tmp_path, processes, about, said):
    """A number that is none, more processes than sequences, GPUs that are not there: 78, and the rest is said too."""
    settings = resolved(f"run_uri={tmp_path}/run", f"data.cache_dir={tmp_path}/cache")
    found = list(check(settings, processes=processes))
    [wrong] = [one for one in found if one.level == "error"]

    assert (wrong.about, wrong.code) == (about, 78)
    assert wrong.said.startswith(said)
    assert "storage" in {one.about for one in found}


DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Oct 19 18:56:32 UTC 2023\nGCC version:  gcc 12.3.0\n"


@pytest.mark.parametrize(
    ("version", "cuda", "asked", "level"),
    [
        ("535.129.03", "12.8", "auto", "ok"),
        ("525.60.13", "12.8", "auto", "ok"),
        ("470.57.02", "12.8", "auto", "error"),
        ("535.129.03", "13.0", "cuda", "error"),
        ("535.129.03", None, "auto", "error"),
        ("535.129.03", None, "cpu", "ok"),
    ],
)
def test_the_driver(version, cuda, asked, level):
    """A driver is held to the oldest that torch's CUDA works with; a CPU build of torch beside a GPU is said."""
    found = machine.judge_driver(cuda, DRIVER.format(version), asked)

    assert found.level == level
    assert version in found.said
    assert bool(found.advice) == (level == "error")


def test_devices_without_a_driver(tmp_path):
    """A container that was given the devices and not the driver is told how it is started."""
    (tmp_path / "nvidia0").touch()
    [found] = machine.driver(CONFIG, proc=tmp_path, dev=tmp_path)

    assert (found.level, found.code) == ("error", 78)
    assert "--gpus all" in found.advice


def test_the_cuda_of_torch_is_read_without_torch():
    """What version.py says is what torch says."""
    assert machine.torch_cuda() == torch.version.cuda


def test_the_first_answers_come_without_torch():
    """Settings, driver, shared memory, corpus and tokenizer are there before torch is imported."""
    code = (
        "import sys\nfrom job.check import check\nfrom job.config_file import load_config\n"
        "for finding in check(load_config(overrides=['run_uri=/nowhere/run'])):\n"
        "    if 'torch' in sys.modules: break\n    print(finding.about)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.split("\n")[:5] == ["settings", "driver", "shared memory", "corpus", "tokenizer"]


class Doubled(TorchFunctionMode):
    """A torch whose cross-entropy is twice what it should be."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return 2 * found if function is torch.nn.functional.binary_cross_entropy else found


def test_the_textbook_gradient():
    """-0.0898 and -0.0817; anything else is an error."""
    assert autograd(torch.device("cpu")).level == "ok"
    with Doubled():
        assert autograd(torch.device("cpu")).code == 78


def test_a_folder_that_may_not_be_written(tmp_path):
    """The refusal is said once, nothing else is tried."""
    (tmp_path / "file").write_text("")
    found = list(storage("storage", str(tmp_path / "file/run"), StorageConfig()))

    assert [one.about for one in found][:1] == ["storage: write"]
    assert all(one.level == "error" for one in found)


def test_a_disk_that_is_too_small(tmp_path):
    """More than is free is an error, and says both."""
    config = replace(CONFIG, run_uri=str(tmp_path / "run"))
    found = {one.about: one for one in machine.disk(config, 1 << 60, None)}

    assert found["disk: run"].code == 69
    assert found["disk: cache"].level != "error"


def test_the_time_of_a_large_model_is_found_in_a_short_one(tmp_path):
    """What is measured takes no more than about a second of work, however large model and context are."""
    large = resolved("model.n_layer=24", "model.n_embd=512", "model.context_length=2048", "training.batch_size=64")
    numerics = choose_numerics(large.config.runtime, None)
    outlook = Outlook(256, True, None, None)
    with Lengths() as seen:
        found = step(large.config, outlook, numerics, True)

    assert not found.facts["measured"]
    assert 0 < max(seen.lengths) < 2048
    assert found.facts["seconds"] > 1


class Lengths(TorchFunctionMode):
    """Notes how many tokens every embedding looks up."""

    def __init__(self):
        super().__init__()
        self.lengths = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.embedding:
            self.lengths.append(args[0].numel())
        return function(*args, **(kwargs or {}))


def test_a_corpus_elsewhere_is_not_downloaded(tmp_path):
    """Size and presence come from HEAD, or from one byte where a server allows GET alone; a 404 is not found."""
    with serving() as server:
        server.plans |= {"/a.txt": Plan(b"x" * 1000), "/signed.txt": Plan(b"x" * 2000, head=False)}
        names = ("a.txt", "signed.txt", "none.txt", "a.exe")
        config = config_for(tmp_path, *(server.url(f"/{name}") for name in names))
        there, signed, missing, unknown = reach(config, no_store)
        asked = [(path, headers.get("Range")) for path, headers in server.requests]

    assert (there.size, signed.size) == (1000, 2000)
    assert asked == [
        ("HEAD /a.txt", None),
        ("HEAD /signed.txt", None),
        ("/signed.txt", "bytes=0-0"),
        ("HEAD /none.txt", None),
    ]
    assert isinstance(missing, NotFoundError)
    assert isinstance(unknown, ConfigError)


# Peak memory of real steps in a process of their own, beside what was estimated for them.
MEASURE = """
import json, re, sys
from dataclasses import replace
import torch
from job.training.memory import estimate
from job.config_file import load_config
from job.data.loader import Batch
from job.training.learner import build_learner
from job.training.numerics import settle_numerics

def now(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

def train(config, vocab_size, steps):
    learner = build_learner(config, numerics, vocab_size, False)
    shape = config.training.batch_size, config.model.context_length
    for _ in range(steps):
        tokens = torch.randint(vocab_size, shape)
        learner.update(learner.backward(Batch(tokens, tokens, b""), config.training.rows_per_pass), 1e-4, 1.0)

*settings, vocab_size = sys.argv[1:]
config = load_config("gpt2-124m", overrides=["runtime.device=cpu", "training.max_steps=1", *settings]).config
numerics = settle_numerics(config, None)
small = replace(config.model, n_layer=1, n_head=1, n_embd=32, context_length=32)
train(replace(config, model=small, training=replace(config.training, batch_size=2, micro_batch_size=1)), 64, 2)
before = now("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
train(config, int(vocab_size), 3)
taken = now("VmHWM") - before
print(json.dumps([taken, estimate(config, int(vocab_size), numerics, torch.device("cpu")).step]))
"""


def shape(layers, heads, width, context, rows, per_pass, vocab_size, *more):
    names = {"n_layer": layers, "n_head": heads, "n_embd": width, "context_length": context}
    settings = [f"model.{name}={value}" for name, value in names.items()]
    return [*settings, f"training.batch_size={rows}", f"training.micro_batch_size={per_pass}", *more, str(vocab_size)]


@pytest.mark.parametrize(
    "arguments",
    [
        shape(4, 4, 256, 256, 8, 8, 8192),
        pytest.param(shape(4, 8, 512, 128, 8, 4, 16000), marks=pytest.mark.slow),
        pytest.param(shape(4, 4, 256, 256, 8, 8, 8192, "model.dropout=0.1"), marks=pytest.mark.slow),
        pytest.param(shape(8, 4, 128, 256, 16, 16, 256), marks=pytest.mark.slow),
        pytest.param(shape(6, 6, 384, 256, 8, 8, 100, "model.tie_weights=false"), marks=pytest.mark.slow),
        pytest.param(shape(12, 12, 768, 128, 2, 2, 50257), marks=pytest.mark.slow),
        pytest.param(shape(4, 8, 512, 128, 8, 4, 16000, "runtime.precision=fp32"), marks=pytest.mark.slow),
        pytest.param(shape(6, 6, 384, 256, 8, 8, 100, "runtime.precision=fp32"), marks=pytest.mark.slow),
    ],
)
def test_the_memory_of_a_step(arguments):
    """What is estimated is within 15 % of what the process then takes."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    taken, estimated = json.loads(done.stdout.splitlines()[-1])
    print(f"{taken >> 20} MiB taken, {estimated >> 20} MiB estimated, {estimated / taken:.3f}")

    assert 0.85 < estimated / taken < 1.15
