"""Waiting for the process at which those that train together meet."""

import socket
import time
from collections.abc import Callable

from job.errors import UnreachableError

_LOOK = 0.2  # seconds between two tries
_TRY = 2.0  # seconds for one


def wait_for_first(master: str, patience: float, check: Callable[[], None]) -> None:
    """Return once somebody listens at HOST:PORT. torch would wait as well, but hears no signal meanwhile.

    Args:
        patience: Seconds that it may take.
        check: Called between tries; what it raises ends the waiting.

    Raises:
        UnreachableError: Nobody does.
    """
    host, _, port = master.rpartition(":")
    until = time.monotonic() + patience
    while True:
        check()
        try:
            socket.create_connection((host, int(port)), timeout=_TRY).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UnreachableError(f"nobody listens at {master}{too_long(patience)} ({error})") from error
        time.sleep(_LOOK)


def too_long(patience: float) -> str:
    """How long was waited, which setting says so, and what to do."""
    return f" after {patience:g} s (runtime.join_seconds); start again"
