"""The page of a test of a served model: one file, nothing from elsewhere, light and dark, wide and narrow."""

from collections.abc import Iterable, Mapping
from typing import Any

from job.report.rendering import render
from job.report.serve_plots import draw_loads

Facts = Mapping[str, Any]

_MARKS = {True: ("good", "passed"), False: ("bad", "failed"), None: ("dim", "not done")}
_LOAD_COLUMNS = (
    ("name", "load"),
    ("completed", "answered"),
    ("failed", "failed"),
    ("request_throughput", "requests/s"),
    ("output_throughput", "tokens/s"),
    ("median_ttft_ms", "TTFT median"),
    ("p99_ttft_ms", "TTFT p99"),
    ("median_tpot_ms", "TPOT median"),
    ("p99_itl_ms", "ITL p99"),
    ("median_e2el_ms", "E2EL median"),
    ("p99_e2el_ms", "E2EL p99"),
)
_DEFINITIONS = (
    ("TTFT", "milliseconds from sending a request to its first token"),
    ("TPOT", "milliseconds a token after the first, a mean for each request"),
    ("ITL", "milliseconds between one streamed piece and the next"),
    ("E2EL", "milliseconds from sending a request to its last token"),
    ("tokens/s", "new tokens of whole answers, over the time from the first request to the last answer"),
)


def serve_page(facts: Facts) -> bytes:
    """The content of `serve-test.json` as HTML."""
    model, loads = facts["model"], facts["loads"]
    return render(
        "serve.html.j2",
        title=f"{model.get('id') or model['from']}: serve-test {facts['status']}",
        subject=_subject(facts),
        status=("good" if facts["status"] == "passed" else "bad", facts["status"]),
        reasons=facts["reasons"],
        pictures=draw_loads(loads),
        checks=[(*_MARKS[check["passed"]], check["name"], check["detail"]) for check in facts["checks"]],
        loads=[
            [title for _, title in _LOAD_COLUMNS],
            *([_number(load[name]) for name, _ in _LOAD_COLUMNS] for load in loads),
        ],
        errors=[f"{load['name']}: {error}" for load in loads for error in load["errors"]],
        thresholds=[
            (*_MARKS[one["passed"]], one["name"], f"{one['limit']:g}", _number(one["found"]), one["load"])
            for one in facts["thresholds"]
        ],
        definitions=_DEFINITIONS,
        settings=list(_settings(facts)),
    )


def _subject(facts: Facts) -> str:
    model, server = facts["model"], facts["server"]
    said = [str(model.get("id") or "model")]
    if model["from"] and model["from"] != model.get("id"):
        said.append(f"from {model['from']}")
    if model.get("parameters"):
        said.append(f"{model['parameters']:,} parameters in {model['dtype']}")
    if server["ready_seconds"] is not None:
        said.append(f"ready after {server['ready_seconds']:.1f} s")
    if server["peak_memory_bytes"]:
        said.append(f"{server['peak_memory_bytes'] / 2**30:.2f} GiB of memory at most")
    return ", ".join([*said, f"{facts['started']}, {facts['seconds']:.0f} s"])


def _settings(facts: Facts) -> Iterable[tuple[str, str]]:
    plan = {
        name: value for name, value in facts["plan"].items() if name != "thresholds" and value not in (None, [], ())
    }
    yield from ((name, ", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v)) for name, v in plan.items())
    yield "server", " ".join([str(facts["server"]["url"]), *facts["server"]["arguments"]])
    yield from ((name, str(value)) for name, value in facts["code"].items() if value and not isinstance(value, dict))
    yield from ((name, str(value)) for name, value in facts["code"]["packages"].items())


def _number(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
