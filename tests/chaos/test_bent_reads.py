"""Reads whose bytes were bent on the way, once: noticed by their hashes, and read again rather than believed."""

import json

import pytest

from job.infra.storage import open_store
from tests.chaos.harness import Plan
from tests.chaos.weather import PATH, note_faults
from tests.fault_plans import WRONG, First, Rule, asks, edited

MISREAD = edited("wrong", lambda _, body: body.replace(b"3", b"4"))
SETTINGS = ("training.max_steps=20", "training.eval_every=10", "checkpoint.every=5")


@pytest.fixture
def stopped(site, through):
    """A run that was stopped at step 13 and has several checkpoints."""
    place = site(*SETTINGS)
    assert place.attempt(through(), plan=Plan(stop_at_step=12)).code == 75
    return place


def losses(place):
    """Step -> loss, as the run's history has them."""
    lines = map(json.loads, open_store(place.uri, PATH).read("events.jsonl").splitlines())
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if line["event"] == "step"]


def test_bent_records(stopped, through, unbroken_run):
    """Every record comes bent at its first read: the newest checkpoint is continued all the same."""
    newest, proxy = stopped.saved()[-1], through(First(WRONG, asks("GET", key="log/")))
    ended = stopped.attempt(proxy)

    assert ended.code == 0, ended.said
    assert [line["step"] for line in ended.events("run continued")] == [newest.step]
    assert stopped.outcome() == unbroken_run(*SETTINGS[:2])
    assert note_faults(proxy)["wrong"] >= 3


def test_bent_history(stopped, site, through):
    """Segments of the history come bent at their first read: the history is that of a run whose reads were not."""
    calm, proxy = site(*SETTINGS), through(First(MISREAD, asks("GET", key="events/")))
    ended = stopped.attempt(proxy)

    assert (ended.code, calm.attempt(through()).code) == (0, 0), ended.said
    assert losses(stopped) == losses(calm)
    assert note_faults(proxy)["wrong"] >= 3


def test_bent_objects(stopped, through, unbroken_run):
    """Weights come bent when a run is continued: they are never trained on, and every bit is equal at the end."""
    proxy = through(Rule(WRONG, asks("GET", key="data/.*safetensors"), [1]))
    ended = stopped.attempt(proxy)

    assert ended.code == 0, ended.said
    assert stopped.outcome() == unbroken_run(*SETTINGS[:2])
    assert note_faults(proxy)["wrong"] == 1


def test_a_bent_probe(stopped, through):
    """The probe comes bent at its first read: no reason to refuse the store for good."""
    proxy = through(First(WRONG, asks("GET", key="probe/")))
    ended = stopped.attempt(proxy)

    assert ended.code == 0, ended.said
    assert note_faults(proxy)["wrong"] == 1


def test_every_object_bent_once(stopped, through, unbroken_run):
    """Every object of every checkpoint comes bent at its first read: no reason to call the run lost."""
    proxy = through(First(WRONG, asks("GET", key="data/")))
    ended = stopped.attempt(proxy)

    assert ended.code == 0, ended.said
    assert stopped.outcome() == unbroken_run(*SETTINGS[:2])
    assert note_faults(proxy)["wrong"] >= 2
