"""`make prove` in small: it kills and damages for real, and it says DIFFERENT when something is."""

import random
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.chaos.harness import write_corpus
from tests.chaos.outcome import outcome
from tests.chaos.prove import ROOT, SETTINGS, Toll, Trial, in_peace, kill_steps, under_fire, verdict
from tests.chaos.test_resume import SEED
from tests.integration.command import UNHURRIED

KILLS, STEPS = 2, 30


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A smaller model on a shorter text; training waits for its saves, so that each kill meets several."""
    folder = tmp_path_factory.mktemp("prove")
    small = ("model.n_layer=1", "model.n_embd=32", "training.batch_size=24", "training.micro_batch_size=1")
    settings = (*SETTINGS, *small, f"data.corpus={write_corpus(folder)}", "data.tokenizer=byte")
    return Trial(folder, steps=STEPS, every=4, settings=settings, launcher=UNHURRIED)


@pytest.fixture(scope="module")
def peace(trial):
    """What the run came to without a disturbance."""
    return in_peace(trial, "peace")


@pytest.fixture(scope="module")
def fire(trial):
    """What the run came to in spite of everything, and what that was."""
    toll = under_fire(trial, "fire", random.Random(SEED), KILLS)
    return outcome(trial.run_uri("fire"), trial.folder / "fire-files"), toll


def test_it_kills_and_damages_for_real(fire):
    """Every kill and the flipped bit are in the run's log: attempts, the rejection, steps trained again."""
    _, toll = fire

    assert (toll.kills, toll.flips, toll.rejections) == (KILLS, 1, 1)
    assert toll.redone > 0


def test_it_says_equal(trial, peace, fire, capsys):
    """A run that was killed and damaged ends as one that was not, and the proof shows both."""
    equal = verdict(peace, *fire, trial)
    said = capsys.readouterr().out

    assert equal
    assert said.endswith("EQUAL\n")
    assert [said.count(value) for value in (peace.chain, peace.model, peace.optimizer, peace.tokenizer)] == [2] * 4


def test_it_says_different_when_a_run_is(trial, peace, fire, capsys):
    """Another seed is another chain and another model, whatever else is right."""
    other = in_peace(trial, "other", "seed=7")
    equal = verdict(peace, other, fire[1], trial)

    assert not equal
    assert capsys.readouterr().out.endswith("DIFFERENT\n")


WRONG = {
    "another optimizer": {"optimizer": "0" * 64},
    "a step too few": {"step": STEPS - 1},
    "a step twice in the history": {"logged_steps": (1, *range(1, STEPS + 1))},
}


@pytest.mark.parametrize("what", WRONG)
def test_one_difference_is_enough(trial, peace, fire, what):
    """Each line of the proof counts."""
    assert not verdict(peace, replace(fire[0], **WRONG[what]), fire[1], trial)


@pytest.mark.parametrize("toll", [Toll(kills=2, flips=1), Toll(kills=0, flips=1, rejections=1), Toll(kills=2)])
def test_nothing_is_proven_without_kills_and_damage(trial, peace, toll):
    """Equal runs prove nothing unless one was killed, and damaged, and the damage was noticed."""
    assert not verdict(peace, peace, toll, trial)


def test_the_seed_decides_where_it_is_killed():
    """One kill in each stretch of the run, at the same steps for the same seed."""
    steps = kill_steps(160, 5, random.Random(1))

    assert steps == kill_steps(160, 5, random.Random(1)) != kill_steps(160, 5, random.Random(2))
    assert [(step - 1) * 5 // 158 for step in steps] == [0, 1, 2, 3, 4]


def test_it_needs_no_test_tools():
    """`make prove` needs only what the job needs: no pytest, no hypothesis, and torch only in the runs."""
    code = "import sys, tests.chaos.prove; print(sorted({'pytest', 'hypothesis', 'torch'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert said == "[]\n"
