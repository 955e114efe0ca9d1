"""Being asked to stop: SIGTERM, Ctrl-C, and the end of the grace that follows."""

import math
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any, Self

from job.errors import Interrupted

STOPPING = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 0.1  # one request can arrive twice: timeout(1) signals the process and then its group
HOOK_SECONDS = 1.0  # what `on_leave` may take
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class StopSignal:
    """A request to stop, noticed by a thread of its own whatever the main thread is doing.

    The handler in C writes the signal's number to a socket that a watchdog thread reads; a Python handler alone would
    wait for the end of a long C call. The first signal sets the flag. A second one, or the end of the grace, ends the
    process at once with the code of Interrupted.

    Args:
        grace_seconds: From the first signal to the kill; 0 leaves at the first signal.

    Attributes:
        reason: What asked to stop; empty before.
        on_request: Called with the reason at the first signal, if there is any grace, in a thread of its own.
        on_leave: Called with the reason before the watchdog ends the process, in a thread of its own, for up to
            HOOK_SECONDS; unset or failing, the reason is a line on stderr.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.reason = ""
        self.on_request: Callable[[str], None] = _ignore
        self.on_leave: Callable[[str], None] = _say
        self._grace = grace_seconds
        self._margin = min(2.0, 0.2 * grace_seconds)
        self._first = math.inf  # when the first signal came, monotonic seconds
        self._echo_of = math.inf  # when one came that another may be the echo of
        self._requested = Event()
        self._heeded = False  # another's request, so that one's own does not count as the second
        self._ending = Lock()
        self._disarmed = False
        self._watchdog: Thread | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> Self:
        """Start listening; only the main thread may. Needs nothing that is slow to import."""
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._watchdog = Thread(target=self._watch, name="stop-signal", daemon=True)
        self._watchdog.start()
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, _ignore) for number in STOPPING}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # what a launcher sent before now comes now
        os.register_at_fork(after_in_child=self._leave_to_parent)
        return self

    def uninstall(self) -> None:
        """Stop listening and put the former handlers back."""
        if self._watchdog is None:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        self._writer.close()
        self._watchdog.join()
        self._watchdog = None
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._requested.is_set()

    def check(self) -> None:
        """Raise Interrupted when a signal has come."""
        if self.requested:
            raise Interrupted(self.reason)

    def advance(self, *_: int) -> None:
        """`check`, for those who say how much has moved."""
        self.check()

    def remaining(self) -> float:
        """Seconds that can still be worked before the watchdog leaves; infinite before a signal."""
        return max(0.0, self._first + self._grace - self._margin - time.monotonic())

    def heed(self, reason: str, seconds: float) -> None:
        """Take a request that reached another process, with the grace that this leaves, for one's own."""
        if self.requested or self._watchdog is None:
            return
        self.reason, self._heeded = reason, True
        self._first = time.monotonic() + seconds - (self._grace - self._margin)
        self._requested.set()
        self._writer.send(b"\0")  # no signal's number: the watchdog looks how long it may wait now
        _in_thread(self.on_request, self.reason)

    def disarm(self) -> None:
        """Let the process end on its own: from here on neither a signal nor the grace ends it."""
        with self._ending:
            self._disarmed = True

    def _watch(self) -> None:
        while True:
            armed = self.requested and not self._disarmed
            self._reader.settimeout(max(0.001, self.remaining()) if armed else None)
            try:
                heard = self._reader.recv(64)
            except TimeoutError:
                self._leave(f"{self.reason}, the grace of {self._grace:g} s is over")
                continue
            if not heard:
                return
            for number in heard:
                if number in STOPPING:  # the socket hears every signal that Python handles
                    self._notice(signal.Signals(number).name)

    def _notice(self, name: str) -> None:
        now = time.monotonic()
        if not self.requested:
            self.reason = f"{name} received"
            self._first = self._echo_of = now
            self._requested.set()
            if self._grace == 0:
                self._leave(f"{self.reason}, no grace to save in")
            _in_thread(self.on_request, self.reason)
        elif self._heeded:
            self._heeded, self._echo_of = False, now
        elif now - self._echo_of > ECHO_SECONDS:
            self._leave(f"{self.reason}, then {name}")

    def _leave(self, reason: str) -> None:
        with self._ending:  # held to the end of the process, so that `disarm` cannot pass
            if self._disarmed:
                return
            if not _in_thread(self.on_leave, reason, HOOK_SECONDS):
                _say(reason)
            if os.isatty(2):
                os.write(2, SHOW_CURSOR)
            os._exit(Interrupted.exit_code)

    def _leave_to_parent(self) -> None:
        """In a forked child, which shares the socket: Ctrl-C reaches it too and would count twice."""
        if self._watchdog is not None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._watchdog = None


def _ignore(*_: object) -> None:
    """A handler that leaves everything to the watchdog."""


def _say(reason: str) -> None:
    with suppress(OSError):
        os.write(2, f"Interrupted: {reason}\n".encode())


def _in_thread(hook: Callable[[str], None], reason: str, seconds: float = 0.0) -> bool:
    """Whether `hook(reason)` returned within `seconds`; a hook that hangs or fails stops nobody."""
    returned = Event()

    def call() -> None:
        with suppress(Exception):
            hook(reason)
            returned.set()

    thread = Thread(target=call, daemon=True)
    with suppress(RuntimeError):  # no new threads while the interpreter shuts down
        thread.start()
        thread.join(seconds)
    return returned.is_set()
