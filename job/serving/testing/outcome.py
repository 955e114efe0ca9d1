"""The report of a test while it grows: what was found, what it means, and where it is left."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prometheus_client import generate_latest

from job.errors import Interrupted, JobError
from job.infra.environment import code_facts
from job.infra.logs import redact
from job.infra.object_store import ObjectStore
from job.report.serve_page import serve_page
from job.serving.testing.answers import Check
from job.serving.testing.outcome_metrics import outcome_registry
from job.serving.testing.plan import Plan

JSON_KEY, PAGE_KEY, METRICS_KEY, LOG_KEY = "serve-test.json", "serve-test.html", "metrics.prom", "server.log"


class Outcome:
    """Facts of a test, in `serve-test.json` from its start to its end.

    Args:
        store: Takes the report.
        model: What is tested, as it was asked for.
        server: How it is served.
    """

    def __init__(self, store: ObjectStore, model: Mapping[str, Any], server: Mapping[str, Any]) -> None:
        self._store, self._started = store, time.monotonic()
        self.checks: list[Check] = []
        self.loads: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {
            "format": 1,
            "status": "running",
            "reasons": [],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "model": dict(model),
            "server": {"ready_seconds": None, "peak_memory_bytes": None, "exit_code": None, **server},
            "plan": {},
            "checks": [],
            "thresholds": [],
            "loads": [],
            "code": code_facts(),
        }
        self._put(JSON_KEY, _json(self.facts))  # what cannot be written is said before anything is spent

    def conclude(self, plan: Plan) -> None:
        """Decide, and write everything."""
        bounded = self.loads[:1] if plan.sweep is not None else self.loads
        verdicts = plan.thresholds.judge(self.loads, self.facts["server"]["ready_seconds"], bounded)
        self.facts["thresholds"] = [verdict.plain() for verdict in verdicts]
        self.facts["reasons"] = [f"{check.name}: {check.detail}" for check in self.checks if check.passed is False]
        self.facts["reasons"] += [verdict.reason for verdict in verdicts if not verdict.passed]
        self.facts["plan"] = asdict(plan)
        self._close("failed" if self.facts["reasons"] else "passed")
        self._put(METRICS_KEY, generate_latest(outcome_registry(self.facts)))
        self._put(PAGE_KEY, serve_page(self.facts))

    def break_off(self, error: JobError) -> None:
        """Say that it came to no conclusion, and why."""
        self.facts["reasons"] = [str(error)]
        self._close("interrupted" if isinstance(error, Interrupted) else "broken off")

    def keep_log(self, content: bytes) -> None:
        """Leave what the server said beside the report."""
        self._put(LOG_KEY, redact(content.decode(errors="replace"), os.environ).encode())

    def _close(self, status: str) -> None:
        self.facts |= {
            "status": status,
            "seconds": round(time.monotonic() - self._started, 3),
            "ended": time.time(),
            "checks": [check.plain() for check in self.checks],
            "loads": self.loads,
        }
        self._put(JSON_KEY, _json(self.facts))

    def _put(self, key: str, content: bytes) -> None:
        self._store.put(key, [content])


def summary(facts: Mapping[str, Any], report_uri: str) -> dict[str, Any]:
    """What matters of a report: the load with most tokens a second stands for all."""
    checks = [check["passed"] for check in facts["checks"]]
    loads: Sequence[Mapping[str, Any]] = facts["loads"]
    best = max(loads, key=lambda load: load["output_throughput"] or 0.0, default={})
    names = (
        "output_throughput",
        "request_throughput",
        "median_ttft_ms",
        "p99_ttft_ms",
        "median_tpot_ms",
        "p99_e2el_ms",
    )
    return {
        "status": facts["status"],
        "reasons": facts["reasons"],
        "checks": {"passed": checks.count(True), "failed": checks.count(False), "skipped": checks.count(None)},
        "requests": {name: sum(load[name] for load in loads) for name in ("completed", "failed")},
        "best_load": best.get("name"),
        **{name: best.get(name) and round(best[name], 3) for name in names},
        "ready_seconds": facts["server"]["ready_seconds"],
        "seconds": facts["seconds"],
        "report": report_uri,
    }


def _json(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, ensure_ascii=False, indent=1) + "\n").encode()
