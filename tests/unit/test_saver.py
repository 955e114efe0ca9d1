"""Saving beside training: one save at a time, what is lost is counted and borne, and the loop waits for a copy only."""

import errno
import threading
import time

import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.torch import load

from job.checkpoint.events import EventLog, Segment
from job.checkpoint.store import CheckpointStore
from job.config import CheckpointConfig, TrainingConfig
from job.errors import AccessError, DivergedError, FencedError, StorageError
from job.infra.health import Pulse
from job.infra.metrics import Metrics
from job.infra.progress import SilentProgress
from job.infra.status import RunStatus
from job.training.narrator import Channels, Narrator
from job.training.saver import Saver
from job.training.snapshot import HostMemory, Snapshot
from job.training.timetable import Timetable
from tests.memory_store import MemoryObjectStore


class BrokenStore(MemoryObjectStore):
    """A store whose uploads raise the error that stands in `problem`."""

    problem = None

    def put(self, key, content):
        if self.problem is not None:
            raise self.problem
        return super().put(key, content)


@pytest.fixture
def objects():
    return BrokenStore()


@pytest.fixture
def narrator(tmp_path):
    channels = Channels(Metrics(CollectorRegistry()), Pulse(), SilentProgress(), RunStatus())
    timetable = Timetable(TrainingConfig(max_steps=40), windows=72)
    return Narrator(channels, EventLog(tmp_path / "events.jsonl", [], 1), timetable, 256, kept_here=True)


@pytest.fixture
def saver(objects, narrator):
    """Bears one lost save; the second in a row is the last."""
    checkpoints = CheckpointStore(objects)
    checkpoints.claim({})
    return Saver(checkpoints, CheckpointConfig(max_failures=2), narrator)


def snapshot_at(number, value=1.0):
    facts = {"chain": "0" * 64, "eval": {"val_loss": None}}
    state = {"model": {"weight": torch.tensor([value])}, "optimizer": {}, "state": b"{}", "tokenizer": b"{}"}
    return lambda: Snapshot(step=number, **state, events=Segment(b"", 0), facts=facts)


def save(saver, number, value=1.0):
    saver.begin(number, snapshot_at(number, value))
    saver.wait()


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (StorageError("no answer"), "storage"),
        (AccessError("refused"), "access"),
        (OSError(errno.ENOSPC, "full"), "disk"),
        (MemoryError(), "memory"),
        (DivergedError("not finite"), "not_finite"),
    ],
    ids=["storage", "access", "disk", "memory", "not finite"],
)
def test_a_lost_save_is_counted_and_borne(saver, objects, narrator, problem, reason):
    """Training goes on from a save that failed; the checkpoint before it stands, and the reason is counted."""
    save(saver, 5)
    objects.problem = problem
    save(saver, 10)

    assert saver.last_step == 5
    counted = {"reason": reason}
    assert narrator.metrics.registry.get_sample_value("pretrain_checkpoint_failures_total", counted) == 1


def test_too_many_lost_saves_end_the_run(saver, objects):
    """The second lost save in a row is the last one, and the error says what stands."""
    save(saver, 5)
    objects.problem = StorageError("no answer")
    save(saver, 10)

    with pytest.raises(StorageError, match=r"2 saves in a row were lost, the last at step 15.*step 5 is saved"):
        save(saver, 15)


def test_a_good_save_forgives_the_lost_ones(saver, objects):
    """Only failures in a row count."""
    for number, problem in enumerate([OSError(), None, OSError(), None]):
        objects.problem = problem
        save(saver, number)

    assert saver.last_step == 3


def test_a_fenced_save_is_not_borne(saver, objects):
    """A newer attempt owns the run: the error passes at once."""
    CheckpointStore(objects).claim({})

    with pytest.raises(FencedError):
        save(saver, 5)


def test_a_resumed_saver_knows_the_last_step(saver, objects, narrator):
    """What was continued from is not saved again."""
    save(saver, 5)
    resumed = CheckpointStore(objects)
    resumed.claim({})
    resumed.continue_from(resumed.records[1])

    assert Saver(resumed, CheckpointConfig(), narrator).last_step == 5


class SlowStore(MemoryObjectStore):
    """A store whose uploads wait until `open` is set."""

    def __init__(self):
        super().__init__()
        self.open = threading.Event()

    def put(self, key, content):
        self.open.wait(30)
        return super().put(key, content)


@pytest.fixture
def slow(narrator):
    """A saver, and its store, in which uploads wait."""
    objects = SlowStore()
    checkpoints = CheckpointStore(objects)
    checkpoints.claim({})
    saver = Saver(checkpoints, CheckpointConfig(), narrator)
    yield saver, objects
    objects.open.set()
    saver.close()


def failures(narrator, reason):
    return narrator.metrics.registry.get_sample_value("pretrain_checkpoint_failures_total", {"reason": reason})


def test_training_does_not_wait_for_an_upload(slow):
    """`begin` and `poll` return while the upload stands still; nothing is saved before it has ended."""
    saver, _ = slow
    saver.begin(5, snapshot_at(5))
    saver.poll()

    assert saver.last_step is None


