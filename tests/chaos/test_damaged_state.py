"""Spoilt `state.json` and optimizer under a record that agrees with them: what was saved, or the checkpoint before."""

import json
from typing import Any

import pytest

from job.errors import JobError
from tests.chaos import reference, small_run
from tests.chaos.reference import is_count
from tests.chaos.test_damage import NEWEST, agreeing, files_of_newest, play, run, signed, spoilt  # noqa: F401
from tests.memory_store import MemoryObjectStore


def read_state(content: bytes, like: dict[str, Any]) -> dict[str, Any] | None:
    """What `state.json` says; None when it could not have been written at the step that `like` is of."""
    try:
        state = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(state, dict) or state.keys() != like.keys():
        return None
    same = all(state[name] == like[name] and type(state[name]) is type(like[name]) for name in ("step", "chain"))
    counts = all(is_count(state[name]) for name in ("nonfinite_in_a_row", "nonfinite_steps"))
    same = same and state["data_offsets"] == like["data_offsets"]
    losses = all(state[name] is None or is_finite(state[name]) for name in ("eval_train_loss", "val_loss"))
    spent = is_finite(state["seconds"]) and state["seconds"] >= 0
    return state if same and counts and losses and spent and state["scaler"] is None else None


def is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def state_with_a_new_hash(run, learner, pick):  # noqa: F811
    """A spoilt state: the one that was saved or another that could have been, never a bug."""
    if change := spoilt(run, "state.json", pick):
        objects = agreeing(run.objects, *change)
        try:
            found = small_run.continue_run(MemoryObjectStore(objects), learner)
        except JobError:
            return
        if found.step == run.saved[-1].step:
            like = json.loads(run.objects[files_of_newest(run)["state.json"]])
            assert read_state(change[1], like) is not None, f"loaded {change[1][:300]!r}"


def optimizer_with_a_new_hash(run, learner, pick):  # noqa: F811
    """A spoilt optimizer: every entry has the shape that it had."""
    if change := spoilt(run, "optimizer.safetensors", pick):
        found = small_run.continue_run(MemoryObjectStore(agreeing(run.objects, *change)), learner)
        like = reference.read_tensors(run.objects[files_of_newest(run)["optimizer.safetensors"]])
        now = reference.read_tensors(change[1])
        if found.step == run.saved[-1].step:
            shapes = {name: entry[:2] for name, entry in now.items()}
            assert shapes == {name: entry[:2] for name, entry in like.items()}, "shapes of entries were exchanged"


@pytest.mark.parametrize("case", [state_with_a_new_hash, optimizer_with_a_new_hash])
def test_spoilt_state(run, case):  # noqa: F811
    """A thousand each: none loaded for what it is not, and no bug."""
    assert play(case, run, 1000) == []


@pytest.mark.parametrize(("name", "value"), [("step", 99), ("chain", "f" * 64), ("data_offset", 44)])
def test_a_state_that_is_not_its_records(run, name, value):  # noqa: F811
    """A record that says another step, chain or offset than its state: the checkpoint before it is continued."""
    objects = run.store()
    objects.objects[NEWEST] = signed(json.loads(run.objects[NEWEST]) | {name: value})

    assert small_run.continue_run(objects, run.learner()).step == run.saved[-2].step
