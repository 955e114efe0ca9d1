"""Keeps the run's report up to date beside training: drawn in another process, and seldom enough to cost little."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

FIRST = 60.0  # seconds from the start to the first drawing: short runs are drawn at their end
SHARE = 100.0  # times as long as a drawing took is waited before the next: it takes a hundredth of the time at most
LONGEST = 120.0  # seconds that a drawing may take
SOON = 5.0  # seconds before the end in which who draws it makes ready: that takes a second on another core

log = structlog.get_logger(__name__)


class Reporter:
    """Draws `report/` from the event log. Whatever goes wrong is a warning, once, and ends no run.

    Args:
        events: The event log's file.
        uri: What the run is called.
        scratch: Folder for files that are under way.
        enabled: False draws nothing at all.
        clock: Monotonic seconds.
    """

    def __init__(
        self, events: Path, uri: str, scratch: Path, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events, self._uri, self._folder = events, uri, scratch / "report"
        self._enabled = enabled
        self._clock = clock
        self._due = clock() + FIRST
        self._began = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._waits = False  # for the word to draw
        self._warned = False

    def begin(self) -> None:
        """Begin to draw, if it is time."""
        if self._enabled and self._process is None and self._clock() >= self._due:
            self._start()
            self._say_when()

    def make_ready(self, seconds_left: float) -> None:
        """If the end is that near, start who will draw it: most of a small report's time is spent on imports."""
        if self._enabled and self._process is None and seconds_left < SOON:
            self._start()

    def poll(self) -> dict[str, bytes]:
        """What has been drawn since the last time, by key; mostly nothing. Costs next to nothing."""
        if self._process is None or self._waits:
            return {}
        if self._process.poll() is None and self._clock() - self._began < LONGEST:
            return {}
        return self._take()

    def draw(self, seconds: float) -> dict[str, bytes]:
        """The report as of now, by key, if it can be drawn within `seconds`."""
        if not self._waits or seconds <= 0:
            self.close()
        if not self._enabled or seconds <= 0:
            return {}
        if self._process is None:
            self._start()
        self._say_when()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(min(seconds, LONGEST))
        return self._take()

    def close(self) -> None:
        """Leave what is under way."""
        if self._process is not None:
            _kill(self._process)
            self._process.communicate()
            self._process, self._waits = None, False

    def _say_when(self) -> None:
        """Let the process that waits draw."""
        self._began, self._waits = self._clock(), False
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it has ended, and has said why
                self._process.stdin.write(b"draw\n")
                self._process.stdin.flush()

    def _start(self) -> None:
        with suppress(OSError):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves, with our own paths
                [sys.executable, "-m", "job.report", str(self._events.absolute()), self._uri, str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the training
            )
            self._waits = True
        except OSError as error:
            self._fail(str(error))

    def _take(self) -> dict[str, bytes]:
        process, self._process = self._process, None
        if process is None:
            return {}
        if process.poll() is None:
            _kill(process)
        said = process.communicate()[1].decode(errors="replace").strip()
        took = self._clock() - self._began
        self._due = self._clock() + max(FIRST, SHARE * took)
        if process.returncode != 0:
            self._fail(said.rpartition("\n")[2] or f"not drawn within {took:.0f} s")
            return {}
        try:
            return {f"report/{path.name}": path.read_bytes() for path in sorted(self._folder.iterdir())}
        except OSError as error:
            self._fail(str(error))
            return {}

    def _fail(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("report not drawn", reason=reason, by_hand=f"gpt-job report --run {self._uri}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With the copies that it may have made of itself: they hold its pipes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
