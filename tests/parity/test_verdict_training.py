"""The tutorial's chapter 5 through the job: its data facts, its untrained losses, ten epochs within its bands.

Figures are those printed in Raschka, "Build a Large Language Model (From Scratch)", chapter 5. Order and dropout are
other numbers here, so what is trained is held to bands over the five traces in its notebook's history.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from job.config_file import load_config
from job.infra.device import choose_numerics
from job.training.evaluation import Evaluator
from job.training.learner import build_learner
from job.training.text import read_text
from job.training.timetable import total_steps
from tests.unit.data_support import SHARED, published

ROOT = Path(__file__).parents[2]


def run_job(*arguments):
    """What a command of the job prints, as lines; nothing of this shell's own GPT_JOB_* reaches it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPT_JOB_")}
    done = subprocess.run(
        [sys.executable, "-m", "job", "--log-format", "json", *map(str, arguments)],
        cwd=ROOT,
        env=environment | {"GPT_JOB_ASSETS": str(SHARED.resolve())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def train(folder, preset, *settings):
    """Summary and events of a run that is trained to its end in `folder`, with a cache of its own."""
    own = (f"run_uri={folder}/run", f"data.cache_dir={folder}/cache", "observe.metrics_port=none")
    *_, summary = run_job("train", "--preset", preset, *(f"--set={setting}" for setting in (*own, *settings)))
    return json.loads(summary), [json.loads(line) for line in (folder / "run/events.jsonl").read_text().splitlines()]


def of_kind(events, kind):
    return [event for event in events if event["event"] == kind]


def test_characters_and_tokens(tmp_path):
    """`prepare` cuts the 20,479 characters at nine tenths, and finds GPT-2 tokens on each side of the cut."""
    published("the-verdict.txt")
    (printed,) = run_job("prepare", "--preset", "verdict", "--json", "--set", f"data.cache_dir={tmp_path}")
    found = {split: (facts["characters"], facts["tokens"]) for split, facts in json.loads(printed)["splits"].items()}

    assert found == {"train": (18431, 4612), "validation": (2048, 534), "test": (0, 0)}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdict")
    return load_config("verdict", overrides=[f"data.cache_dir={folder}", "runtime.device=cpu"]).config


@pytest.fixture(scope="module")
def text(config):
    """The Verdict as the job reads it."""
    published("the-verdict.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_JOB_ASSETS", str(SHARED))
        return read_text(config, lambda _: None, lambda *_: None)


def test_tokens_of_the_whole_story(text):
    """Uncut, the story has 5,145 tokens."""
    assert len(text.tokenizer.encode_ordinary(published("the-verdict.txt").read_text(encoding="utf-8"))) == 5145


def test_tokens_in_windows(text, config):
    """Windows hold 4,608 training and 512 validation tokens: 9 batches and 1."""
    windows = {split: len(chosen.starts) for split, chosen in text.evaluation_sets(config, None).items()}
    found = {split: (256 * count, count / config.training.batch_size) for split, count in windows.items()}

    assert found == {"train": (4608, 9), "validation": (512, 1)}


def test_ten_epochs_are_90_steps(text, config):
    """The run ends after 90 updates."""
    assert total_steps(config.training, text.order.windows) == 90


@pytest.fixture(scope="module")
def untrained(text, config):
    """Loss by split of the run's own fresh model over whole splits."""
    numerics = choose_numerics(config.runtime, None)
    threads = torch.get_num_threads()
    model = build_learner(config, numerics, text.tokenizer.vocab_size, restoring=False).model
    evaluator = Evaluator(text.evaluation_sets(config, None), numerics, torch.device("cpu"))
    yield {split: evaluator.measure(model, split).loss for split in ("train", "validation")}
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("split", "loss"), [("train", 10.987583), ("validation", 10.981106)])
def test_untrained_loss(untrained, split, loss):
    """Untrained, a whole split costs what the tutorial prints, to 1e-5 nats."""
    assert untrained[split] == pytest.approx(loss, abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestTrained:
    """Ten epochs of the preset, trained by the command."""

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        """Summary and events; the run's checkpoints, 1.95 GB each, are gone by then."""
        published("the-verdict.txt")
        folder = tmp_path_factory.mktemp("trained")
        try:
            summary, events = train(folder, "verdict")
        finally:
            shutil.rmtree(folder)
        for event in of_kind(events, "evaluated"):
            print(event["step"], round(event["train_loss"], 3), round(event["val_loss"], 3))
        print(f"{summary['seconds']:.0f} s in steps")
        return summary, events

    def test_it_ends_complete(self, run):
        """The summary says 90 steps of 512 tokens, complete."""
        summary, _ = run

        assert (summary["status"], summary["step"], summary["tokens"]) == ("complete", 90, 46080)

    def test_when_it_is_evaluated(self, run):
        """Losses are measured before the first update, after updates 1, 6, 11, ... 86, and at the end."""
        _, events = run

        assert [event["step"] for event in of_kind(events, "evaluated")] == [0, *range(1, 90, 5), 90]

    def test_every_step_is_logged_once(self, run):
        """Each of the 90 steps has its line."""
        _, events = run

        assert [event["step"] for event in of_kind(events, "step")] == list(range(1, 91))

    def test_the_first_evaluation_is_the_untrained_loss(self, run):
        """Step 0 says what the tutorial prints before training, here over the whole validation split."""
        _, events = run

        assert of_kind(events, "evaluated")[0]["val_loss"] == pytest.approx(10.981106, abs=1e-5)

    def test_samples(self, run):
        """One sample at the end of each epoch continues the tutorial's prompt."""
        _, events = run
        samples = of_kind(events, "sampled")

        assert [sample["step"] for sample in samples] == list(range(9, 91, 9))
        assert {sample["prompt"] for sample in samples} == {"Every effort moves you"}


SEEDS = (123, 1, 2)  # the preset's first; the book's own loop moves as much from one seed to the next


@pytest.mark.slow
@pytest.mark.timeout(7200)
class TestSeeds:
    """The tutorial's bands. One run is a throw of dice, so the median of three seeds is held to them."""

    @pytest.fixture(scope="class")
    def curves(self, tmp_path_factory):
        """For each seed its evaluations, in order."""
        published("the-verdict.txt")
        found = []
        for seed in SEEDS:
            folder = tmp_path_factory.mktemp(f"seed{seed}")
            try:
                _, events = train(folder, "verdict", f"seed={seed}", "checkpoint.every=90")
            finally:
                shutil.rmtree(folder)
            found.append(of_kind(events, "evaluated"))
            for event in found[-1]:
                print(seed, event["step"], round(event["train_loss"], 3), round(event["val_loss"], 3), flush=True)
        return found

    def test_train_loss(self, curves):
        """The story is nearly learned by heart: below 1.1 nats."""
        assert statistics.median(curve[-1]["train_loss"] for curve in curves) < 1.1

    def test_validation_loss(self, curves):
        """The validation loss ends overfitted, from 6.3 to 6.6."""
        assert 6.3 <= statistics.median(curve[-1]["val_loss"] for curve in curves) <= 6.6

    def test_lowest_validation_loss(self, curves):
        """On the way the validation loss was as low as the tutorial's: 6.1 to 6.2."""
        lowest = [min(event["val_loss"] for event in curve) for curve in curves]

        assert 6.1 <= statistics.median(lowest) <= 6.2


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_bf16_follows_fp32(tmp_path):
    """The preset in bf16: at every evaluation within 0.02 nats of fp32, on both splits."""
    published("the-verdict.txt")
    curves = []
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        _, events = train(folder, "verdict", f"runtime.precision={precision}", "checkpoint.every=90")
        curves.append(of_kind(events, "evaluated"))
        shutil.rmtree(folder)
    apart = {
        (one["step"], split): other[f"{split}_loss"] - one[f"{split}_loss"]
        for one, other in zip(*curves, strict=True)
        for split in ("train", "val")
    }
    print({key: round(value, 4) for key, value in apart.items()})

    assert max(map(abs, apart.values())) <= 0.02
