"""Promise 1, by force: stopped or killed anywhere and continued = never stopped, bit for bit.

The workload has dropout on, two passes per step and two ends of epochs; every run is a process of its own.
"""

import itertools
import random

import pytest

from tests.chaos import evidence
from tests.chaos.cases import SEED
from tests.chaos.harness import Plan, run, tiny
from tests.chaos.outcome import outcome

STEPS = 40
KILLS = 30
LEAST = 20  # kills at every kind of point


def test_the_workload_is_hard_to_resume(corpus, unbroken):
    """Dropout is drawn, a step has two passes, and the run ends in its third epoch."""
    config = tiny("unset", corpus).config
    epochs = STEPS * config.training.batch_size * config.model.context_length / 4800

    assert (config.model.dropout, config.training.micro_batch_size, config.training.batch_size) == (0.1, 2, 4)
    assert epochs > 2


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


def chosen_points(points, count):
    """`count` points: one of every kind first, then others at random from the seed."""
    kinds = {}
    for kind, number in points:
        kinds.setdefault(kind, []).append((kind, number))
    pick = random.Random(SEED)
    first = [pick.choice(same) for same in kinds.values()]
    rest = [point for point in points if point not in first]
    return (first + pick.sample(rest, len(rest)))[:count]


def kill_at(point, fresh):
    """Run what `fresh` gives and kill it at this point, or at an earlier one if a skipped save left it out."""
    kind, number = point
    for _ in range(20):  # on a busy machine even the first of its kind may be left out now and then
        resolved = fresh()
        code = run(resolved, Plan(kill_at=(kind, number)))
        if code != 0:
            return resolved, code
        number //= 2
    raise AssertionError(f"no {kind} in these runs")


def test_kills_reach_every_kind_of_point(unbroken):
    """The points cover save, commit, retention, events, probe, views and batches."""
    kinds = {kind for kind, _ in unbroken[1]}

    assert {"batch", "before put data", "after put data", "before create log", "after create log"} <= kinds
    assert {"before delete data", "before put events", "before put report"} <= kinds


@pytest.mark.parametrize("place", range(KILLS))
def test_killed_at_a_numbered_point(unbroken, corpus, tmp_path, place):
    """Killed with SIGKILL at this point and continued: equal to the unbroken run, each step logged once."""
    expected, points = unbroken
    point = chosen_points(points, KILLS)[place]
    folders = (tmp_path / str(number) for number in itertools.count())
    resolved, code = kill_at(point, lambda: tiny(f"{next(folders)}/run", corpus))

    assert (code, run(resolved)) == (-9, 0), f"point {point}"
    assert outcome(resolved.config.run_uri, tmp_path / "files") == expected, f"point {point}"


def test_killed_again_and_again(unbroken, corpus, tmp_path):
    """Killed at a random point of every attempt until one gets through: equal to the unbroken run."""
    expected, points = unbroken
    pick, some = random.Random(SEED), points[len(points) // 4 : len(points) // 2]
    folders = (tmp_path / str(number) for number in itertools.count())
    resolved, code = kill_at(pick.choice(some), lambda: tiny(f"{next(folders)}/run", corpus))
    codes = [code]
    while codes[-1] == -9:
        codes.append(run(resolved, Plan(kill_at=pick.choice(some))))

    assert len(codes) > 1
    assert codes[-1] == 0
    assert outcome(resolved.config.run_uri, tmp_path / "files") == expected


def often_enough(points):
    """Every point once, and those of a rare kind again until there are `LEAST` of it."""
    kinds = {}
    for kind, number in points:
        kinds.setdefault(kind, []).append((kind, number))
    return [
        point for same in kinds.values() for point in itertools.islice(itertools.cycle(same), max(LEAST, len(same)))
    ]


@pytest.mark.slow
def test_killed_at_every_point(unbroken, corpus, tmp_path):
    """Killed with SIGKILL at each point there is, at least 20 times at each kind: always equal to the unbroken run."""
    expected, points = unbroken
    unequal, killed = [], often_enough(points)
    folders = (tmp_path / str(number) for number in itertools.count())
    for number, point in enumerate(killed):
        resolved, code = kill_at(point, lambda: tiny(f"{next(folders)}/run", corpus))
        ends = code, run(resolved)
        if ends != (-9, 0) or outcome(resolved.config.run_uri, tmp_path / f"files{number}") != expected:
            unequal.append((point, ends))

    assert not unequal
    evidence.case("R-01", kills=len(killed), equal=True)
