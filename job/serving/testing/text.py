"""What `serve-test` says to a person on a terminal: its report as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
_WORDS = {True: "passed", False: "FAILED", None: "-"}
_COLUMNS = (
    ("completed", "answered", ",.0f"),
    ("failed", "failed", ",.0f"),
    ("request_throughput", "req/s", ",.2f"),
    ("output_throughput", "tok/s", ",.1f"),
    ("median_ttft_ms", "TTFT ms", ",.0f"),
    ("p99_ttft_ms", "p99", ",.0f"),
    ("median_tpot_ms", "TPOT ms", ",.1f"),
    ("median_e2el_ms", "E2EL ms", ",.0f"),
    ("p99_e2el_ms", "p99", ",.0f"),
)


def report_lines(facts: Facts) -> Iterator[str]:
    """Checks, loads, thresholds, and what it comes to."""
    for check in facts["checks"]:
        yield f"{_WORDS[check['passed']]:<8}{check['name']:<48}{_first_line(check['detail'])}"
    if facts["loads"]:
        yield ""
        yield from _load_lines(facts["loads"])
    for verdict in facts["thresholds"]:
        found = "unknown" if verdict["found"] is None else f"{verdict['found']:,.6g}"
        limit = f"{verdict['limit']:,.6g}"
        yield f"{_WORDS[verdict['passed']]:<8}{verdict['name']:<48}{found}, limit {limit} {verdict['load']}".rstrip()
    yield ""
    yield facts["status"].upper()


def _load_lines(loads: Sequence[Facts]) -> Iterator[str]:
    width = max(4, *(len(load["name"]) for load in loads))
    yield f"{'load':<{width}}" + "".join(f"{title:>9}" for _, title, _ in _COLUMNS)
    for load in loads:
        yield f"{load['name']:<{width}}" + "".join(f"{_number(load[name], kind):>9}" for name, _, kind in _COLUMNS)
        yield from (f"  {_first_line(error)}" for error in load["errors"])


def _number(value: float | None, kind: str) -> str:
    return "-" if value is None else format(value, kind)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
