"""Retention: what goes, and that two verified checkpoints stay whatever happens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from job.checkpoint import history
from job.checkpoint.retention import Retention, verify
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import Rejected, fetch
from job.config import CheckpointConfig
from job.errors import AccessError, FencedError, StorageError
from tests.memory_store import MemoryObjectStore
from tests.unit.checkpoint_support import Wrapped, checkpoint_at, claimed, standing


@pytest.fixture
def objects():
    return MemoryObjectStore()


def run(objects, losses, config=None, **options):
    """Save a checkpoint per loss with retention after each; the steps that stand."""
    checkpoints = claimed(objects)
    retention = Retention(checkpoints, config or CheckpointConfig(**options))
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(checkpoint_at(step, loss))
        retention.run()
    return standing(objects)


def whole(objects, record, folder):
    try:
        fetch(objects, record, folder)
    except Rejected:
        return False
    return True


def test_the_last_and_the_best_stay(objects):
    """Of six checkpoints the two newest and the lowest loss are left."""
    assert run(objects, [5, 3, 4, 4, 4, 4]) == [2, 5, 6]


def test_every_nth_stays_for_good(objects):
    """Checkpoints at a multiple of keep_every are never pruned."""
    assert run(objects, [None] * 9, keep_every=3) == [3, 6, 8, 9]


def test_pruned_data_is_gone_and_the_log_is_not(objects):
    """Pruning deletes data objects, never records or events."""
    run(objects, [None] * 4)

    assert len(objects.keys("data/")) == 4
    assert len(objects.keys("log/")) == 1 + 4 + 2
    assert len(objects.keys("events/")) == 4


def test_nothing_goes_while_fewer_than_two_are_whole(objects):
    """With a damaged newest checkpoint the older ones are kept."""
    checkpoints = claimed(objects)
    retention = Retention(checkpoints, CheckpointConfig(keep_best=False))
    for step in (1, 2, 3):
        record = checkpoints.save(checkpoint_at(step)).record
    objects.objects[record.objects[0].key] = b"damaged!"

    outcome = retention.run()

    assert (standing(objects), list(outcome.rejected)) == ([1, 2, 3], [record.seq])


def test_a_fenced_attempt_deletes_nothing(objects):
    """Retention asks the log who owns the run before it prunes."""
    old = claimed(objects)
    for step in (1, 2, 3):
        old.save(checkpoint_at(step))
    claimed(objects)
    with pytest.raises(FencedError):
        Retention(old, CheckpointConfig()).run()

    assert standing(objects) == [1, 2, 3]


def test_data_of_a_cut_save_is_swept_by_a_later_attempt(objects):
    """Objects that no record names go once a newer attempt prunes."""
    objects.put("data/0000000001-dead/s000000000009/model.safetensors", [b"half"])
    claimed(objects)  # takes term 1, so that the next attempt's is higher
    run(objects, [None] * 3)

    assert not objects.keys("data/0000000001-dead/")


def test_a_cut_deletion_is_finished_by_a_later_attempt(objects):
    """Objects of a pruned record that were left behind are swept."""

    def delete(key):
        raise StorageError("gone away")

    checkpoints = claimed(objects)
    for step in (1, 2, 3):
        checkpoints.save(checkpoint_at(step))
    checkpoints.objects = Wrapped(objects, delete=delete)
    with pytest.raises(StorageError):
        Retention(checkpoints, CheckpointConfig()).run()
    run(objects, [None] * 3)
    log = CheckpointStore(objects).log
    log.refresh()
    named = {stored.key for record in history.checkpoints(log.records) for stored in record.objects}

    assert set(objects.keys("data/")) == named


def test_writes_cut_in_earlier_attempts_are_abandoned(objects):
    """What earlier attempts began to write is freed once a newer one prunes; its own, newer ones' and views stay."""
    claimed(objects)  # term 1
    earlier = {"data/0000000001-dead/s000000000009/model.safetensors", "events/0000000001-dead/s000000000009.jsonl"}
    later = {"data/0000000002-own/s000000000009/a", "data/0000000099-new/s000000000009/a", "data/odd", "events.jsonl"}
    objects.begun |= earlier | later | {"log/000000000001.json", "log/000000000099.json"}
    run(objects, [None] * 3)

    assert objects.begun == later | {"log/000000000099.json"}


