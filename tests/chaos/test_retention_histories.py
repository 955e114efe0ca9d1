"""Random histories of saves, kills, failures, damage, restarts and stray data, with clocks that jump by ten years.

What is held: no round of retention leaves fewer than two checkpoints that verify in full, if it found two; the best,
the last and every n-th stay; what stands keeps its data; what was pruned or cut is gone in the end. Excluded is damage
from outside to a checkpoint that the present attempt has verified already: it is damaged before its first round.
"""

import hashlib
import time
from random import Random

import pytest

from job.checkpoint import history
from job.checkpoint.record import Record
from job.checkpoint.retention import Retention
from job.checkpoint.store import Checkpoint, CheckpointStore
from job.config import CheckpointConfig
from job.errors import StorageError
from tests.chaos.cases import SCALE, cases, replayable
from tests.chaos.test_two_writers import records_of
from tests.memory_store import MemoryObjectStore

TEN_YEARS = 10 * 365 * 86400.0  # seconds


class Killed(BaseException):
    """The process is gone."""


class Weather(MemoryObjectStore):
    """A store whose writes fail, kill or lie as chance has it: the odds of each call are `odds`."""

    def __init__(self, pick: Random) -> None:
        super().__init__()
        self.pick, self.odds = pick, 0.0

    def _strike(self) -> None:
        if self.pick.random() < self.odds:
            raise self.pick.choice([Killed, StorageError])("struck")

    def put(self, key, content):
        self._strike()
        whole = b"".join(content)
        if key.startswith("data/") and self.pick.random() < self.odds:
            super().put(key, [bytes(len(whole))])  # it says it was stored
        else:
            super().put(key, [whole])
        self._strike()
        return hashlib.sha256(whole).hexdigest()

    def create(self, key, content):
        self._strike()
        created = super().create(key, content)
        self._strike()
        return created

    def delete(self, key):
        self._strike()
        super().delete(key)
        self._strike()


def is_whole(objects: MemoryObjectStore, record: Record) -> bool:
    found = [hashlib.sha256(objects.objects.get(stored.key, b"")).hexdigest() for stored in record.objects]
    return found == [stored.sha256 for stored in record.objects]


