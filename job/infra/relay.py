"""What the launcher of other processes does with requests to stop: it hands them on."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from job.errors import Interrupted
from job.infra.signals import STOPPING


class Relay:
    """Requests to stop, kept until there is a worker to hand them to. Needs nothing that is slow to import."""

    def __init__(self) -> None:
        self.asked: list[signal.Signals] = []
        self._handed_on = 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: object) -> None:
        self.asked.append(signal.Signals(number))

    def check(self) -> None:
        """Raise Interrupted when a request has come: nobody is there to hand it to."""
        if self.asked:
            raise Interrupted(f"{self.asked[0].name} received before any process had begun")

    def hand_on(self, pids: list[int]) -> None:
        """Send what has come since the last time, as one signal, to these processes."""
        if len(self.asked) == self._handed_on:
            return
        self._handed_on = len(self.asked)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, self.asked[-1])


@contextmanager
def held_back() -> Iterator[None]:
    """Processes that are started inside the block get requests to stop once they listen (`StopSignal.install`).

    Until then these would end them as the system does, without a word.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