def test_a_store_that_does_not_show_unfinished_writes(objects):
    """Where unfinished writes cannot be listed or freed, that is one warning, and checkpoints are pruned as ever."""

    def refuse(prefix):
        raise AccessError("no right to list uploads")

    with capture_logs() as logs:
        kept = run(Wrapped(objects, unfinished=refuse), [None] * 6)

    assert kept == [5, 6]
    assert [line["log_level"] for line in logs] == ["warning"]
    assert "no right to list uploads" in logs[0]["reason"]


def test_only_the_newest_are_read_back(objects):
    """However many are kept for good, no round of a later attempt reads more than the newest two, and those once."""
    settings, read = CheckpointConfig(keep_last=3, keep_every=2), []
    run(objects, [None] * 9, settings)

    def digest(key):
        read.append(int(key.split("/s")[1][:12]))
        return objects.digest(key)

    checkpoints = claimed(Wrapped(objects, digest=digest))
    retention = Retention(checkpoints, settings)
    for step in range(10, 16):
        checkpoints.save(checkpoint_at(step))
        retention.run()

    assert read == [step for step in (10, 9, 12, 11, 14, 13) for _ in ("model", "state")]


def test_checkpoints_from_before_a_reset_go(objects):
    """After a restart from scratch the old line is pruned like any other, once two of the new line are whole."""
    run(objects, [1.0, 2.0, 3.0])
    checkpoints = claimed(objects, reset=True)
    retention, left = Retention(checkpoints, CheckpointConfig()), []
    for step in (1, 2):
        checkpoints.save(checkpoint_at(step, 5.0))
        retention.run()
        left.append(len(objects.keys("data/")))

    assert left == [3 * 2 + 2, 2 * 2]
    assert standing(objects) == [1, 2]


def test_verification_reads_every_byte_and_keeps_none(objects, monkeypatch):
    """A full verification hashes each object where it is: nothing is downloaded to a file."""
    checkpoints = claimed(objects)
    record = checkpoints.save(checkpoint_at(1)).record
    monkeypatch.setattr(objects, "get", None)
    verify(checkpoints, record, "full")
    objects.objects[record.objects[0].key] = b"damaged!"

    with pytest.raises(Rejected, match="has sha256"):
        verify(checkpoints, record, "full")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_two_whole_checkpoints_remain_once_there_were_two(data, tmp_path_factory):
    """Over random histories of saves, restarts, damage and cut deletions, two whole checkpoints always stand."""
    folder = tmp_path_factory.mktemp("fetched")
    objects = MemoryObjectStore()
    config = CheckpointConfig(
        keep_last=data.draw(st.integers(2, 3)),
        keep_every=data.draw(st.none() | st.integers(2, 4)),
        keep_best=data.draw(st.booleans()),
    )
    checkpoints = claimed(objects)
    retention, step, twice = Retention(checkpoints, config), 0, False
    for _ in range(data.draw(st.integers(3, 12))):
        action = data.draw(st.sampled_from(["save", "save", "save", "restart", "damage", "cut"]))
        if action == "restart":
            checkpoints = claimed(objects)
            retention = Retention(checkpoints, config)
            continue
        step += 1
        record = checkpoints.save(checkpoint_at(step, data.draw(st.none() | st.floats(0, 9)))).record
        if action == "damage":
            objects.objects[record.objects[0].key] = b"weightz" + str(step).encode()
        budget = data.draw(st.integers(0, 3)) if action == "cut" else 1 << 30
        checkpoints.objects = Wrapped(objects, delete=_until(objects.delete, budget))
        try:
            retention.run()
        except StorageError:
            checkpoints = claimed(objects)
            retention = Retention(checkpoints, config)
        log = CheckpointStore(objects).log
        log.refresh()
        count = sum(whole(objects, standing, folder) for standing in history.checkpoints(log.records))
        assert count >= 2 or not twice
        twice = twice or count >= 2


def _until(verb, budget):
    """`verb` for `budget` calls, then a StorageError."""
    left = iter(range(budget))

    def limited(key):
        if next(left, None) is None:
            raise StorageError("injected")
        verb(key)

    return limited
