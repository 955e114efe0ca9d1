"""Whatever is lost, cut, bent or strewn about on storage: a start goes on from the newest checkpoint that is whole."""

import json
from random import Random

import pytest
import torch

from job.checkpoint.record import Record, log_key
from job.checkpoint.store import CheckpointStore
from job.errors import AccessError, JobError, NotFoundError, StorageError
from tests.chaos import small_run
from tests.chaos.cases import SCALE, cases, numbers, replayable
from tests.chaos.harness import write_corpus
from tests.memory_store import MemoryObjectStore

FRESH, RUINED = "fresh", "ruined"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    threads = torch.get_num_threads()
    yield small_run.make(write_corpus(tmp_path_factory.mktemp("corpus")))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def learner(run):
    """Restored again and again, as `pretrain` does when one checkpoint after the other is rejected."""
    return run.learner()


def outcome(objects, learner):
    """What a start goes on from, or in a word why it does not."""
    try:
        return small_run.continue_run(objects, learner) or FRESH
    except NotFoundError:
        return RUINED


def bent(content: bytes, pick: Random) -> bytes:
    """The content with one bit flipped."""
    position = pick.randrange(len(content) * 8)
    flipped = bytearray(content)
    flipped[position // 8] ^= 1 << position % 8
    return bytes(flipped)


def damage(objects: dict[str, bytes], key: str, pick: Random) -> None:
    """Delete, cut or bend an object."""
    content = objects[key]
    kind = pick.randrange(3)
    if kind == 0:
        del objects[key]
    else:
        objects[key] = content[: pick.randrange(len(content))] if kind == 1 else bent(content, pick)


def data_of(run) -> list[list[str]]:
    """Keys of the data objects of each checkpoint, oldest first."""
    folders = sorted({key.rpartition("/")[0] for key in run.objects if key.startswith("data/")})
    return [sorted(key for key in run.objects if key.startswith(f"{folder}/")) for folder in folders]


def test_every_subset_of_damaged_objects(run, learner):
    """Each of the 4,096 subsets of the objects of three checkpoints damaged: the newest whole one, or exit 66."""
    groups = data_of(run)
    keys = [key for group in groups for key in group]
    assert len(keys) == 12
    for number in numbers(1 << len(keys)):
        pick, objects = Random(f"subset/{number}"), run.store()
        hit = {key for place, key in enumerate(keys) if number >> place & 1}
        for key in hit:
            damage(objects.objects, key, pick)
        whole = [saved for saved, group in zip(run.saved, groups, strict=True) if not hit & set(group)]
        with replayable(number):
            assert outcome(objects, learner) == (whole[-1] if whole else RUINED)


JUNK = {
    "log/README": b"hello",
    "log/.000000000005.json.0123.partial": b"{",
    "log/5.json": b"{}",
    "log/000000000002.json.bak": b"{}",
    "log/999999999999.json": b"{}",
    "log/000000000040.json": b"not a record",
    "log/\u0665.json": b"{}",
    "log/\u00b2.json": b"{}",
    "log/-00000000001.json": b"{}",
    "data/0000000001-stray/s000000000099/model.safetensors": b"a higher step that no record names",
    "data/0000000099-stray/s000000000099/state.json": b'{"step":99}',
    "data/x": b"",
    "events/0000000001-stray/s000000000099.jsonl": b"[",
    "export/99/model.safetensors": b"",
    "latest.json": b'{"step":99}',
    "probe/dead": b"",
    "checkpoint-99/model.safetensors": b"another program's",
}


def another_run(run) -> dict[str, bytes]:
    """The same run's keys under a name below this one, with a higher step."""
    return {f"other/{key}": content.replace(b'"step":15', b'"step":95') for key, content in run.objects.items()}


def expected(run, objects: dict[str, bytes]):
    """What should be found, from the bytes alone: nothing here looks at the job's own code."""
    logs = sorted(key for key in run.objects if key.startswith("log/"))
    checkpoints, whole = logs[1:], []
    for saved, key, group in zip(run.saved, checkpoints, data_of(run), strict=True):
        if all(objects.get(name) == run.objects[name] for name in (key, *group)):
            whole.append(saved)
    if whole:
        return whole[-1]
    if any(objects.get(key) == run.objects[key] for key in checkpoints):
        return RUINED
    there = [key for key in objects if key in logs or key == "log/000000000040.json"]
    if not there:
        return RUINED if any(key.startswith("data/") for key in objects) else FRESH
    untouched = there == logs[:1] and objects[logs[0]] == run.objects[logs[0]]
    return FRESH if untouched else RUINED


def strewn(run, pick: Random) -> dict[str, bytes]:
    """The run with damaged records, damaged objects and things of others between its own."""
    objects = dict(run.objects)
    records = [key for key in objects if key.startswith("log/")]
    for key in pick.sample(records, pick.choice([0, 0, 1, 2, 3, 4])):
        damage(objects, key, pick)
    if pick.random() < 0.2:  # a record copied to another's place
        objects[pick.choice(records)] = run.objects[pick.choice(records)]
    data = [key for key in objects if key.startswith("data/")]
    for key in pick.sample(data, pick.choice([0, 0, 1, 2, 5, 12])):
        damage(objects, key, pick)
    objects.update(dict(pick.sample(sorted(JUNK.items()), pick.randrange(4))))
    if pick.random() < 0.2:
        objects.update(another_run(run))
    if pick.random() < 0.1:
        del objects["run.json"]
    return objects


def test_damaged_records_among_junk(run, learner):
    """Records lost, cut, bent or swapped, objects damaged, strange keys between them: the newest whole one."""
    for number, pick in cases(2000):
        objects = strewn(run, pick)
        with replayable(number):
            assert outcome(MemoryObjectStore(objects), learner) == expected(run, objects)


def test_a_damaged_run_goes_on(run, learner):
    """After any such damage the next save is committed, and the start after it continues from there."""
    small = small_run.snapshot_of(run)
    for number, pick in cases(200):
        objects = MemoryObjectStore(strewn(run, pick))
        with replayable(number):
            checkpoints = CheckpointStore(objects)
            checkpoints.claim({})
            checkpoints.save(small)
            assert outcome(objects, learner).step == small.step


def test_a_log_of_2500_records(run, learner):
    """Many attempts, a hundred records damaged: the newest whole checkpoint is found."""
    objects = dict(run.objects)
    for seq in range(5, 2501):
        objects[log_key(seq)] = Record("fence", seq, seq, "ab" * 16, {"reset": False}).content
    pick = Random("many")
    for seq in pick.sample(range(5, 2500), 100):
        damage(objects, log_key(seq), pick)
    del objects[log_key(1)]

    assert outcome(MemoryObjectStore(objects), learner) == run.saved[-1]


def test_a_log_that_lost_its_first_2000_records(run, learner):
    """A rule that expires old objects took the beginning of the log: what is left of it is read."""
    objects = {key: content for key, content in run.objects.items() if not key.startswith("log/")}
    old = json.loads(run.objects[log_key(4)])
    facts = {name: old[name] for name in ("step", "chain", "data_offset", "objects", "events", "eval")}
    record = Record("checkpoint", 2500, 1, old["attempt"], {**facts, "prev_checkpoint_seq": 3})
    objects[log_key(2500)] = record.content

    assert outcome(MemoryObjectStore(objects), learner) == run.saved[-1]


def test_a_log_that_is_gone_is_no_fresh_run(run, learner):
    """Data of checkpoints without any log is a run that has lost it: exit 66, never step 0."""
    objects = {key: content for key, content in run.objects.items() if not key.startswith("log/")}

    assert outcome(MemoryObjectStore(objects), learner) == RUINED


class Refusing(MemoryObjectStore):
    """The call with this number is not answered."""

    def __init__(self, objects, number, error):
        super().__init__(objects)
        self.calls, self._number, self._error = 0, number, error

    def _count(self):
        self.calls += 1
        if self.calls == self._number:
            raise self._error

    def get(self, key, target, *watching):
        self._count()
        return super().get(key, target, *watching)

    def read(self, key):
        self._count()
        return super().read(key)

    def size(self, key):
        self._count()
        return super().size(key)

    def keys(self, prefix):
        self._count()
        return super().keys(prefix)


@pytest.mark.parametrize("error", [AccessError("403"), StorageError("503")], ids=["refused", "unanswered"])
def test_no_answer_is_no_absence(run, learner, error):
    """Any single reading refused or unanswered ends the start with that error: not an older step, never step 0."""
    calls = Refusing(run.objects, 0, error)
    outcome(calls, learner)
    assert calls.calls > 10
    for number in range(1, calls.calls + 1):
        with pytest.raises(JobError) as ended:
            small_run.continue_run(Refusing(run.objects, number, error), learner)
        assert ended.value is error


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_damaged_records_among_junk_at_length(run, learner):
    """The same, many times as often."""
    for number, pick in cases(int(60_000 * SCALE)):
        objects = strewn(run, pick)
        with replayable(number):
            assert outcome(MemoryObjectStore(objects), learner) == expected(run, objects)
