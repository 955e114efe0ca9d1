"""What a test of a served model leaves for Prometheus: no series for a load or a check, only what is compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from job.serving.testing.figures import LATENCIES, PERCENTILES

STATISTICS = ("mean", "median", *(f"p{percentile}" for percentile in PERCENTILES))
OUTCOMES = ("passed", "failed", "skipped")


def outcome_registry(report: Mapping[str, Any]) -> CollectorRegistry:
    """The values of a report; latencies and throughputs are those of the load with most tokens a second."""
    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float | None) -> None:
        if value is not None:
            Gauge(f"pretrain_serve_test_{name}", text, registry=registry).set(value)

    gauge("passed", "1 when checks and thresholds passed.", report["status"] == "passed")
    gauge("timestamp_seconds", "When the test ended.", report["ended"])
    gauge("ready_seconds", "From the server's start until it was ready.", report["server"]["ready_seconds"])
    checks = Gauge("pretrain_serve_test_checks", "Checks of answers.", ["outcome"], registry=registry)
    _count(checks, [check["passed"] for check in report["checks"]])
    requests = Gauge("pretrain_serve_test_requests", "Requests of all loads.", ["outcome"], registry=registry)
    requests.labels("passed").set(sum(load["completed"] for load in report["loads"]))
    requests.labels("failed").set(sum(load["failed"] for load in report["loads"]))
    if report["loads"]:
        best = max(report["loads"], key=lambda load: load["output_throughput"] or 0.0)
        gauge("tokens_per_second", "New tokens of whole answers.", best["output_throughput"])
        gauge("requests_per_second", "Whole answers.", best["request_throughput"])
        seconds = Gauge(
            "pretrain_serve_test_latency_seconds", "As a client sees it.", ["latency", "statistic"], registry=registry
        )
        for latency in LATENCIES:
            for statistic in STATISTICS:
                if (value := best[f"{statistic}_{latency}_ms"]) is not None:
                    seconds.labels(latency, statistic).set(value / 1000)
    return registry


def _count(gauge: Gauge, found: Sequence[bool | None]) -> None:
    for outcome, passed in zip(OUTCOMES, (True, False, None), strict=True):
        gauge.labels(outcome).set(found.count(passed))