class History:
    """One run's life; `trace` is what stood after each event."""

    def __init__(self, pick: Random) -> None:
        self.pick = pick
        self.objects = Weather(pick)
        self.trace: list[tuple[int, ...]] = []
        self.config = CheckpointConfig(
            keep_last=pick.choice([2, 2, 3]), keep_every=pick.choice([None, 4]), keep_best=pick.random() < 0.7
        )
        self.starts = 0
        self.start()

    def standing(self) -> list[Record]:
        return history.checkpoints(records_of(self.objects.objects))

    def whole(self) -> set[int]:
        return {record.seq for record in self.standing() if is_whole(self.objects, record)}

    def start(self, reset: bool = False) -> None:
        """A new process: it claims the run and continues from the newest whole checkpoint."""
        self.starts += 1
        self.objects.odds = 0.0
        self.checkpoints = CheckpointStore(self.objects, attempt=f"{self.starts:032x}")
        self.checkpoints.claim({}, reset=reset)
        self.checkpoints.assert_owner()
        self.retention = Retention(self.checkpoints, self.config)
        newest = next((record for record in reversed(self.standing()) if is_whole(self.objects, record)), None)
        self.step = newest.step if newest else 0
        if newest:
            self.checkpoints.continue_from(newest)

    def restart_damaged(self) -> None:
        """A checkpoint is bent, or loses an object, while nobody runs."""
        keys = [stored.key for record in self.standing() for stored in record.objects]
        for key in self.pick.sample(keys, min(len(keys), self.pick.choice([1, 1, 2]))):
            if self.pick.random() < 0.5:
                self.objects.objects.pop(key, None)
            else:
                self.objects.objects[key] = b"damage"
        self.start()

    def stray(self) -> None:
        """A higher step of another run, and half a save of an attempt that is gone."""
        for key in (f"data/{self.pick.randrange(1, 90):010d}-stray/s{10**6:012d}/model", "data/of another kind"):
            self.objects.objects[key] = b"stray"

    def save(self, odds: float) -> None:
        """A checkpoint, and retention after it."""
        self.step += 1
        self.objects.odds = odds
        loss = self.pick.choice([None, round(self.pick.uniform(0, 5), 1)])
        try:
            self.checkpoints.save(
                Checkpoint(
                    step=self.step,
                    files={"model": [f"weights of {self.step}".encode()], "state": [b"{}"]},
                    events=b"",
                    facts={"chain": f"{self.step:064x}", "eval": {"val_loss": loss}},
                )
            )
            self.retain()
        except Killed:
            self.start()
        except StorageError:
            pass
        self.objects.odds = 0.0

    def retain(self) -> None:
        """A round of retention, held to its promises however it ends."""
        before, whole = self.standing(), self.whole()
        try:
            self.retention.run()
        finally:
            after = {record.seq for record in self.standing()}
            assert len(self.whole()) >= min(2, len(whole)), "fewer than two whole checkpoints are left"
            assert whole & after == self.whole(), "a checkpoint that stands has lost its data"
            assert after >= {record.seq for record in before[-self.config.keep_last :]}, "the last ones went"
            if self.config.keep_every:
                assert after >= {r.seq for r in before if r.step % self.config.keep_every == 0}, "an n-th went"
            losses = [(r.facts["eval"]["val_loss"], r.seq) for r in before if r.facts["eval"]["val_loss"] is not None]
            if self.config.keep_best and losses:
                assert min(losses)[1] in after, "the best went"

    def end_well(self) -> None:
        """Nothing disturbs any more: the next rounds leave no data that the log does not name."""
        self.start()
        for _ in range(4):
            self.save(odds=0.0)
        records = records_of(self.objects.objects)
        pruned = {seq for record in records if record.kind == "prune" for seq in record.facts["pruned"]}
        named = {s.key for r in records if r.kind == "checkpoint" and r.seq not in pruned for s in r.objects}
        strange = {key for key in self.objects.keys("data/") if "stray" in key or key == "data/of another kind"}
        swept = any(record.kind == "prune" and record.term == self.checkpoints.term for record in records)
        assert not swept or set(self.objects.keys("data/")) - strange <= named, "data of the past is left"

    def play(self) -> list[tuple[int, ...]]:
        """A life of some events."""
        for _ in range(self.pick.randrange(4, 16)):
            event = self.pick.choices(
                ["save", "rough", "start", "damage", "stray", "reset"], [50, 25, 8, 8, 5, 2]
            )[0]  # fmt: skip
            if event in ("save", "rough"):
                self.save(odds=0.0 if event == "save" else self.pick.choice([0.02, 0.1]))
            elif event == "damage":
                self.restart_damaged()
            elif event == "stray":
                self.stray()
            else:
                self.start(reset=event == "reset")
            self.trace.append(tuple(record.seq for record in self.standing()))
        self.end_well()
        return self.trace


@pytest.fixture
def clock(monkeypatch):
    """Replaces the wall clock with one that jumps as its chance has it."""

    def jumping(seed: str) -> None:
        pick = Random(seed)
        monkeypatch.setattr(time, "time", lambda: 1.7e9 + pick.uniform(-TEN_YEARS, TEN_YEARS))

    return jumping


def play_histories(count, clock):
    for number, pick in cases(count):
        with replayable(number):
            clock(f"jumps {number}")
            History(pick).play()


def test_retention_keeps_its_promises(clock):
    """Four hundred histories."""
    play_histories(400, clock)


def test_no_clock_decides(clock):
    """The same history under two clocks that jump differently: the same checkpoints stand after every event."""
    for number, pick in cases(40):
        state = pick.getstate()
        traces = []
        for jumps in ("one", "two"):
            pick.setstate(state)
            clock(f"{jumps} {number}")
            traces.append(History(pick).play())
        with replayable(number):
            assert traces[0] == traces[1]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_retention_keeps_its_promises_at_length(clock):
    """A hundred thousand histories."""
    play_histories(int(100_000 * SCALE), clock)
