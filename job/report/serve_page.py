"""The page of a test of a served model: one file, nothing from elsewhere, light and dark, wide and narrow."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from job.report.serve_plots import COLOURS, SERIES, plot_latencies, plot_throughput

Facts = Mapping[str, Any]

_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8c564b", "#7f7f7f")
_DARK = ("#56b4e9", "#ff9d4d", "#2ecc9a", "#e6a3cb", "#f0d858", "#9ad0f5", "#c9a095", "#b0b0b0")
_MARKS = {True: ("pass", "passed"), False: ("fail", "failed"), None: ("skip", "not done")}
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
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #222; --quiet: #666; --line: #ddd; --pass: #00724f;
  --fail: #b3261e; --skip: #777; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e6e6e6; --quiet: #a0a6ad; --line: #3a4047;
  --pass: #4cd4a4; --fail: #ff8a80; --skip: #9aa0a6; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
span { white-space: nowrap; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .skip, small, dt { color: var(--quiet); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.wide table { white-space: nowrap; } th { font-weight: 600; color: var(--quiet); }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
.wide td:not(:first-child), .wide th:not(:first-child) { text-align: right; }
pre { white-space: pre-wrap; margin: 0; font: inherit; }
svg { display: block; width: 100%; height: auto; max-width: 44rem; margin: .5rem 0; }
svg text { font-family: system-ui, sans-serif !important; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; } dd { margin: 0; }
"""


def serve_page(facts: Facts) -> str:
    """The content of `serve-test.json` as HTML."""
    passed = facts["status"] == "passed"
    model = facts["model"]
    title = f"{model.get('id') or model['from']}: serve-test {facts['status']}"
    parts = [
        f'<h1>serve-test <span class="{"pass" if passed else "fail"}">{escape(facts["status"])}</span></h1>',
        f"<p>{escape(_subject(facts))}</p>",
        *(f'<pre class="fail">{escape(reason)}</pre>' for reason in facts["reasons"]),
        _section("Answers", _checks(facts["checks"])),
        _section("Under load", _loads(facts["loads"])),
        _section("Thresholds", _thresholds(facts["thresholds"])),
        _section("What is what", _pairs(_DEFINITIONS) if facts["loads"] else ""),
        _section("How", _pairs(_settings(facts))),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _style() -> str:
    light, dark = (
        " ".join(f"{COLOURS[one][4:-1]}: {colour};" for one, colour in zip(SERIES, colours, strict=True))
        for colours in (_LIGHT, _DARK)
    )
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)


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


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _checks(checks: Sequence[Facts]) -> str:
    rows = []
    for check in checks:
        kind, word = _MARKS[check["passed"]]
        rows.append((f'<span class="{kind}">{word}</span>', escape(check["name"]), _text(check["detail"])))
    return _table(("", "check", ""), rows) if rows else ""


def _loads(loads: Sequence[Facts]) -> str:
    if not loads:
        return ""
    rows = [[escape(_number(load[name])) for name, _ in _LOAD_COLUMNS] for load in loads]
    table = _table([title for _, title in _LOAD_COLUMNS], rows)
    errors = [f"{load['name']}: {error}" for load in loads for error in load["errors"]]
    return "\n".join(
        [
            plot_throughput(loads),
            plot_latencies(loads),
            f'<div class="wide">{table}</div>',
            "<small>Latencies in milliseconds.</small>",
            *(f'<p class="fail">{_text(error)}</p>' for error in errors),
        ]
    )


def _thresholds(verdicts: Sequence[Facts]) -> str:
    rows = []
    for one in verdicts:
        kind, word = _MARKS[one["passed"]]
        cells = (one["name"], f"{one['limit']:g}", _number(one["found"]), one["load"])
        rows.append((f'<span class="{kind}">{word}</span>', *map(escape, cells)))
    return _table(("", "threshold", "limit", "found", "load"), rows) if rows else ""


def _settings(facts: Facts) -> Iterable[tuple[str, str]]:
    plan = {
        name: value for name, value in facts["plan"].items() if name != "thresholds" and value not in (None, [], ())
    }
    yield from ((name, ", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v)) for name, v in plan.items())
    yield "server", " ".join([str(facts["server"]["url"]), *facts["server"]["arguments"]])
    yield from ((name, str(value)) for name, value in facts["code"].items() if value and not isinstance(value, dict))
    yield from ((name, str(value)) for name, value in facts["code"]["packages"].items())


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Titles as text, cells as HTML."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _number(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
