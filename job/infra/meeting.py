"""How those that train together wait for each other, and hear a signal meanwhile, which torch's own ways do not."""

import socket
import time
from collections.abc import Callable, Sequence

from job.errors import UnreachableError
from job.infra.peers import Store

_LOOK = 0.2  # seconds between two tries
_TRY = 2.0  # seconds for one
_POLL = 0.05  # seconds between two looks into the store
_NAMED = 8  # of those that have not come


def wait_for_first(master: str, patience: float, check: Callable[[], None]) -> None:
    """Return once somebody listens at HOST:PORT.

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


def wait_for_all(store: Store, own: int, who: Sequence[str], patience: float, check: Callable[[], None]) -> None:
    """Say in the store of the first one that this one has come, and return once all have.

    Args:
        own: Which of them this one is; one that comes again is still one.
        who: What they are called, for people: rank 0, rank 1.
        patience: Seconds that it may take.
        check: Called between looks; what it raises ends the waiting.

    Raises:
        UnreachableError: Some have not come; it names them.
    """
    until = time.monotonic() + patience
    store.set(f"here/{own}", "")
    missing = list(range(len(who)))
    while missing := [number for number in missing if not store.check([f"here/{number}"])]:
        check()
        if time.monotonic() > until:
            names = ", ".join(who[number] for number in missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
            came = len(who) - len(missing)
            raise UnreachableError(f"waited in vain for {names}: {came} of {len(who)} have come{too_long(patience)}")
        time.sleep(_POLL)


def too_long(patience: float) -> str:
    """How long was waited, which setting says so, and what to do."""
    return f" after {patience:g} s (runtime.join_seconds); start again"
