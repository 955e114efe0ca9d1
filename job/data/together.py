"""Several things waited for at once."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from job.data.cache import Advance

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL = 0.2  # seconds


class _NotWanted(Exception):
    """Another one has failed."""


def all_at_once(
    work: Callable[[Item, Advance], Result], items: Sequence[Item], threads: int, advance: Advance
) -> list[Result]:
    """What `work` makes of each item, in their order, `threads` at a time; the first failure ends them all.

    Args:
        work: Calls its second argument, now and then: that raises when the result is wanted no more.
        advance: Called by whoever works or waits; may raise to stop.
    """
    failed = threading.Event()

    def still_wanted(done: int = 0, more: int = 0, /) -> None:
        if failed.is_set():
            raise _NotWanted
        advance(done, more)

    if threads == 1 or len(items) == 1:
        return [work(item, advance) for item in items]
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(work, item, still_wanted) for item in items]
        while wait(futures, POLL, FIRST_EXCEPTION).not_done:
            advance()
            if any(future.done() and future.exception() for future in futures):
                break
        for future in futures:
            if future.done() and (error := future.exception()):
                raise error
        return [future.result() for future in futures]
    finally:
        failed.set()
        pool.shutdown(cancel_futures=True)
