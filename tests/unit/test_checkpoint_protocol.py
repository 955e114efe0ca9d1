"""The commit log and the checkpoint store over it: order, publication, fencing; no torch."""

import pytest

from job.checkpoint import history
from job.checkpoint.log import CommitLog
from job.checkpoint.probe import probe
from job.checkpoint.record import log_key
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import Rejected, fetch
from job.errors import AccessError, ConfigError, FencedError, StorageError
from tests.memory_store import MemoryObjectStore
from tests.unit.checkpoint_support import Wrapped, checkpoint_at, claimed, standing


@pytest.fixture
def objects():
    return MemoryObjectStore()


def test_a_saved_checkpoint_is_the_newest(objects, tmp_path):
    """What was saved is found by another process and comes back byte for byte."""
    claimed(objects).save(checkpoint_at(5))
    reader = CheckpointStore(objects)
    reader.log.refresh()
    fetch(objects, history.checkpoints(reader.records)[-1], tmp_path)

    assert (tmp_path / "model.safetensors").read_bytes() == b"weights5"


@pytest.mark.parametrize("writes", range(4))
def test_half_saved_checkpoint_is_invisible(objects, writes):
    """A save that dies after any of its writes leaves the previous checkpoint the newest."""
    checkpoints = claimed(objects)
    checkpoints.save(checkpoint_at(1))
    left = iter(range(writes))

    def put(key, content):
        if next(left, None) is None:
            raise StorageError(f"put {key}: injected")
        objects.put(key, content)

    def create(key, content):
        raise StorageError(f"create {key}: injected")

    broken = claimed(objects)
    broken.objects = broken.log._store = Wrapped(objects, put=put, create=create)
    with pytest.raises(StorageError):
        broken.save(checkpoint_at(2))

    assert standing(objects) == [1]


def test_an_older_attempt_is_fenced_at_its_next_commit(objects):
    """The first of two writers loses its save, and removes what it had uploaded for it."""
    old = claimed(objects)
    new = claimed(objects)
    with pytest.raises(FencedError, match=f"attempt {new.attempt} owns this run"):
        old.save(checkpoint_at(1))

    assert not objects.keys("data/")


def test_an_attempt_that_has_read_a_newer_fence_commits_nothing(objects):
    """A fence that was read with the log ends the older attempt as one that it runs into does."""
    old, new = claimed(objects), claimed(objects)
    old.log.refresh()
    with pytest.raises(FencedError):
        old.save(checkpoint_at(1))
    new.save(checkpoint_at(2))

    assert standing(objects) == [2]


def test_the_newer_attempt_goes_on(objects):
    """The second of two writers is not disturbed by the first."""
    old, new = claimed(objects), claimed(objects)
    with pytest.raises(FencedError):
        old.save(checkpoint_at(1))
    new.save(checkpoint_at(2))

    assert standing(objects) == [2]


def test_a_lost_answer_to_a_commit_is_resolved_by_reading(objects):
    """A commit that was written although its answer was lost counts once."""
    checkpoints = claimed(objects)

    def create(key, content):
        objects.create(key, content)
        raise StorageError("the connection was reset after the request")

    checkpoints.log._store = Wrapped(objects, create=create)
    checkpoints.save(checkpoint_at(3))

    assert standing(objects) == [3]


def test_own_record_behind_a_412_is_recognised(objects):
    """A retried conditional write that meets its own record is a success."""
    checkpoints = claimed(objects)

    def create(key, content):
        objects.create(key, content)
        return objects.create(key, content)

    checkpoints.log._store = Wrapped(objects, create=create)

    assert checkpoints.save(checkpoint_at(3)).record.step == 3


def test_an_earlier_save_that_landed_late_is_kept(objects):
    """A save thought lost that turns up in the log stays, and the next one follows it."""
    checkpoints = claimed(objects)
    late = {}

    def create(key, content):
        late[key] = content
        raise StorageError("no answer")

    checkpoints.log._store = Wrapped(objects, create=create)
    with pytest.raises(StorageError):
        checkpoints.save(checkpoint_at(1))
    checkpoints.log._store = objects
    for key, content in late.items():
        objects.create(key, content)
    checkpoints.save(checkpoint_at(2))

    assert standing(objects) == [1, 2]


