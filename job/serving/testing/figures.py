"""What a load says of a server: latencies and throughputs, under the names that vLLM's `bench serve` gives them.

Every latency is the client's, in milliseconds, over requests that were answered whole:

    ttft    from sending a request to its first chunk
    itl     between one chunk and the next; all gaps of all requests count alike
    tpot    (last chunk - first chunk) / (tokens - 1) of a request with at least two tokens
    e2el    from sending a request to its last chunk

A chunk is one event with a choice in it: a token, or several where only their last completes a character.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

PERCENTILES = (90, 99)
LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """One request as the client saw it; instants in seconds of one clock.

    Args:
        due: When the load wanted it sent.
        started: When it was.
        chunks: When each chunk of the answer arrived.
        ended: When the answer was whole, or failed.
        error: Why there is no whole answer; empty when there is.
    """

    due: float
    started: float
    chunks: tuple[float, ...] = ()
    ended: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


def figures(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Everything that is known of a load; None where no request says.

    `duration` runs from the first request that was sent to the last answer's end, in seconds; throughputs are whole
    answers, and the tokens in them, per second of it.
    """
    if not timelines:
        raise ValueError("no requests, no figures")
    whole = [timeline for timeline in timelines if not timeline.error]
    duration = max(one.ended for one in timelines) - min(one.started for one in timelines)
    prompt_tokens = sum(one.prompt_tokens for one in whole)
    completion_tokens = sum(one.completion_tokens for one in whole)

    def per_second(count: int) -> float | None:
        return count / duration if duration > 0 else None

    found: dict[str, Any] = {
        "duration": duration,
        "completed": len(whole),
        "failed": len(timelines) - len(whole),
        "total_input_tokens": prompt_tokens,
        "total_output_tokens": completion_tokens,
        "request_throughput": per_second(len(whole)),
        "output_throughput": per_second(completion_tokens),
        "total_token_throughput": per_second(prompt_tokens + completion_tokens),
        "max_concurrent_requests": most_at_once(timelines),
        "max_send_delay_ms": 1000 * max(one.started - one.due for one in timelines),
    }
    for name in LATENCIES:
        found |= _statistics(name, latencies(name, whole))
    return found


def latencies(name: str, timelines: Sequence[Timeline]) -> list[float]:
    """All `ttft`, `tpot`, `itl` or `e2el` of whole answers, in seconds."""
    of = {"ttft": _ttft, "tpot": _tpot, "itl": _itl, "e2el": _e2el}[name]
    return [seconds for one in timelines if one.chunks for seconds in of(one)]


def quantiles(name: str, timelines: Sequence[Timeline]) -> list[float]:
    """The 0th, 1st, ... 100th percentile of a latency over whole answers, in milliseconds; empty when there is none."""
    seconds = latencies(name, [one for one in timelines if not one.error])
    return [round(1000 * value, 3) for value in np.percentile(seconds, range(101))] if seconds else []


def most_at_once(timelines: Sequence[Timeline]) -> int:
    """The most requests that were under way at the same time."""
    changes = [(one.started, 1) for one in timelines] + [(one.ended, -1) for one in timelines]
    most = under_way = 0
    for _, change in sorted(changes):  # at one instant, ends come before starts
        under_way += change
        most = max(most, under_way)
    return most


def _ttft(one: Timeline) -> Iterator[float]:
    yield one.chunks[0] - one.started


def _tpot(one: Timeline) -> Iterator[float]:
    if one.completion_tokens > 1:
        yield (one.chunks[-1] - one.chunks[0]) / (one.completion_tokens - 1)


def _itl(one: Timeline) -> Iterator[float]:
    yield from (after - before for before, after in pairwise(one.chunks))


def _e2el(one: Timeline) -> Iterator[float]:
    yield one.chunks[-1] - one.started


def _statistics(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    names = [f"{statistic}_{name}_ms" for statistic in ("mean", "median", "std", *(f"p{p}" for p in PERCENTILES))]
    if not seconds:
        return dict.fromkeys(names)
    milliseconds = 1000 * np.asarray(seconds)
    values = [milliseconds.mean(), np.median(milliseconds), milliseconds.std()]
    return dict(zip(names, map(float, [*values, *np.percentile(milliseconds, PERCENTILES)]), strict=True))
