"""A commit whose answer is lost: written or not, asked again or killed over it, it counts once."""

import pytest

from job.checkpoint import history
from job.checkpoint.store import CheckpointStore
from job.errors import StorageError
from tests.chaos.cases import SCALE, cases, replayable
from tests.chaos.test_retention_histories import Killed
from tests.chaos.test_two_writers import check, records_of, snapshot
from tests.memory_store import MemoryObjectStore

SAVES = 10


class Ambiguous(MemoryObjectStore):
    """Conditional writes of records that are made or not, and answered, not answered or answered by death."""

    def __init__(self, pick, fates):
        super().__init__()
        self.pick, self.fates, self.own_412 = pick, fates, 0

    def create(self, key, content):
        if not key.startswith("log/"):
            return super().create(key, content)
        self.own_412 += self.objects.get(key) == content
        fate = self.pick.choice(self.fates)
        if fate.startswith("before"):
            raise Killed if fate.endswith("killed") else StorageError("reset before it was made")
        created = super().create(key, content)
        if fate.startswith("after"):
            raise Killed if fate.endswith("killed") else StorageError("reset after it was made")
        if fate == "twice":  # botocore asked again by itself
            self.own_412 += 1
            return super().create(key, content)
        return created


def attempt(objects, number):
    """Claims the run and saves on from its newest checkpoint until ten steps are saved."""
    checkpoints = CheckpointStore(objects, attempt=f"{number:032x}")
    checkpoints.claim({})
    standing = history.checkpoints(checkpoints.records)
    if standing:
        checkpoints.continue_from(standing[-1])
    for step in range(standing[-1].step + 1 if standing else 1, SAVES + 1):
        checkpoints.save(snapshot(step, "a"))


def saved(objects):
    check(objects.objects)
    return [record.step for record in records_of(objects.objects) if record.kind == "checkpoint"]


def play(count, fates):
    """How often an attempt met its own record behind a 412, over all cases."""
    met = 0
    for number, pick in cases(count):
        objects, attempts = Ambiguous(pick, fates), 0
        with replayable(number):
            while True:
                attempts += 1
                try:
                    attempt(objects, attempts)
                    break
                except Killed:
                    assert attempts < 200
            assert saved(objects) == [*range(1, SAVES + 1)]
            met += objects.own_412
    return met


@pytest.mark.parametrize(
    "fates",
    [
        ("after",),
        ("twice",),
        ("ok", "after", "before", "twice"),
        ("ok", "ok", "ok", "after killed", "before killed"),
        ("ok", "after", "before", "twice", "after killed", "before killed"),
    ],
    ids=lambda fates: ", ".join(sorted(set(fates))),
)
def test_a_commit_counts_once(fates):
    """Whatever becomes of the answer to a commit, each checkpoint has one record, and the line has no gap."""
    met = play(100, fates)

    assert met or fates[0] != "twice"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_commit_counts_once_at_length():
    """The same, many times."""
    assert play(int(10_000 * SCALE), ("ok", "after", "before", "twice", "after killed", "before killed")) > 0
