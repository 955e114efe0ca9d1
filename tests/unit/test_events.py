"""The history of a run: each step once, in order, over any number of attempts."""

import json

import pytest
import structlog

from job.checkpoint import history
from job.checkpoint.events import EventLog, facts_key, parse_lines, past_events
from job.checkpoint.store import Checkpoint, CheckpointStore
from tests.memory_store import MemoryObjectStore


class Attempt:
    """One attempt at a run: claims it, continues from its newest checkpoint, and records a step an event."""

    def __init__(self, objects, folder, fall_back=0):
        self.store = CheckpointStore(objects)
        self.store.claim({})
        standing = history.checkpoints(self.store.records)
        last = standing[-1 - fall_back] if standing else None
        if last:
            self.store.continue_from(last)
        self.step = last.step if last else 0
        past = past_events(objects, self.store.records, last)
        self.log = EventLog(folder / "events.jsonl", past, self.store.term)
        self.log.note("run started", self.step)

    def train(self, until):
        while self.step < until:
            self.step += 1
            self.log.record("step", self.step, loss=1.0)
        return self

    def save(self):
        segment = self.log.segment()
        self.store.save(
            Checkpoint(
                step=self.step,
                files={"model": [b"m"]},
                events=segment.content,
                facts={"chain": "0", "eval": {"val_loss": None}},
            )
        )
        self.log.committed(segment)
        self.store.objects.put(facts_key(self.store.attempt, self.store.term), [self.log.facts()])
        return self

    @property
    def steps(self):
        return [event["step"] for event in self.log.events if event["event"] == "step"]


@pytest.fixture
def objects():
    return MemoryObjectStore()


def test_steps_that_were_not_saved_are_not_history(objects, tmp_path):
    """An attempt that dies after its checkpoint leaves no step that the next one repeats."""
    Attempt(objects, tmp_path).train(5).save().train(8)
    second = Attempt(objects, tmp_path).train(10)

    assert second.steps == list(range(1, 11))


def test_falling_back_takes_the_history_of_the_older_checkpoint(objects, tmp_path):
    """Past a damaged checkpoint its steps are history no more, and come again once."""
    Attempt(objects, tmp_path).train(5).save().train(8).save()
    second = Attempt(objects, tmp_path, fall_back=1).train(9)

    assert second.steps == list(range(1, 10))


def test_every_attempt_is_told(objects, tmp_path):
    """Facts of attempts stay, in the order of attempts."""
    Attempt(objects, tmp_path).train(2).save()
    Attempt(objects, tmp_path).train(3).save()
    third = Attempt(objects, tmp_path)
    started = [event["step"] for event in third.log.events if event["event"] == "run started"]

    assert started == [0, 2, 3]


def test_the_file_is_what_the_log_holds(objects, tmp_path):
    """events.jsonl has one JSON object a line, the same as the log in memory."""
    attempt = Attempt(objects, tmp_path).train(3)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()

    assert [json.loads(line) for line in lines] == attempt.log.events


def test_a_full_disk_costs_no_event(objects, tmp_path):
    """Events that the local file could not take are in it once it can be written again."""
    attempt = Attempt(objects, tmp_path).train(1)
    (tmp_path / "events.jsonl").unlink()
    (tmp_path / "events.jsonl").mkdir()
    attempt.log.close()
    attempt.train(2)
    (tmp_path / "events.jsonl").rmdir()
    attempt.train(3)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()

    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


def test_cut_and_foreign_lines_are_left_out():
    """Whatever is not an event of ours does not disturb the others."""
    whole = b'{"attempt":1,"event":"step","number":1,"step":1}'

    assert len(parse_lines(whole + b"\nnot json\n[1]\n{}\n" + whole[:20])) == 1


def test_a_damaged_segment_is_said(objects, tmp_path):
    """A segment that stays other than its record says is warned of by its key, and nothing in it is believed."""
    Attempt(objects, tmp_path).train(5).save()
    key = next(key for key in objects.keys("events/") if key.endswith("s000000000005.jsonl"))
    objects.objects[key] = objects.objects[key].replace(b"1.0", b"7.0", 1)
    with structlog.testing.capture_logs() as said:
        again = Attempt(objects, tmp_path)

    assert [(line["log_level"], line["key"]) for line in said] == [("warning", key)]
    assert again.steps == []


def test_secrets_at_any_depth_are_hidden(objects, tmp_path):
    """A fact that holds settings holds no password, however deep it lies."""
    log = EventLog(tmp_path / "events.jsonl", [], 1)
    log.note("run started", 0, config={"data": {"corpus": ["https://me:secret@host/text?token=x"]}}, loss=float("nan"))

    assert b"secret" not in log.view()
    assert b"token" not in log.view()
    assert json.loads(log.view())["loss"] is None


def test_a_steady_clock_is_noted(objects, tmp_path, monkeypatch):
    """Each event has the seconds since the log was opened, whatever the calendar does meanwhile."""
    log = EventLog(tmp_path / "events.jsonl", [], 1)
    log.record("step", 1)
    monkeypatch.setattr("job.checkpoint.events.time.time", lambda: 0.0)
    first, second = log.events[0], log.record("step", 2)

    assert second["time"] < first["time"]
    assert second["uptime"] >= first["uptime"] >= 0
