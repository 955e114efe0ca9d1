"""Promise 1, by force: stopped or killed anywhere and continued = never stopped, bit for bit.

The workload has dropout on, two passes per step and two ends of epochs; every run is a process of its own.
"""

import os
import random

import pytest

from tests.chaos.harness import Plan, run, tiny, write_corpus
from tests.chaos.outcome import outcome

SEED = int(os.environ.get("CHAOS_SEED", "1"))
STEPS = 40
KILLS = 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """The outcome of a run that nothing disturbed, and the names of its points."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(tiny(f"{folder}/run", corpus), report=folder / "points") == 0
    return outcome(f"{folder}/run", folder / "files"), (folder / "points").read_text().splitlines()


def test_the_same_run_twice_is_the_same(unbroken, corpus, tmp_path):
    """Two undisturbed runs end with equal weights, optimizer state and chain."""
    assert run(tiny(f"{tmp_path}/run", corpus)) == 0

    assert outcome(f"{tmp_path}/run", tmp_path / "files") == unbroken[0]


@pytest.mark.parametrize("step", range(STEPS))
def test_a_clean_stop_at_every_step(unbroken, corpus, tmp_path, step):
    """Stopped with SIGTERM at this step and continued: equal to the unbroken run."""
    resolved = tiny(f"{tmp_path}/run", corpus)
    codes = run(resolved, Plan(stop_at_step=step)), run(resolved)

    assert codes == (75, 0)
    assert outcome(f"{tmp_path}/run", tmp_path / "files") == unbroken[0]


def chosen_points(names, count):
    """Numbers of `count` points: one of every kind first, then others at random from the seed."""
    kinds = {}
    for number, name in enumerate(names):
        kinds.setdefault("batch" if name.startswith("batch") else name, []).append(number)
    pick = random.Random(SEED)
    first = [pick.choice(numbers) for numbers in kinds.values()]
    rest = [number for number in range(len(names)) if number not in first]
    return sorted((first + pick.sample(rest, len(rest)))[:count])


def test_kills_reach_every_kind_of_point(unbroken):
    """The points cover save, commit, retention, events, probe, views and batches."""
    names = {"batch" if name.startswith("batch") else name for name in unbroken[1]}

    assert {"batch", "before put data", "after put data", "before create log", "after create log"} <= names
    assert {"before delete data", "after get data", "before put events", "before put report"} <= names


@pytest.mark.parametrize("place", range(KILLS))
def test_killed_at_a_numbered_point(unbroken, corpus, tmp_path, place):
    """Killed with SIGKILL at this point and continued: equal to the unbroken run, each step logged once."""
    expected, names = unbroken
    point = chosen_points(names, KILLS)[place]
    resolved = tiny(f"{tmp_path}/run", corpus)
    codes = run(resolved, Plan(kill_at=point)), run(resolved)

    assert codes == (-9, 0), f"point {point}: {names[point]}"
    assert outcome(f"{tmp_path}/run", tmp_path / "files") == expected, f"point {point}: {names[point]}"


def test_killed_again_and_again(unbroken, corpus, tmp_path):
    """Killed at a random point of every attempt until one gets through: equal to the unbroken run."""
    pick = random.Random(SEED)
    resolved = tiny(f"{tmp_path}/run", corpus)
    codes = []
    while not codes or codes[-1] == -9:
        codes.append(run(resolved, Plan(kill_at=pick.randrange(100, 260))))

    assert codes[-1] == 0
    assert outcome(f"{tmp_path}/run", tmp_path / "files") == unbroken[0]


@pytest.mark.slow
def test_killed_at_every_point(unbroken, corpus, tmp_path):
    """Killed with SIGKILL at each point there is, and continued: always equal to the unbroken run."""
    expected, names = unbroken
    unequal = []
    for point, name in enumerate(names):
        resolved = tiny(f"{tmp_path}/{point}", corpus)
        codes = run(resolved, Plan(kill_at=point)), run(resolved)
        if codes != (-9, 0) or outcome(f"{tmp_path}/{point}", tmp_path / f"files{point}") != expected:
            unequal.append((point, name, codes))

    assert not unequal
