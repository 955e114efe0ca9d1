"""Load on a server: so many requests at a time (closed loop), or so many a second whatever it does (open loop)."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from job.errors import ConfigError
from job.serving.testing.arrivals import poisson
from job.serving.testing.figures import Timeline

Send = Callable[[float, Mapping[str, Any]], Timeline]  # when it was due, what to ask -> what it was like
MOST_AT_ONCE = 1000  # requests under way, a thread each


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One stretch of load: either `concurrency` or `request_rate` says how it comes.

    Args:
        concurrency: Requests that are under way at any time.
        request_rate: Requests that are sent each second, on average.
    """

    requests: int
    concurrency: int | None = None
    request_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.request_rate is None):
            raise ConfigError("a load has either a concurrency or a request rate")
        problems = [
            f"{name}={value} must be {expected}"
            for name, value, right, expected in (
                ("requests", self.requests, self.requests >= 1, "at least 1"),
                (
                    "concurrency",
                    self.concurrency,
                    self.concurrency is None or 1 <= self.concurrency <= MOST_AT_ONCE,
                    f"1 to {MOST_AT_ONCE}",
                ),
                (
                    "request_rate",
                    self.request_rate,
                    self.request_rate is None or 0 < self.request_rate < float("inf"),
                    "above 0",
                ),
            )
            if not right
        ]
        if problems:
            raise ConfigError(*problems)

    @property
    def name(self) -> str:
        """In words, for tables and plots."""
        return f"{self.concurrency} at a time" if self.concurrency else f"{self.request_rate:g} a second"


def run_load(
    load: Load,
    bodies: Sequence[Mapping[str, Any]],
    seed: int,
    send: Send,
    advance: Callable[[], None] = lambda: None,
) -> list[Timeline]:
    """Send `load.requests` requests, the bodies in turn; what each was like.

    Args:
        seed: Of the times at which an open loop sends.
        send: Sends one and waits for its answer; called from many threads.
        advance: Called in this thread, often; may raise to stop, and then nothing more is sent.
    """
    wanted = [bodies[number % len(bodies)] for number in range(load.requests)]
    if load.concurrency is not None:
        return _closed(load.concurrency, wanted, send, advance)
    assert load.request_rate is not None
    return _open(poisson(load.request_rate, load.requests, seed), wanted, send, advance)


def _closed(
    concurrency: int, bodies: Sequence[Mapping[str, Any]], send: Send, advance: Callable[[], None]
) -> list[Timeline]:
    """Each of `concurrency` threads sends its next request when its last is answered."""
    waiting: Iterator[Mapping[str, Any]] = iter(bodies)
    lock, stopped = Lock(), [False]

    def work() -> list[Timeline]:
        found = []
        while not stopped[0]:
            with lock:
                body = next(waiting, None)
            if body is None:
                break
            found.append(send(time.perf_counter(), body))
        return found

    with ThreadPoolExecutor(min(concurrency, len(bodies))) as pool:
        try:
            futures = [pool.submit(work) for _ in range(min(concurrency, len(bodies)))]
            while not all(future.done() for future in futures):
                advance()
                time.sleep(0.02)
        finally:
            stopped[0] = True
    return [timeline for future in futures for timeline in future.result()]


def _open(
    schedule: Sequence[float], bodies: Sequence[Mapping[str, Any]], send: Send, advance: Callable[[], None]
) -> list[Timeline]:
    """Each request is sent when it is due, by a thread that waits for its answer."""
    with ThreadPoolExecutor(min(MOST_AT_ONCE, len(bodies))) as pool:
        futures = []
        started = time.perf_counter()
        for after, body in zip(schedule, bodies, strict=True):
            due = started + after
            while (left := due - time.perf_counter()) > 0:
                advance()
                time.sleep(min(left, 0.02))
            futures.append(pool.submit(send, due, body))
        while not all(future.done() for future in futures):
            advance()
            time.sleep(0.02)
    return [future.result() for future in futures]
