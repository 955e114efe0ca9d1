"""How far pulling and tokenizing have come, for a person at a terminal and for the log."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

LOG_SECONDS = 15.0

log = structlog.get_logger(__name__)


class Shown(Protocol):
    """What a person sees: `job.infra.progress` has one."""

    def phase(self, name: str, total: float | None = None, unit: str = "") -> None:
        """Show `name` from now on."""

    def advance(self, count: float) -> None:
        """So many more are done."""


class Meter:
    """Counts what is done of a phase, from any thread; says so now and then.

    Args:
        shown: Where a person looks; unset: nobody does.
    """

    def __init__(self, shown: Shown | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown, self._clock = shown, clock
        self._lock = threading.Lock()
        self.phase("starting")

    def phase(self, name: str, total: float | None = None, unit: str = "bytes") -> None:
        """From now on `name` is done; `total` of it, where that is known."""
        self._name, self._total, self._unit, self._done = name, total, unit, 0.0
        self._began = self._said = self._clock()
        if self._shown and name != "starting":
            self._shown.phase(name, total, unit)

    def add(self, count: float) -> None:
        """So many more are done."""
        with self._lock:
            self._done += count
            if self._shown:
                self._shown.advance(count)
            now = self._clock()
            if now - self._said < LOG_SECONDS:
                return
            self._said = now
            speed = self._done / (now - self._began)
            facts = {"done": int(self._done), "unit": self._unit, "per_second": round(speed)}
            if self._total:
                facts |= {"of": int(self._total), "eta_seconds": round((self._total - self._done) / speed)}
        log.info(self._name, **facts)
