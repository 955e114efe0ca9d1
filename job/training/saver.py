"""Saving as the loop sees it: a copy of the state is taken, everything else happens in a thread of its own.

One save is under way at a time. What became of it is told in the loop's own thread, at a step boundary, so that
narrator, events and state are never shared between threads.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from job.checkpoint.record import Record
from job.checkpoint.retention import Pruned, Retention
from job.checkpoint.store import CheckpointStore, Saved
from job.config import CheckpointConfig
from job.errors import AccessError, DivergedError, JobError, StorageError
from job.training.narrator import Narrator
from job.training.snapshot import Snapshot

_HASTE = 1.25  # a save may take this much longer than those before did
_MEASURED = 3  # saves by which the next is judged: the quickest, because training stands still while the last is made
_NICE = 10  # where cores are few, training goes first
_TICK = 0.2  # seconds between two looks while waiting
_LOST = (StorageError, AccessError, DivergedError, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A save under way."""

    snapshot: Snapshot
    started: float
    stalled: float  # seconds for which training stood still
    outcome: Future[tuple[Saved, float, float]]


class Saver:
    """Commits checkpoints one at a time and prunes old ones after each.

    Args:
        checkpoints: The claimed store.
        config: Periods, retention, how many failures are borne.
        narrator: Told of everything that happens.
        may_delete: False when the store refuses deletions: retention is off.
        first_saved: Called in the thread, once, after the first checkpoint stands.
    """

    def __init__(
        self,
        checkpoints: CheckpointStore,
        config: CheckpointConfig,
        narrator: Narrator,
        may_delete: bool = True,
        first_saved: Callable[[], None] | None = None,
    ) -> None:
        self._checkpoints, self._ranks = checkpoints, checkpoints.ranks
        self._config = config
        self._narrator = narrator
        self._retention = Retention(checkpoints, config) if may_delete else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save", initializer=_step_back)
        self._flight: _Flight | None = None
        self._pruning: Future[Pruned] | None = None
        self._views: Future[None] | None = None
        self._first_saved = first_saved
        self._failures = 0
        self._seconds: deque[float] = deque(maxlen=_MEASURED)
        self._last_begun = time.monotonic()
        self.last_step: int | None = None
        self.stand_on(checkpoints.last)

    def stand_on(self, record: Record | None) -> None:
        """Say that the run stands on this checkpoint, or on none."""
        self.last_step = record.step if record else None
        self._narrator.stands_on(record, self._checkpoints.folder_of(record) if record else None)

    def due(self, step: int) -> bool:
        """Whether the config wants a checkpoint now."""
        seconds = self._config.every_seconds
        late = seconds is not None and self._ranks.led(lambda: time.monotonic() - self._last_begun >= seconds)
        return step % self._config.every == 0 or late

    def period(self, step_seconds: float) -> float:
        """Seconds from one checkpoint to the next when a step takes so many."""
        return min(self._config.every * step_seconds, self._config.every_seconds or float("inf"))

    def fits(self, seconds: float) -> bool:
        """Whether a save, if it is no slower than those before, ends within `seconds`."""
        return self._ranks.led(lambda: seconds > 0 and _HASTE * min(self._seconds, default=0.0) < seconds)

    def begin(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Save what `take` copies, unless this step is saved already or another save is still under way.

        Raises:
            StorageError: `checkpoint.max_failures` saves in a row were lost.
        """
        if self._flight is not None and self._flight.snapshot.step != step:
            self._narrator.save_skipped(step, self._flight.snapshot.step)
            self._last_begun = time.monotonic()  # by the clock, the next is due a period after the one that is skipped
        if not self._ranks.led(lambda: self._flight is None and self.last_step != step):
            return
        while self._flight is not None:  # the first rank knows already what has become of it
            wait_for([self._flight.outcome])
            self.poll()
        started = self._last_begun = time.monotonic()
        try:
            snapshot = take()
        except MemoryError as error:
            if self._ranks.place.world_size > 1:
                raise  # the others have taken theirs, or wait for a share of a tensor
            self._lost(step, error)
            return
        stalled = time.monotonic() - started
        self._narrator.saving(step)
        self._flight = _Flight(snapshot, started, stalled, self._thread.submit(self._store, snapshot))

    def _store(self, snapshot: Snapshot) -> tuple[Saved, float, float]:
        """In the thread: what became of the snapshot, the seconds to make a checkpoint of it, and when it was saved."""
        started = time.monotonic()
        try:
            checkpoint = snapshot.checkpoint()
        except _LOST as error:
            self._checkpoints.forgo(snapshot.step, error)
            raise
        serializing = time.monotonic() - started
        return self._checkpoints.save(checkpoint), serializing, time.monotonic()

    def poll(self) -> None:
        """Tell what has become of what is under way, if that has ended.

        Raises:
            FencedError: A newer attempt owns the run.
            StorageError: `checkpoint.max_failures` saves in a row were lost.
            DivergedError: The same, and the last one because the state was not finite.
        """
        has_landed = self._flight is not None and self._flight.outcome.done()  # then what came before has ended too
        if self._pruning is not None and self._pruning.done():
            pruning, self._pruning = self._pruning, None
            self._pruned(pruning)
        if self._flight is not None and has_landed:
            flight, self._flight = self._flight, None
            self._landed(flight)
        if (reporter := self._narrator.reporter) and (drawn := reporter.poll()):
            self._publish(drawn)

    def wait(self, seconds: float = float("inf")) -> None:
        """Wait for what is under way, at most so long. Raises as `poll` does."""
        until = time.monotonic() + seconds
        while (under_way := self._under_way()) and time.monotonic() < until:
            wait_for(under_way, timeout=max(0.0, min(_TICK, until - time.monotonic())))
            self.poll()

    def _under_way(self) -> list[Future[Any]]:
        views = None if self._views is None or self._views.done() else self._views
        futures = (self._flight.outcome if self._flight else None, self._pruning, views)
        return [future for future in futures if future is not None]

    def close(self) -> None:
        """Wait for what is under way, whatever comes of it: the process is about to end."""
        with suppress(JobError):
            self.wait()
        self._thread.shutdown(cancel_futures=True)

    def _landed(self, flight: _Flight) -> None:
        try:
            saved, serializing, ended = flight.outcome.result()
        except _LOST as error:
            self._lost(flight.snapshot.step, error)
            return
        self._failures = 0
        self._seconds.append(ended - flight.started)
        stages = {"snapshot": flight.stalled, "serialize": serializing, **saved.seconds, "total": self._seconds[-1]}
        self.stand_on(saved.record)
        self._narrator.saved(saved.record, stages, flight.snapshot.events)
        if self._retention is not None:
            self._pruning = self._thread.submit(self._retention.run)
        self._publish(self._narrator.views(self._checkpoints))
        if reporter := self._narrator.reporter:
            reporter.begin()
        if self._first_saved is not None:
            self._thread.submit(self._first_saved)
            self._first_saved = None

    def _publish(self, views: Mapping[str, bytes]) -> None:
        self._views = self._thread.submit(self._narrator.store_views, self._checkpoints.objects, views)

    def _lost(self, step: int, error: Exception) -> None:
        self._failures += 1
        self._narrator.save_failed(step, error, self._failures)
        if self._failures < self._config.max_failures:
            return
        raise (DivergedError if isinstance(error, DivergedError) else StorageError)(
            f"{self._failures} saves in a row were lost, the last at step {step}: {error}; "
            f"{self._narrator.status.standing()}"
        ) from error

    def _pruned(self, pruning: Future[Pruned]) -> None:
        try:
            self._narrator.pruned(pruning.result())
        except (StorageError, AccessError) as error:
            self._narrator.pruning_failed(error)


def _step_back() -> None:
    """Let this thread have what training leaves; only Linux has a priority for each thread."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
