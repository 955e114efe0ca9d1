"""The page of a test, its metrics and its lines: made of a report alone, and of nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest
from prometheus_client import generate_latest

from job.report.serve_page import serve_page
from job.serving.testing.figures import Timeline, figures, quantiles
from job.serving.testing.outcome_metrics import outcome_registry
from job.serving.testing.text import report_lines

EVIL = '<script src="http://evil.example/x.js">'


def load(name, timelines, **more):
    found = {f"quantiles_{kind}_ms": quantiles(kind, timelines) for kind in ("ttft", "itl")}
    return {"name": name, "errors": [], **figures(timelines), **found, **more}


ANSWERED = [
    Timeline(due=n, started=n, chunks=(n + 0.25, n + 0.5), ended=n + 0.5, completion_tokens=2) for n in range(3)
]
LOST = [Timeline(due=0.0, started=0.0, ended=1.0, error=EVIL)]


@pytest.fixture
def report():
    """A failed test: answers in one load, none in the other."""
    return {
        "status": "failed",
        "reasons": [f"n choices: expected {EVIL}"],
        "started": "2026-11-21T09:00:00+00:00",
        "seconds": 12.0,
        "ended": 1.0,
        "model": {"id": EVIL, "from": "runs/a", "parameters": 1000, "dtype": "fp32"},
        "server": {"url": "http://127.0.0.1:1", "arguments": [], "ready_seconds": 2.5, "peak_memory_bytes": 1 << 30},
        "plan": {"requests": 3},
        "checks": [
            {"name": "n choices", "passed": False, "detail": f"expected {EVIL}"},
            {"name": "known answers", "passed": None, "detail": "none"},
        ],
        "thresholds": [{"name": "max_failures", "limit": 0, "found": 1, "load": "", "passed": False}],
        "loads": [load("1 at a time", ANSWERED), load("8 at a time", LOST, errors=[EVIL])],
        "code": {"git": None, "packages": {"torch": "2"}},
    }


class Elements(HTMLParser):
    """Names and attributes of all elements."""

    def __init__(self, page):
        super().__init__()
        self.names, self.links = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


def test_the_page_needs_nothing_from_elsewhere(report):
    """No script, no image, no style sheet of another place; links only within the drawings."""
    page = serve_page(report).decode()
    elements = Elements(page)

    assert not {"script", "link", "img", "iframe", "object"} & set(elements.names)
    assert all(link.startswith("#") for link in elements.links)
    assert not re.search(r"@import|url\((?!#)", page)


def test_what_a_server_says_is_text(report):
    """Markup in a model's name, an error or an answer is shown and not done."""
    page = serve_page(report).decode()

    assert EVIL not in page
    assert page.count("&lt;script") >= 3


def test_the_page_is_drawn_in_its_own_colours(report):
    """No colour of a drawing is fixed: light and dark are the page's, which names them for both."""
    page = serve_page(report).decode()
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))

    assert page.count("<svg") == 3
    assert not re.search(r"(?:fill|stroke): #(?!fff)", drawings)
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= set(re.findall(r"(--[\w-]+):", page))
    assert "prefers-color-scheme: dark" in page


def test_a_report_without_loads_has_a_page(report):
    """What was never measured is left out."""
    page = serve_page({**report, "loads": []}).decode()

    assert "<svg" not in page
    assert "Under load" not in page


def test_metrics_are_of_the_best_load(report):
    """Values are those of the load with most tokens a second, and outcomes are counted."""
    registry = outcome_registry(report)
    value = registry.get_sample_value

    assert value("pretrain_serve_test_passed") == 0
    assert value("pretrain_serve_test_latency_seconds", {"latency": "ttft", "statistic": "p99"}) == pytest.approx(0.25)
    assert value("pretrain_serve_test_requests", {"outcome": "failed"}) == 1
    assert value("pretrain_serve_test_checks", {"outcome": "skipped"}) == 1


def test_metrics_do_not_grow(report):
    """However many loads and checks there are, the series are the same."""
    more = {**report, "loads": report["loads"] * 50, "checks": report["checks"] * 50}
    names = [
        {line.rpartition(" ")[0] for line in generate_latest(outcome_registry(one)).decode().splitlines()}
        for one in (report, more)
    ]

    assert names[0] == names[1]


def test_lines_for_a_terminal(report):
    """Each check, load and threshold has its line, and the end is the verdict."""
    lines = list(report_lines(report))

    assert lines[0].split()[:3] == ["FAILED", "n", "choices"]
    assert any(line.startswith("1 at a time") and "250" in line for line in lines)
    assert lines[-1] == "FAILED"
