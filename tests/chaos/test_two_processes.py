"""Two processes on one run: whatever they do to each other, one line of checkpoints comes out, and it is the right one.

Started together, they race for the fence. Or the older one is frozen at a point, the newer one finishes the run, and
the older one wakes into a world in which its run is over.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from job.errors import StorageError
from tests.chaos.cases import SEED
from tests.chaos.harness import Plan, ended, keep_up, run, start, tiny
from tests.chaos.outcome import outcome
from tests.integration.command import files

SCALE = int(os.environ.get("CHAOS_SCALE", "1"))
RACES, FROZEN = 10, 10
COMPLETE, FENCED = 0, 73


def records(folder):
    return [json.loads(path.read_bytes()) for path in sorted((folder / "run" / "log").glob("*.json"))]


def is_one_line(log):
    """Whether a log is dense, no attempt writes after a newer one has, and each checkpoint follows the one that its
    attempt continued from or the one it saved before."""
    terms = [record["term"] for record in log]
    saves = [record for record in log if record["kind"] == "checkpoint"]
    known = [None, *(save["seq"] for save in saves)]
    return (
        [record["seq"] for record in log] == list(range(1, len(log) + 1))
        and terms == sorted(terms)
        and all(save["prev_checkpoint_seq"] in known[: place + 1] for place, save in enumerate(saves))
        and all(
            later["prev_checkpoint_seq"] == save["seq"]
            for save, later in itertools.pairwise(saves)
            if save["term"] == later["term"]
        )
    )


def race(folder, corpus):
    """Two processes that claim the same run at the same moment: how they ended."""
    resolved, gate = tiny(f"{folder}/run", corpus), multiprocessing.get_context("forkserver").Barrier(2)
    both = [start(resolved, gate=gate) for _ in range(2)]
    return sorted(ended(process) for process in both)


@pytest.mark.parametrize("races", [RACES, pytest.param(100 * SCALE, marks=pytest.mark.slow)])
def test_started_together(unbroken, corpus, tmp_path, races):
    """Of two processes that start together one completes the run and the other is fenced, and nothing is mixed."""
    for number in range(races):
        folder = tmp_path / str(number)

        assert race(folder, corpus) == [COMPLETE, FENCED]
        assert is_one_line(records(folder))
        assert outcome(f"{folder}/run", folder / "files") == unbroken[0]


def freeze(process, seconds=60.0):
    """Wait until the process stands still; whether it does (it may have ended first)."""
    until = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < until:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return True
        time.sleep(0.01)
    return False


def frozen_at(point, folder, corpus):
    """A process frozen at the point, or at an earlier one if a skipped save left it out; and its run's folder."""
    (kind, number), here = point, folder / "0"
    process = start(tiny(f"{here}/run", corpus), Plan(pause_at=point))
    while not freeze(process):
        assert number, f"no {kind} in this run"
        number, here = number // 2, folder / str(number)
        process = start(tiny(f"{here}/run", corpus), Plan(pause_at=(kind, number)), prepare=keep_up)
    return process, here


def of_every_kind(points):
    """A point of each kind, at random from the seed."""
    kinds = {}
    for kind, number in points:
        kinds.setdefault(kind, []).append((kind, number))
    pick = random.Random(SEED)
    chosen = [pick.choice(same) for same in kinds.values()]
    return pick.sample(chosen, len(chosen))


def belongs(folder):
    """The files of a run that a resume depends on: the log, and whatever its records name."""
    log = records(folder)
    pruned = {seq for record in log if record["kind"] == "prune" for seq in record["pruned"]}
    saves = [record for record in log if record["kind"] == "checkpoint"]
    named = {stored["key"] for save in saves if save["seq"] not in pruned for stored in save["objects"]}
    named |= {save["events"]["key"] for save in saves} | {"run.json"}
    named |= {f"log/{record['seq']:012d}.json" for record in log}
    return {key: content for key, content in files(folder / "run").items() if key in named}


def wakes_too_late(point, folder, corpus):
    """Freeze a process at the point, let another finish the run, and wake it: what is wrong then, if anything."""
    process, here = frozen_at(point, folder, corpus)
    kinds = {record["kind"] for record in records(here)}
    second = run(tiny(f"{here}/run", corpus))
    finished = belongs(here)
    with suppress(ProcessLookupError):  # its exit code says what ended it
        os.kill(process.pid, signal.SIGCONT)
    first = ended(process)
    after = files(here / "run")
    ends = {FENCED}
    if "complete" in kinds:
        ends = {COMPLETE}
    elif "fence" not in kinds:  # it is the newer one now; or its place in the log has been taken too often to go on
        ends = {COMPLETE, StorageError.exit_code}
    found = {
        "codes": (first in ends or first, second),
        "one line": is_one_line(records(here)),
        "changed": [key for key in finished if after.get(key) != finished[key]],
    }
    wanted = {"codes": (True, COMPLETE), "one line": True, "changed": []}
    return here, {name: found[name] for name in found if found[name] != wanted[name]}


@pytest.mark.parametrize("place", range(FROZEN))
def test_frozen_and_woken_when_the_run_is_over(unbroken, corpus, tmp_path, place):
    """Whoever wakes into a run that another has finished ends with 73, having changed and deleted nothing of it."""
    expected, points = unbroken
    point = of_every_kind(points)[place]
    folder, wrong = wakes_too_late(point, tmp_path, corpus)

    assert not wrong, f"CHAOS_SEED={SEED} pytest {__file__} -k 'frozen and {place}': {point}"
    assert outcome(f"{folder}/run", tmp_path / "files") == expected, point


@pytest.mark.parametrize("point", [("before keys log", 2), ("after keys log", 2), ("before read events", 0)])
def test_frozen_between_its_fence_and_its_first_step(unbroken, corpus, tmp_path, point):
    """Whoever has not looked at the log since its fence finds the newer one, and leaves the history as it is."""
    folder, wrong = wakes_too_late(point, tmp_path, corpus)

    assert not wrong
    assert outcome(f"{folder}/run", tmp_path / "files") == unbroken[0]


@pytest.mark.slow
def test_frozen_at_every_kind_of_point(unbroken, corpus, tmp_path):
    """The same at three points of every kind, and at as many times more as CHAOS_SCALE says."""
    expected, points = unbroken
    pick, wrong = random.Random(SEED), []
    kinds = {kind: [point for point in points if point[0] == kind] for kind, _ in points}
    chosen = [point for same in kinds.values() for point in pick.sample(same, min(len(same), 3 * SCALE))]
    for number, point in enumerate(chosen):
        folder, found = wakes_too_late(point, tmp_path / f"point{number}", corpus)
        if found or outcome(f"{folder}/run", tmp_path / f"files{number}") != expected:
            wrong.append((point, found))

    assert not wrong, f"CHAOS_SEED={SEED}"
