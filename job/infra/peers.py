"""Which of the other processes are alive, and why the first of them ended: said through a store, never a collective.

A process that dies leaves the others in a collective that may never return. So each tells the store that it is alive,
looks after the next one in the ring, and whoever ends says why before it goes: all end with that reason and its code.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from job import errors
from job.errors import JobError

BEAT = 1.0  # seconds between two signs of life
SILENCE = 30.0  # without one a process is gone
BROKEN_SILENCE = 6.0  # the same once a connection has broken
LEISURE = 2.0  # to end by itself, before a process that hangs in a collective is ended
TOGETHER = 10.0  # for which the first rank, whose store it may be, waits for the others to end too
MOMENT = 1.0
CAUSE = "cause"


class Store(Protocol):
    """What is used of torch's TCPStore."""

    def add(self, key: str, amount: int, /) -> int: ...
    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


def plain(error: BaseException) -> dict[str, Any]:
    """An error as JSON values."""
    code = getattr(error, "exit_code", 1)
    known = isinstance(error, JobError)
    return {"code": code, "reason": str(error) if known else f"{type(error).__name__}: {error}"}


def error_of(said: dict[str, Any]) -> JobError:
    """The error that `plain` made `said` of; what is none of ours is a JobError."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, JobError)]
    kind: type[JobError] = next((kind for kind in kinds if kind.exit_code == said["code"]), JobError)
    return kind(said["reason"])


def tell(store: Store, rank: int, said: dict[str, Any]) -> None:
    """Say why `rank` has ended, unless somebody has ended before it."""
    store.compare_set(CAUSE, "", json.dumps({"rank": rank, **said}))


class Peers:
    """The processes that train together, seen from one of them.

    Args:
        store: A connection of its own.
        rank, world_size: Which of how many this one is.
        ended: Called with the reason when this process is to end at once, because it hangs in a collective.
    """

    def __init__(self, store: Store, rank: int, world_size: int, ended: Callable[[JobError], None]) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._ended = ended
        self._silence = SILENCE
        self._said: dict[str, Any] | None = None
        self._noticed, self._leaving, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()  # of the connection
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    @property
    def cause(self) -> JobError | None:
        """Why another one has ended; None while none has."""
        said = self._said
        if said is None or said["rank"] == self._rank:
            return None
        colon = "" if said.get("dead") else ":"
        return error_of({**said, "reason": f"rank {said['rank']}{colon} {said['reason']}"})

    def check(self) -> None:
        """Raise what another one has ended with."""
        if cause := self.cause:
            raise cause

    def after_break(self) -> JobError | None:
        """Why a collective has failed, waited for until that is known or nobody can know."""
        self._silence = min(self._silence, BROKEN_SILENCE)
        self._noticed.wait(BROKEN_SILENCE + 4 * BEAT)
        return self.cause

    def leave(self, error: BaseException, seconds: float = 0.0) -> bool:
        """Say why this one ends, and wait for the others to end too; whether the first rank says the same.

        Args:
            seconds: At most so long; a moment for what the first rank says is always given.
        """
        self._leaving.set()
        said, started = plain(error), time.monotonic()
        try:
            with self._lock:
                tell(self._store, self._rank, said)
                self._store.set(f"told/{self._rank}", str(said["code"]))
                self._store.add("left", 1)
            while time.monotonic() - started < seconds and not self._all_left():
                time.sleep(0.02)
            while not (heard := self._store.check(["told/0"])) and time.monotonic() - started < MOMENT:
                time.sleep(0.02)
            return heard and int(self._store.get("told/0")) == said["code"]
        except RuntimeError:  # the store has gone first
            return False

    def _all_left(self) -> bool:
        with self._lock:
            said = json.loads(self._store.get(CAUSE))
            return self._store.add("left", 0) >= self._world_size - bool(said.get("dead"))

    def close(self) -> None:
        """All have come to the end: nobody is missed from here on."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        """In the thread: until somebody ends."""
        watched, count, since = (self._rank + 1) % self._world_size, -1, time.monotonic()
        while not self._closed.wait(BEAT):
            try:
                with self._lock:
                    self._store.add(f"alive/{self._rank}", 1)
                    found = self._store.add(f"alive/{watched}", 0)
                    if found != count:
                        count, since = found, time.monotonic()
                    elif time.monotonic() - since > self._silence:
                        silent = round(time.monotonic() - since)
                        reason = f"is gone: no sign of life for {silent} s; start again to continue"
                        tell(self._store, watched, {"code": 1, "reason": reason, "dead": True})
                    if self._store.check([CAUSE]):
                        self._said = json.loads(self._store.get(CAUSE))
            except RuntimeError as error:
                reason = f"the process that keeps the ranks together is gone ({str(error).splitlines()[0]})"
                self._said = {"rank": 0, "code": 1, "reason": reason, "dead": True}
            if self._said is not None:
                self._noticed.set()
                self._end()
                return

    def _end(self) -> None:
        """Let the main thread end by itself; end the process when it does not."""
        until = time.monotonic() + LEISURE
        while time.monotonic() < until:
            if self._closed.is_set() or self._leaving.is_set():
                return
            time.sleep(0.05)
        cause = self.cause
        if cause is None:
            return
        with suppress(RuntimeError):
            self._store.add("left", 1)
        self._ended(cause)
        os._exit(cause.exit_code)
