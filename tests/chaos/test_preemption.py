"""Asked to stop, in whatever phase and with whatever time: a reason is given, what is called saved is saved, and the
run continues as if nothing had been.

SIGTERM comes at numbered points; where a call is made slow, the process stands still in it. SIGKILL follows when the
grace is over, as kubelet has it.
"""

import json
import os
import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.commands import train
from tests.chaos.harness import Plan, keep_up
from tests.chaos.outcome import outcome
from tests.integration.command import REAL, World

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SCALE = int(os.environ.get("CHAOS_SCALE", "1"))
SETTINGS = ("checkpoint.keep_last=2",)
INTERRUPTED, KILLED, COMPLETE = 75, -9, 0
STEPS = 40
PLACES = {
    "fence": ("before create log", 0),
    "batch": ("batch", 12),
    "evaluation": ("evaluation", 5),
    "upload": ("before put data", 6),
    "events": ("before put events", 2),
    "commit": ("before create log", 2),
    "after commit": ("after create log", 2),
    "retention": ("before delete data", 0),
    "test split": ("evaluation", 10),
    "finishing": ("before put report", 0),
}
LATE = (PLACES["events"], PLACES["retention"])  # in the third save


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run that nobody stopped: its outcome, and its world for more."""
    world = World.create(tmp_path_factory.mktemp("unbroken"))
    assert train(world, *SETTINGS).code == COMPLETE
    return outcome(f"{world.run}", world.folder / "files")


def claims(ending):
    """The step that the message calls saved, None for nothing; and how many steps it says are to be redone."""
    found = re.search(r"(?:step (\d+) is|nothing was) saved, (\d+) steps are to be redone", ending.reason)
    assert found, ending.reason
    return int(found[1]) if found[1] else None, int(found[2])


def stopped(world, place, grace, stall=0.0, signals=1, more=0.0):
    """Stop a run at a place, with SIGKILL when the grace, and `more` seconds, are over."""
    plan = Plan(stop_at=place, stall_seconds=stall, signals=signals, kill_after=grace + more)
    before = keep_up if place in LATE else None
    return train(world, *SETTINGS, f"runtime.grace_seconds={grace}", plan=plan, before=before)


def wrong_with(world, ending, expected):
    """What an interrupted run got wrong, if anything: its code, its message, or how it went on."""
    problems = []
    if ending.code == INTERRUPTED:
        saved = world.saved()
        step, redone = claims(ending)
        if ending.codes != {INTERRUPTED}:
            problems.append(f"codes {ending.codes}: {ending.stderr}")
        if step is not None and step not in saved:
            problems.append(f"step {step} is called saved, {saved} are")
        if step is not None and ending.summary["step"] - step != redone:
            problems.append(f"{redone} to be redone after {step}, at step {ending.summary['step']}")
    elif ending.code not in (COMPLETE, KILLED):
        problems.append(f"code {ending.code}")
    if (again := train(world, *SETTINGS).code) != COMPLETE:
        problems.append(f"continued with {again}")
    if outcome(f"{world.run}", world.folder / "files") != expected:
        problems.append("not equal")
    return problems


@pytest.mark.parametrize("place", PLACES)
def test_asked_to_stop_with_time_to_save(unbroken, tmp_path, place):
    """With time enough the process ends with 75, or with 0 past its last step; it says what is saved, and continues
    equal."""
    world = World.create(tmp_path)
    ending = stopped(world, PLACES[place], grace=30, stall=0.2)

    assert ending.code == (COMPLETE if ending.summary["status"] == "complete" else INTERRUPTED), ending.reason
    assert ending.code == INTERRUPTED or ending.summary["step"] == STEPS
    assert not wrong_with(world, ending, unbroken)


@pytest.mark.parametrize("grace", [0, 1])
def test_asked_to_stop_with_too_little_time(unbroken, tmp_path, grace):
    """In calls that outlast the grace the process leaves with 75, or is killed on its way; it continues equal."""

    def problems(place):
        world = World.create(tmp_path / place)
        ending = stopped(world, PLACES[place], grace=grace, stall=2.0)
        return [*wrong_with(world, ending, unbroken), *(["code 0"] if ending.code == COMPLETE else [])]

    with ThreadPoolExecutor(4) as pool:  # they mostly stand still
        found = dict(zip(PLACES, pool.map(problems, PLACES), strict=True))

    assert not {place: what for place, what in found.items() if what}


@pytest.mark.parametrize("place", ["evaluation", "upload", "retention"])
def test_a_second_signal_leaves_at_once(unbroken, tmp_path, place):
    """The second SIGTERM ends a process that stands still in a call, long before its grace is over."""
    world, started = World.create(tmp_path), time.monotonic()
    ending = stopped(world, PLACES[place], grace=60, stall=50.0, signals=2)

    assert time.monotonic() - started < 30
    assert "SIGTERM received, then SIGTERM" in ending.reason
    assert not wrong_with(world, ending, unbroken)


def test_a_slow_upload_is_finished_when_the_grace_allows(unbroken, tmp_path):
    """An upload that takes a second of five is waited for, and then the present step is saved too."""
    world = World.create(tmp_path)
    ending = stopped(world, PLACES["upload"], grace=10, stall=1.0)

    assert claims(ending) == (ending.summary["step"], 0)
    assert not wrong_with(world, ending, unbroken)


def test_an_upload_that_outlasts_the_grace_is_invisible(tmp_path):
    """A save that is cut leaves no record: the message and the log say the same."""
    world = World.create(tmp_path)
    ending = stopped(world, PLACES["upload"], grace=1, stall=5.0, more=3.0)

    assert ending.code == INTERRUPTED
    assert claims(ending)[0] == (world.saved() or [None])[-1]


def test_stopped_while_tokenizing(tmp_path):
    """Stopped among the documents the process ends with 75 and leaves nothing that looks whole; the next goes on."""
    world = World.create(tmp_path)
    lines = [
        json.dumps({"text": f"document {n} speaks of {n * n} things, as {n % 9} others do.\n" * 200})
        for n in range(300)
    ]
    (world.folder / "corpus.jsonl").write_text("\n".join(lines))
    many = ("data.corpus=corpus.jsonl", "training.max_steps=5")
    ending = train(world, *many, plan=Plan(stop_at=("document", 150)))
    tokens = world.folder / "cache" / "tokens"
    left = [path.name for path in tokens.iterdir()]

    assert ending.codes == {INTERRUPTED}
    assert claims(ending) == (None, 0)
    assert all(name.startswith(".") and name.endswith(".partial") for name in left)
    assert train(world, *many).code == COMPLETE
    assert not [path.name for path in tokens.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize("place", [("before create probe", 0), ("before get data", 0), ("batch", 0)])
def test_stopped_before_the_first_step_of_a_resume(unbroken, tmp_path, place):
    """A process that is stopped before it has made a step says what the ones before it have saved."""
    world = World.create(tmp_path)
    assert stopped(world, ("batch", 12), grace=30).code == INTERRUPTED
    before = world.saved()[-1]
    ending = stopped(world, place, grace=2, stall=10.0, more=6.0)

    assert ending.code == INTERRUPTED
    assert claims(ending) == (before, 0)
    assert not wrong_with(world, ending, unbroken)


def test_stopped_during_import(tmp_path):
    """SIGTERM while torch is imported: 75 with nothing written."""
    world = World.create(tmp_path)
    with world.training(launcher=REAL) as job:
        maps = Path(f"/proc/{job.process.pid}/maps")
        while job.process.poll() is None and "libtorch" not in maps.read_text():
            time.sleep(0.005)
        job.process.send_signal(signal.SIGTERM)
        ending = job.ending()

    assert ending.codes == {INTERRUPTED}
    assert "SIGTERM received" in ending.reason
    assert not world.run.exists()


@pytest.mark.slow
def test_stopped_again_and_again(unbroken, tmp_path):
    """Hundreds of stops at random places, with a grace of 0, 1 or 5 seconds, in calls that are fast or slow."""
    pick, wrong = random.Random(SEED), []
    for number in range(150 * SCALE):
        kind, most = pick.choice([("batch", 40), ("evaluation", 10), ("before put data", 20), ("before create log", 8)])
        place, grace, stall = (kind, pick.randrange(most)), pick.choice([0, 1, 5]), pick.choice([0.0, 0.0, 0.5, 2.0])
        world = World.create(tmp_path / str(number))
        problems = wrong_with(world, stopped(world, place, grace, stall), unbroken)
        wrong += [(place, grace, stall, problems)] if problems else []

    assert not wrong, f"CHAOS_SEED={SEED}"