def test_a_save_that_comes_too_soon_is_skipped_and_counted(slow, narrator):
    """While one is under way the next is not queued: it is counted as busy, and the one after is saved again."""
    saver, objects = slow
    saver.begin(5, snapshot_at(5))
    saver.begin(10, snapshot_at(10))
    objects.open.set()
    saver.wait()
    save(saver, 15)

    steps = [event["step"] for event in narrator.events.events if event["event"] == "checkpoint saved"]
    assert (steps, failures(narrator, "busy")) == ([5, 15], 1)


def test_by_the_clock_one_save_is_skipped_a_period(narrator, monkeypatch):
    """While one is under way for longer than the period, steps in between are not due, and so not counted."""
    objects, clock = SlowStore(), [0.0]
    monkeypatch.setattr("job.training.saver.time.monotonic", lambda: clock[0])
    checkpoints = CheckpointStore(objects)
    checkpoints.claim({})
    saver = Saver(checkpoints, CheckpointConfig(every=1000, every_seconds=10), narrator)
    due = []
    for number in range(1, 41):
        clock[0] = float(number)
        if saver.due(number):
            due.append(number)
            saver.begin(number, snapshot_at(number))
    objects.open.set()
    monkeypatch.undo()
    saver.close()

    assert due == [10, 20, 30, 40]
    assert failures(narrator, "busy") == 3


def test_a_step_under_way_is_not_begun_again(slow, narrator):
    """The end of the run asks for the step that is being saved: it is neither skipped nor saved twice."""
    saver, objects = slow
    saver.begin(5, snapshot_at(5))
    saver.begin(5, snapshot_at(5))
    objects.open.set()
    saver.wait()

    assert (saver.last_step, failures(narrator, "busy")) == (5, 0)


def test_waiting_ends_when_its_time_is_over(slow):
    """With nothing left of the grace nobody waits for an upload that stands still."""
    saver, _ = slow
    saver.begin(5, snapshot_at(5))
    saver.wait(0.0)

    assert saver.last_step is None


def test_a_save_is_no_slower_for_being_looked_at_late(saver):
    """How long a save took is known though the loop was busy when it ended: the grace is measured against that."""
    began = time.monotonic()
    saver.begin(5, snapshot_at(5))
    saver._flight.outcome.result()
    took = time.monotonic() - began
    time.sleep(0.2)
    saver.wait()

    assert saver.fits(1.25 * took + 0.1)


def test_events_during_an_upload_wait_for_the_next_checkpoint(slow, narrator):
    """What happens after the snapshot is not taken for saved when the upload ends."""
    saver, objects = slow
    narrator.events.record("step", 5)
    snapshot = Snapshot(**{**fields(snapshot_at(5)()), "events": narrator.events.segment()})
    saver.begin(5, lambda: snapshot)
    narrator.events.record("step", 6)
    objects.open.set()
    saver.wait()

    assert [line for line in narrator.events.segment().content.splitlines() if b'"step":6' in line]
    assert narrator.events.segment().count == 1


def fields(snapshot):
    return {name: getattr(snapshot, name) for name in snapshot.__slots__}


def test_what_is_uploaded_is_what_was_copied(slow):
    """Training changes its tensors while the upload waits; the stored ones are those of the snapshot."""
    saver, objects = slow
    weight, memory = torch.ones(3), HostMemory()
    snapshot = Snapshot(**{**fields(snapshot_at(5)()), "model": memory.copy({"weight": weight}.items())})
    saver.begin(5, lambda: snapshot)
    weight.zero_()
    objects.open.set()
    saver.wait()
    (stored,) = (content for key, content in objects.objects.items() if key.endswith("model.safetensors"))

    assert load(stored)["weight"].tolist() == [1, 1, 1]


def test_host_memory_is_taken_once():
    """The second snapshot lies where the first one lay."""
    memory = HostMemory()
    places = [memory.copy({"weight": torch.full((3,), float(n))}.items())["weight"].data_ptr() for n in range(2)]

    assert places[0] == places[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_lost_not_stored(saver, objects, narrator, value):
    """Nothing of it reaches the store, and the loss is counted as what it is."""
    save(saver, 5)
    before = objects.keys("")
    save(saver, 10, value)

    assert (objects.keys("data/"), saver.last_step) == ([key for key in before if key.startswith("data/")], 5)
    assert failures(narrator, "not_finite") == 1


def test_states_that_stay_not_finite_end_the_run_as_diverged(saver):
    """The second in a row ends it, with the code of divergence and not of storage."""
    save(saver, 5, float("nan"))

    with pytest.raises(DivergedError, match="weight not finite"):
        save(saver, 10, float("nan"))


def test_every_stage_is_told(saver, narrator):
    """Seconds of each stage, bytes and the time that training lost are in the event and in the metrics."""
    save(saver, 5)
    (saved,) = (event for event in narrator.events.events if event["event"] == "checkpoint saved")
    value = narrator.metrics.registry.get_sample_value
    exported = {
        stage: value("pretrain_checkpoint_duration_seconds", {"stage": stage}) is not None for stage in saved["seconds"]
    }

    assert exported == dict.fromkeys(["snapshot", "serialize", "upload", "verify", "commit", "total"], True)
    assert value("pretrain_checkpoint_stalled_seconds_total") >= 0
    assert value("pretrain_checkpoint_bytes") == saved["bytes"] > 0