def test_no_two_saves_of_an_attempt_share_a_key(objects):
    """A second save of a step writes new objects: an unresolved record may name the first ones."""
    checkpoints = claimed(objects)
    first = checkpoints.save(checkpoint_at(1)).record
    second = checkpoints.save(checkpoint_at(1)).record

    assert not {stored.key for stored in first.objects} & {stored.key for stored in second.objects}


def test_refusal_is_not_absence(objects):
    """A log that may not be listed is an error, never an empty run."""

    def keys(prefix):
        raise AccessError("403")

    with pytest.raises(AccessError):
        CheckpointStore(Wrapped(objects, keys=keys)).log.refresh()


def test_a_listing_that_lags_behind_is_completed(objects):
    """Records that the listing does not show yet are read all the same."""
    checkpoints = claimed(objects)
    for step in (1, 2, 3):
        checkpoints.save(checkpoint_at(step))

    def keys(prefix):
        return objects.keys(prefix)[:1]

    log = CommitLog(Wrapped(objects, keys=keys))
    log.refresh()

    assert [record.seq for record in log.records] == [1, 2, 3, 4]


def test_a_damaged_record_is_set_aside(objects):
    """A record that fails its own hash is named as damaged; the others stand."""
    checkpoints = claimed(objects)
    for step in (1, 2):
        checkpoints.save(checkpoint_at(step))
    objects.objects[log_key(3)] = objects.objects[log_key(3)].replace(b'"step":2', b'"step":9')
    log = CommitLog(objects)
    log.refresh()

    assert ([record.step for record in history.checkpoints(log.records)], list(log.damaged)) == ([1], [3])


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        ("missing", lambda content: None),
        ("size", lambda content: content[:-1]),
        ("sha256", lambda content: bytes([content[0] ^ 1]) + content[1:]),
    ],
)
def test_damage_to_an_object_is_named(objects, tmp_path, reason, damage):
    """A missing, cut or bent object rejects its checkpoint with the reason."""
    record = claimed(objects).save(checkpoint_at(1)).record
    key = record.objects[0].key
    content = damage(objects.objects.pop(key))
    if content is not None:
        objects.objects[key] = content
    with pytest.raises(Rejected) as rejected:
        fetch(objects, record, tmp_path)

    assert rejected.value.reason == reason


def test_reset_makes_earlier_checkpoints_ineligible(objects):
    """After --restart-from-scratch nothing from before is continued."""
    claimed(objects).save(checkpoint_at(7))
    claimed(objects, reset=True).save(checkpoint_at(1))

    assert standing(objects) == [1]


def test_completion_is_void_once_more_is_saved(objects):
    """A run with more steps after its completion is not complete."""
    checkpoints = claimed(objects)
    checkpoints.save(checkpoint_at(1))
    checkpoints.complete({"step": 1})
    before = history.completion(checkpoints.records)
    checkpoints.save(checkpoint_at(2))

    assert (before.step, history.completion(checkpoints.records)) == (1, None)


def test_records_name_the_one_before(objects):
    """Each record carries the hash of its predecessor."""
    checkpoints = claimed(objects)
    checkpoints.save(checkpoint_at(1))
    fence, saved = checkpoints.records

    assert saved.facts["prev_record_sha256"] == fence.sha256


def test_a_store_that_overwrites_is_refused(objects):
    """Without conditional writes the job does not start."""

    def create(key, content):
        objects.put(key, [content])
        return True

    with pytest.raises(ConfigError, match="does not honour conditional writes"):
        probe(Wrapped(objects, create=create), "a")


def test_a_person_may_vouch_for_a_single_writer(objects):
    """--single-writer-unsafe accepts a store that overwrites."""

    def create(key, content):
        objects.put(key, [content])
        return True

    assert probe(Wrapped(objects, create=create), "a", single_writer_unsafe=True)


def test_a_store_that_refuses_deletion_will_do(objects):
    """No right to delete is found out at the start, and is no error."""

    def delete(key):
        raise AccessError("403")

    assert not probe(Wrapped(objects, delete=delete), "a")


def test_the_probe_leaves_nothing(objects):
    """The object that was written to try the store is removed again."""
    probe(objects, "a")

    assert objects.objects == {}
