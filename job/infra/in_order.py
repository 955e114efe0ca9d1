"""Several parts of a work at once, their results one after the other."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_order(call: Callable[[S], T], parts: Iterable[S], threads: int, ahead: int) -> Generator[T, None, None]:
    """What `call` makes of each part, in their order; at most `ahead` are under way or wait for their turn.

    After a failure no part is begun any more, and those under way are waited for.
    """
    over, waiting = threading.Event(), deque[Future[T]]()
    failed: list[BaseException] = []

    def unless_over(part: S) -> T:
        if failed:
            raise failed[0]  # whose turn is first may be a part that came late: it is to say why too
        if over.is_set():
            raise CancelledError
        try:
            return call(part)
        except BaseException as error:
            failed.append(error)
            raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix="part")
    try:
        for part in parts:
            if len(waiting) == ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(unless_over, part))
        while waiting:
            yield waiting.popleft().result()
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)
