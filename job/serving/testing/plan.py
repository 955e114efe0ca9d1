"""What a served model is put through, and what it has to reach: settings of `serve-test` that cannot be wrong."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from job.errors import ConfigError
from job.serving.testing.load import Load

LIMITS = {  # of Thresholds: the figure that each bounds
    "max_ttft_p99": "p99_ttft_ms",
    "max_tpot_p99": "p99_tpot_ms",
    "max_itl_p99": "p99_itl_ms",
    "max_e2el_p99": "p99_e2el_ms",
}
FLOORS = {"min_tokens_per_second": "output_throughput", "min_requests_per_second": "request_throughput"}
SWEEP_CONCURRENCY = 8  # the server's slots, unless told otherwise


@dataclass(frozen=True, slots=True)
class Verdict:
    """One threshold, and what was found."""

    name: str
    limit: float
    found: float | None
    load: str
    passed: bool

    @property
    def reason(self) -> str:
        """In words, for one that was not reached."""
        found = "unknown" if self.found is None else f"{self.found:.6g}"
        return f"{self.name} {self.limit:g}: found {found}" + (f" at {self.load}" if self.load else "")

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What decides; None decides nothing.

    Args:
        max_ttft_p99, max_tpot_p99, max_itl_p99, max_e2el_p99: Milliseconds, of every load; of a sweep, which is there
            to go beyond what the server can do, of its first, one request at a time.
        min_tokens_per_second, min_requests_per_second: Of the load that reaches most.
        max_failures: Requests without a whole answer, over all loads.
        max_ready_seconds: From its start until the server is ready.
    """

    max_ttft_p99: float | None = None
    max_tpot_p99: float | None = None
    max_itl_p99: float | None = None
    max_e2el_p99: float | None = None
    min_tokens_per_second: float | None = None
    min_requests_per_second: float | None = None
    max_failures: int = 0
    max_ready_seconds: float | None = None

    def __post_init__(self) -> None:
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        wrong = {name: value for name, value in values.items() if value is not None and not 0 <= value < math.inf}
        if wrong:
            raise ConfigError(*(f"{name}={value} must be a number from 0 on" for name, value in wrong.items()))

    def judge(
        self, loads: Sequence[Mapping[str, Any]], ready_seconds: float | None, bounded: Sequence[Mapping[str, Any]]
    ) -> list[Verdict]:
        """What each threshold says of the figures of `loads`; a figure that is unknown reaches nothing.

        Args:
            bounded: Those of the loads whose latencies are bounded.
        """
        found = [
            _at_most(name, limit, load[figure], load["name"])
            for name, figure in LIMITS.items()
            if (limit := getattr(self, name)) is not None
            for load in bounded
        ]
        for name, figure in FLOORS.items():
            if (limit := getattr(self, name)) is not None:
                best = max(loads, key=lambda load: load[figure] or 0.0, default=None)
                value = best[figure] if best else None
                found.append(
                    Verdict(name, limit, value, best["name"] if best else "", value is not None and value >= limit)
                )
        found.append(_at_most("max_failures", self.max_failures, sum(load["failed"] for load in loads), ""))
        if self.max_ready_seconds is not None and ready_seconds is not None:
            found.append(_at_most("max_ready_seconds", self.max_ready_seconds, ready_seconds, ""))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The test.

    Args:
        concurrencies, rates: Loads, closed and open, in this order.
        sweep: Open loads at so many rates up to what the server can do; replaces the others.
        requests: Of each load.
        max_tokens: New tokens of each answer.
        longest_prompt: Tokens; those that are made are of mixed lengths up to it.
        checked: Prompts whose answers are checked.
        seed: Of prompts and arrivals.
        ready_seconds: How long the server may take to be ready.
    """

    concurrencies: Sequence[int] = (1, 8)
    rates: Sequence[float] = ()
    sweep: int | None = None
    requests: int = 32
    max_tokens: int = 64
    longest_prompt: int = 256
    checked: int = 8
    seed: int = 0
    ready_seconds: float = 600.0
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in ("requests", "max_tokens", "longest_prompt", "checked")
            if getattr(self, name) < 1
        ]
        if self.sweep is not None and self.sweep < 2:
            problems.append(f"sweep={self.sweep} must be at least 2 rates")
        if self.ready_seconds <= 0:
            problems.append(f"ready_seconds={self.ready_seconds} must be above 0")
        if self.seed < 0:
            problems.append(f"seed={self.seed} must be at least 0")
        if problems:
            raise ConfigError(*problems)
        self.loads()  # raises what is wrong with them

    def loads(self) -> list[Load]:
        """The loads that are known from the start: of a sweep, its two ends."""
        if self.sweep is not None:
            return [Load(requests=self.requests, concurrency=count) for count in (1, SWEEP_CONCURRENCY)]
        closed = [Load(requests=max(self.requests, count), concurrency=count) for count in self.concurrencies]
        return closed + [Load(requests=self.requests, request_rate=rate) for rate in self.rates]

    def sweep_loads(self, slowest: float, fastest: float) -> list[Load]:
        """Rates evenly apart, from half of what one request at a time reached to what the server did, per second."""
        assert self.sweep is not None
        low, high = slowest / 2, fastest
        step = (high - low) / (self.sweep - 1)
        rates = [float(f"{low + step * number:.3g}") for number in range(self.sweep)]
        return [Load(requests=self.requests, request_rate=rate) for rate in rates]


def _at_most(name: str, limit: float, found: float | None, load: str) -> Verdict:
    return Verdict(name, limit, found, load, found is not None and found <= limit)
