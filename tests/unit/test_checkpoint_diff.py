"""What `checkpoints diff` calls equal: tensors, state, tokenizer and chain; not where, when and how long."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from job.checkpoint.store import Checkpoint, CheckpointStore
from job.checkpoints.diff import Side, diff_sides
from job.checkpoints.text import diff_lines
from tests.memory_store import MemoryObjectStore

WEIGHTS = {"w": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.float32)}
STATE = {"step": 4, "chain": "c" * 64, "data_offset": 0, "seconds": 1.5, "val_loss": 2.0}


def side(files=None, events=(), **facts):
    """A checkpoint of a run of its own, with other files and facts where they are given."""
    contents = {
        "model.safetensors": save(WEIGHTS),
        "optimizer.safetensors": save({"w.exp_avg": WEIGHTS["w"]}),
        "state.json": json.dumps(STATE).encode(),
        "tokenizer.json": b"{}",
        **(files or {}),
    }
    whole = {"chain": "c" * 64, "eval": {"val_loss": 2.0}, "config": {"seed": 1}, "tokenizer_sha256": "t", **facts}
    segment = [
        {"event": "step", "step": step, "loss": loss, "gradient_norm": 1.0, "attempt": 1, "number": step}
        for step, loss in events
    ]
    store = CheckpointStore(MemoryObjectStore())
    store.claim({})
    checkpoint = Checkpoint(
        step=4,
        files={name: [content] for name, content in contents.items()},
        events=b"".join(json.dumps(event).encode() + b"\n" for event in segment),
        facts=whole,
    )
    return Side(store, store.save(checkpoint).record)


def different(report, kind="model"):
    return {row["name"]: (row["first"], row["second"]) for row in report["tensors"][kind]["different"]}


def test_two_runs_that_came_to_the_same_are_equal():
    """Other attempts, other keys, other times, the same content: EQUAL."""
    slower = json.dumps({**STATE, "seconds": 99.0}).encode()
    report = diff_sides(side(), side({"state.json": slower}))

    assert report["equal"]
    assert report["fields"]["state"] == {"seconds": [1.5, 99.0]}


DIFFERENT = {
    "a weight": {"files": {"model.safetensors": save({**WEIGHTS, "b": np.ones(2, np.float32)})}},
    "a moment": {"files": {"optimizer.safetensors": save({"w.exp_avg": WEIGHTS["w"] + 1})}},
    "the position": {"files": {"state.json": json.dumps({**STATE, "data_offset": 8}).encode()}},
    "the chain": {"chain": "d" * 64},
    "the tokenizer": {"tokenizer_sha256": "u"},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_one_thing_is_enough_to_differ(what):
    """Whatever training would go on from differently makes them DIFFERENT."""
    report = diff_sides(side(), side(**DIFFERENT[what]))

    assert not report["equal"]
    assert list(diff_lines(report))[-1] == "DIFFERENT"


def test_settings_are_told_and_do_not_decide():
    """Another config that came to the same state is named, and EQUAL."""
    report = diff_sides(side(), side(config={"seed": 1, "checkpoint": {"every": 5}}))

    assert (report["equal"], report["fields"]["config"]) == (True, {"checkpoint.every": [None, 5]})


def test_tensors_that_one_side_lacks_are_named():
    """A tensor on one side only has no other side."""
    more = {"model.safetensors": save({"w": WEIGHTS["w"], "c": WEIGHTS["b"]})}

    assert different(diff_sides(side(), side(more))) == {"b": ("F32 [2]", None), "c": (None, "F32 [2]")}


def test_tensors_of_another_shape_or_dtype_are_named():
    """Shape and dtype are compared before a number is."""
    other = {"w": WEIGHTS["w"].reshape(2, 3), "b": WEIGHTS["b"].astype(np.float16)}
    report = diff_sides(side(), side({"model.safetensors": save(other)}))

    assert different(report) == {"b": ("F32 [2]", "F16 [2]"), "w": ("F32 [6]", "F32 [2, 3]")}


def test_an_optimizer_that_one_side_lacks_is_told():
    """Imported weights have no optimizer: every moment of the other side is named."""
    report = diff_sides(side(), side({"optimizer.safetensors": save({})}))

    assert different(report, "optimizer") == {"w.exp_avg": ("F32 [6]", None)}


def test_tensors_of_several_ranks_are_one_model():
    """What one process wrote into a file and two into two files is compared by name."""
    parts = {f"model-{name}.safetensors": save({name: tensor}) for name, tensor in WEIGHTS.items()}

    assert diff_sides(side(), side({"model.safetensors": save({}), **parts}))["equal"]


def test_the_first_step_that_differs_is_told():
    """Only steps that both have logged are compared."""
    report = diff_sides(side(events=[(1, 5.0), (2, 4.0), (4, 3.0)]), side(events=[(1, 5.0), (3, 9.0), (4, 3.5)]))

    assert report["history"] == {
        "logged_by_both": 2,
        "equal_up_to_step": 1,
        "first_difference": {"step": 4, "loss": [3.0, 3.5], "gradient_norm": [1.0, 1.0]},
    }
