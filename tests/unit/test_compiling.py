"""Compiling: tried before it is relied on, an error only for those who asked for it, and the same numbers."""

import os
import subprocess
import sys

import pytest
import structlog
import torch
import torch._inductor.config

from job.config import ModelConfig, RuntimeConfig
from job.errors import ConfigError
from job.infra import compiler
from job.infra.compiled_code import CompiledCode
from job.infra.compiler import settle_compiling
from job.infra.device import Numerics, choose_numerics
from job.model import loss
from job.model.gpt import GPT
from tests.memory_store import MemoryObjectStore


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """Nothing compiled by another test is found; torch's settings are those of before afterwards."""
    threads = torch.get_num_threads()
    torch._dynamo.reset()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    yield
    torch._dynamo.reset()
    torch.set_num_threads(threads)


def numerics(compiled=True):
    return Numerics(device="cpu", precision="fp32", compile=compiled, deterministic=False, threads=1)


@pytest.fixture
def no_compiler():
    """A machine without a C++ compiler."""
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        yield


def test_on_a_cpu_auto_does_not_compile():
    """A step of the sizes that a CPU trains is not made faster by as much as compiling takes."""
    assert not choose_numerics(RuntimeConfig(device="cpu"), None).compile


def test_what_was_chosen_is_used_again():
    """A run that began compiled goes on compiled."""
    assert choose_numerics(RuntimeConfig(device="cpu"), numerics().plain()).compile


def test_nothing_is_tried_where_nothing_is_compiled(tmp_path):
    """Eager runs leave no cache and do not load the compiler."""
    assert settle_compiling(numerics(False), RuntimeConfig(), CompiledCode(tmp_path, {})) == numerics(False)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_without_a_compiler_auto_goes_on_without(no_compiler, tmp_path):
    """One warning says why, and the run is eager."""
    with structlog.testing.capture_logs() as logs:
        settled = settle_compiling(numerics(), RuntimeConfig(), CompiledCode(tmp_path, {}))

    assert not settled.compile
    assert [line["log_level"] for line in logs] == ["warning"]
    assert "no-such-compiler" in logs[0]["reason"] or "compiler" in logs[0]["reason"].lower()


def test_without_a_compiler_on_is_an_error(no_compiler, tmp_path):
    """Who asks for it by name is told, before anything is trained."""
    with pytest.raises(ConfigError, match=r"runtime.compile='on'"):
        settle_compiling(numerics(), RuntimeConfig(compile="on"), CompiledCode(tmp_path, {}))


def test_a_run_that_was_compiled_is_not_continued_without(no_compiler, tmp_path):
    """Its numbers would be others: an error says how to go on all the same."""
    with pytest.raises(ConfigError, match=r"compiled so far, but torch cannot compile here: .*runtime.compile=off"):
        settle_compiling(numerics(), RuntimeConfig(), CompiledCode(tmp_path, {}), before=True)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Where nothing can be kept: below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file/compiled"))
    return CompiledCode(tmp_path / "file/compiled", {})


def test_a_cache_that_cannot_be_written_leaves_auto_without(nowhere):
    """One warning names the folder and the reason."""
    with structlog.testing.capture_logs() as logs:
        settled = settle_compiling(numerics(), RuntimeConfig(), nowhere)

    assert not settled.compile
    assert [(line["log_level"], line["reason"]) for line in logs] == [
        ("warning", f"{nowhere.folder} cannot be written: Not a directory")
    ]


def test_a_cache_that_cannot_be_written_is_an_error_for_on(nowhere):
    """Who asks for compiling by name is told the folder and the reason."""
    with pytest.raises(ConfigError, match=f"cannot compile here: {nowhere.folder} cannot be written: Not a directory"):
        settle_compiling(numerics(), RuntimeConfig(compile="on"), nowhere)


def test_code_of_others_that_does_not_run_is_named(monkeypatch, tmp_path):
    """The error says where it is from, and what to do."""
    others = MemoryObjectStore()
    theirs = CompiledCode(tmp_path / "theirs", {}, others)
    theirs.folder.mkdir(parents=True)
    (theirs.folder / "kernel.so").write_bytes(b"needs a newer library")
    theirs.offer()
    monkeypatch.setattr(compiler, "_problem", lambda _: "version `GLIBCXX_3.4.99' not found")
    here = CompiledCode(tmp_path / "here", {}, others)

    with pytest.raises(ConfigError, match=rf"GLIBCXX_3.4.99' not found \(with code from {here.uri}: remove it"):
        settle_compiling(numerics(), RuntimeConfig(compile="on"), here)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.usefixtures("nowhere")
def test_without_a_cache_there_are_optimizers(compiled):
    """Torch loads its compiler for one, which makes the folder: told of one that cannot be, it trains all the same."""
    code = (
        "import torch; from pathlib import Path; from job.config import RuntimeConfig\n"
        "from job.infra.compiler import settle_compiling; from job.infra.device import Numerics\n"
        "from job.infra.compiled_code import TOLD, CompiledCode\n"
        f"n = Numerics(device='cpu', precision='fp32', compile={compiled}, deterministic=False, threads=1)\n"
        "settle_compiling(n, RuntimeConfig(), CompiledCode(Path(TOLD), {}))\n"
        "torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_was_run_before_does_not_decide_what_is_compiled():
    """Each size of a pass is compiled by itself and an evaluation not at all: a resume gets the code of before."""
    found = []

    def backend(graph, inputs):
        found.append([tuple(given.shape) for given in inputs if given.dtype == torch.int64])
        return graph.forward

    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=16), 99)
    model.compile(backend=backend)
    with torch.inference_mode():
        model.eval()(torch.zeros(7, 16, dtype=torch.int64))
    model.train()
    for rows in (3, 2, 3):
        tokens = torch.zeros(rows, 16, dtype=torch.int64)
        model(tokens, tokens).backward()

    assert found == [[(3, 16)], [(2, 16)]]


@pytest.mark.slow
def test_the_cache_is_kept(tmp_path):
    """What was compiled lies in the given folder, where the next start finds it."""
    code = (
        "import sys; from pathlib import Path; from job.config import RuntimeConfig\n"
        "from job.infra.compiler import settle_compiling; from job.infra.device import Numerics\n"
        "from job.infra.compiled_code import CompiledCode\n"
        "n = Numerics(device='cpu', precision='fp32', compile=True, deterministic=False, threads=1)\n"
        "assert settle_compiling(n, RuntimeConfig(compile='on'), CompiledCode(Path(sys.argv[1]), {})) == n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

    assert any(tmp_path.rglob("*.so"))


@pytest.mark.slow
def test_asked_for_cuda_graphs_a_cpu_computes_the_same():
    """Only a GPU has them: the switch alone changes not a bit."""
    found = []
    for mode in (None, "reduce-overhead"):
        torch.manual_seed(0)
        model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=16), 99)
        model.compile(mode=mode)
        tokens = torch.randint(99, (2, 17))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        found.append([p.grad for p in model.parameters()])

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.slow
def test_compiled_and_eager_agree(monkeypatch):
    """Loss and gradients of a compiled model, head and all, are the eager ones."""
    monkeypatch.setattr(loss, "_WORTH_IT", 0)
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=16), 99)
    tokens = torch.randint(99, (2, 17))
    found = []
    for compiled in (False, True):
        if compiled:
            model.compile()
        model.zero_grad()
        value = model(tokens[:, :-1], tokens[:, 1:])
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])

    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
