"""Whole runs on a GPU: stopped and continued to the bit, estimated before, and spread over several."""

import os

import pytest
import torch

from job.config_file import load_config
from job.data.loader import Batch
from job.training.learner import build_learner
from job.training.memory import estimate
from job.training.numerics import settle_numerics
from tests.chaos.several import losses
from tests.integration.command import REAL, UNHURRIED, World, assignments

DEVICE = os.environ.get("GPU_TEST_DEVICE", "cuda")  # cpu, to see that the tests themselves are right

pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
SHORT = ("training.max_steps=30", "checkpoint.every=10", "observe.log_every=1", f"runtime.device={DEVICE}")


def train(world, *settings):
    """Run `train` to its end in a process of its own: no copy of another could use a GPU."""
    return world.gpt_job("train", *assignments(*settings), launcher=UNHURRIED)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_killed_and_continued_is_never_stopped(tmp_path, precision, compiled):
    """With `deterministic`, dropout and accumulation: SIGKILL after a checkpoint, and the chain is the unbroken one."""
    settings = (*SHORT, "runtime.deterministic=true", f"runtime.precision={precision}", f"runtime.compile={compiled}")
    whole = train(World.create(tmp_path / "whole"), *settings)
    assert whole.code == 0, whole.stderr
    cut = World.create(tmp_path / "cut")
    with cut.training(*settings, launcher=UNHURRIED) as job:
        job.until("checkpoint saved", step=10)
        job.process.kill()
        assert job.ending().code == -9
    continued = train(cut, *settings)

    assert continued.code == 0, continued.stderr
    assert cut.saved()[0] == 10
    assert continued.summary["chain"] == whole.summary["chain"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_two_gpus_learn_as_one_does(tmp_path, spread):
    """Over NCCL: each loss within 1e-4 of one GPU's."""
    one, two = World.create(tmp_path / "one"), World.create(tmp_path / "two")
    settings = (*SHORT, "runtime.precision=fp32", "runtime.compile=off", "model.dropout=0")
    assert train(one, *settings).code == 0
    words = assignments(*settings, f"runtime.parallel={spread}")
    ending = two.gpt_job("train", "--processes", "2", *words, launcher=REAL)

    assert ending.code == 0, ending.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.skipif(DEVICE != "cuda", reason="tests/unit/test_check.py measures a CPU's")
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize(("rows", "per_pass"), [(8, 8), (16, 4)])
def test_memory_is_what_was_estimated(compiled, rows, per_pass):
    """The most that torch has taken for GPT-2's smallest shape is within 15 % of what `check` says."""
    settings = (f"training.batch_size={rows}", f"training.micro_batch_size={per_pass}", f"runtime.compile={compiled}")
    config = load_config("gpt2-124m", overrides=["run_uri=unset", "training.max_steps=1", *settings]).config
    numerics = settle_numerics(config, None)
    learner = build_learner(config, numerics, 50257, restoring=False)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        tokens = torch.randint(50257, (rows, config.model.context_length)).pin_memory()
        learner.update(learner.backward(Batch(tokens, tokens, b""), per_pass), 1e-4, 1.0)
    expected = estimate(config, 50257, numerics, torch.device("cuda")).step

    assert expected == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
