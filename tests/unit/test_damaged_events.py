"""Segments of events that are not what was stored: left out, with one line that says so; never the end of a start."""

import json

import pytest

from job.checkpoint.events import parse_lines
from tests.unit.test_events import Attempt, objects  # noqa: F401


def test_a_bent_segment_is_not_believed(objects, tmp_path):  # noqa: F811
    """A loss that was changed on storage is no history: the steps of its segment are missing, the others are there."""
    Attempt(objects, tmp_path).train(5).save().train(8).save()
    key = next(key for key in objects.keys("events/") if key.endswith("s000000000005.jsonl"))
    objects.objects[key] = objects.objects[key].replace(b'"loss":1.0', b'"loss":9.0')

    assert Attempt(objects, tmp_path).steps == [6, 7, 8]


@pytest.mark.parametrize(
    "wrong",
    [{"attempt": "1"}, {"number": None}, {"step": 1.5}, {"step": True}, {"event": 3}],
    ids=str,
)
def test_a_line_of_other_kinds_is_left_out(wrong):
    """What cannot be put in order with the other events is none."""
    line = {"attempt": 1, "number": 1, "event": "step", "step": 1}

    assert parse_lines(json.dumps(line | wrong).encode() + b"\n" + json.dumps(line).encode()) == [line]


def test_deep_nesting_in_a_line_is_left_out():
    """A line nested beyond reason ends nothing."""
    assert parse_lines(b"[" * 100_000) == []
