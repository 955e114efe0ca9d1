"""Two attempts at one run, in every order of their calls to the store, each crashing anywhere: one line of checkpoints.

The attempts do what `pretrain` does: read the log, write a fence, read the log again, continue from the newest
checkpoint, save more with retention after each, and write the record of completion.
"""

import hashlib
import json
import time
from functools import lru_cache

import pytest

from job.checkpoint import history
from job.checkpoint.record import Record, parse
from job.checkpoint.retention import Retention
from job.checkpoint.store import Checkpoint, CheckpointStore
from job.config import CheckpointConfig
from job.errors import JobError, NotFoundError, StorageError
from job.training.resume import load_newest
from tests.chaos.interleaving import Explorer, Objects, Program
from tests.memory_store import MemoryObjectStore


@pytest.fixture(scope="module", autouse=True)
def _a_clock_that_stands():
    """A record that is made again for the same place is the same record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: 1.7e9)
        yield


def attempt(name: str, commits: int) -> Program:
    """An attempt at the run, as `pretrain` makes it."""

    def program(objects) -> str:
        checkpoints = CheckpointStore(objects, attempt=name)
        retention = Retention(checkpoints, CheckpointConfig(keep_best=False))
        try:
            checkpoints.log.refresh()
            checkpoints.claim({})
            checkpoints.assert_owner()
            first = resumed(checkpoints)
            lost = 0
            for step in range(first + 1, first + commits + 1):
                try:
                    checkpoints.save(snapshot(step, name))
                except StorageError:  # as `Saver` bears it
                    lost += 1
                    if lost == CheckpointConfig().max_failures:
                        raise
                    continue
                lost = 0
                retention.run()
            checkpoints.complete({"step": first + commits})
        except JobError as error:
            return type(error).__name__
        return "done"

    return program


def resumed(checkpoints: CheckpointStore) -> int:
    """Continue from the newest checkpoint that is whole; its step."""
    candidates = history.checkpoints(checkpoints.records)[::-1]
    if not candidates:
        return 0
    try:
        loaded = load_newest(checkpoints, candidates, lambda folder, _: (folder / "model").read_bytes())
    except NotFoundError:
        checkpoints.assert_owner()
        raise
    name, step = loaded.value.decode().split()
    assert (name, int(step)) == (loaded.record.attempt, loaded.record.step)
    checkpoints.continue_from(loaded.record)
    return loaded.record.step


def snapshot(step: int, name: str) -> Checkpoint:
    return Checkpoint(
        step=step,
        files={"model": [f"{name} {step}".encode()]},
        events=b"",
        facts={"chain": f"{step:064x}", "eval": {"val_loss": None}},
    )


read = lru_cache(10_000)(parse)


def records_of(objects: Objects) -> list[Record]:
    """The log, which is dense."""
    keys = sorted(key for key in objects if key.startswith("log/"))
    assert keys == [f"log/{seq:012d}.json" for seq in range(1, len(keys) + 1)]
    return [read(objects[key], seq) for seq, key in enumerate(keys, start=1)]


def check(objects: Objects) -> None:
    """What holds at every instant: one line of records and checkpoints, and whatever stands is whole."""
    records = records_of(objects)
    term, before, standing, last = 0, None, {}, None
    for record in records:
        assert record.facts["prev_record_sha256"] == before, f"record {record.seq} does not follow the one before"
        before = json.loads(objects[f"log/{record.seq:012d}.json"])["record_sha256"]
        if record.kind == "fence":
            assert record.term == record.seq
            term = record.seq
        assert record.term == term, f"record {record.seq} of term {record.term} stands after the fence of {term}"
        if record.kind == "checkpoint":
            assert record.facts["prev_checkpoint_seq"] == last, f"record {record.seq} starts a second line"
            last = record.seq
            standing[record.seq] = record
        if record.kind == "prune":
            for seq in record.facts["pruned"]:
                del standing[seq]
            assert len(standing) >= 2
    for record in standing.values():
        for stored in record.objects:
            content = objects.get(stored.key, b"")
            assert hashlib.sha256(content).hexdigest() == stored.sha256, f"{stored.key} of record {record.seq} is gone"


def explored(commits: int, before: Objects | None = None, lost_answers: int = 0):
    """Two attempts in every order: who ended how, with the owner of the last fence, and the explorer."""
    explorer = Explorer([attempt("a", commits), attempt("b", commits)], check, before or {}, lost_answers)
    endings = set()
    for outcomes, objects in explorer.run():
        fences = [record for record in records_of(objects) if record.kind == "fence"]
        endings.add((*outcomes, fences[-1].attempt))
    return endings, explorer


@pytest.fixture(scope="module")
def on_an_earlier_run():
    """Explored from two checkpoints and what a save left behind that was cut: the first checkpoint prunes."""
    objects = MemoryObjectStore()
    assert attempt("z", commits=2)(objects) == "done"
    objects.put("data/0000000001-z/s000000000009/model", [b"cut"])
    return explored(commits=1, before=objects.objects)


ONE_LINE = {("done", "done", "a"), ("done", "done", "b"), ("done", "FencedError", "a"), ("FencedError", "done", "b")}


def test_two_writers_on_an_empty_store():
    """In no order, whoever stops wherever, is a record out of line or a standing checkpoint not whole.

    Who wrote the last fence is done; the other was done before, or is told that it is fenced: nothing else.
    """
    endings, explorer = explored(commits=1)

    assert endings == ONE_LINE
    assert explorer.states > 5_000


def test_two_writers_on_a_run_that_is_pruned(on_an_earlier_run):
    """The same where each attempt prunes, deletes and sweeps with its first checkpoint."""
    endings, explorer = on_an_earlier_run

    assert endings == ONE_LINE
    assert explorer.states > 10_000


def test_an_answer_that_is_lost_changes_nothing():
    """The same when any one commit is made and its writer is not told."""
    endings, explorer = explored(commits=1, lost_answers=1)

    assert endings == ONE_LINE
    assert explorer.states > 30_000


def test_whatever_two_writers_leave_is_continued(on_an_earlier_run):
    """Wherever both stop, a third goes on from the newest checkpoint, and leaves no data but what its log names."""
    _, explorer = on_an_earlier_run
    for left in explorer.contents:
        objects = MemoryObjectStore(left)
        newest = [record.step for record in records_of(left) if record.kind == "checkpoint"][-1]
        assert attempt("c", commits=3)(objects) == "done"
        check(objects.objects)
        records = records_of(objects.objects)
        standing = history.checkpoints(records)
        assert [record.step for record in standing] == [newest + 2, newest + 3]
        named = {stored.key for record in standing for stored in record.objects}
        assert set(objects.keys("data/")) == named


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("commits", "lost_answers"), [(2, 0), (3, 0), (2, 1), (1, 2)])
def test_two_writers_at_length(commits, lost_answers):
    """Three checkpoints each in every order, and fewer with any commit's answer lost."""
    assert explored(commits, lost_answers=lost_answers)[0] == ONE_LINE
