"""The page of a run and its pictures: complete, self-contained, the same for the same events."""

import re
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from job.report.canvas import COLOURS
from job.report.command import report_files
from job.report.compare import render_comparison
from job.report.curves import loss_picture
from job.report.page import draw_pictures, read_run, render_page
from job.report.published import PUBLISHED, find_published
from job.report.reading import Span
from job.report.timeline import timeline_picture, touched
from tests.unit.report_support import VERDICT, Log, whole

BOOK = PUBLISHED[0]
PICTURES = [
    "loss",
    "perplexity",
    "bits_per_byte",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "checkpoints",
    "timeline",
]


def run_of(log, uri="runs/one"):
    return read_run(bytes(log), uri, f"{uri}/events.jsonl")


@pytest.fixture(scope="module")
def files():
    """The report of a run that nothing disturbed."""
    return report_files(run_of(whole()))


@pytest.fixture(scope="module")
def page(files):
    return files["report.html"].decode()


def page_of(log):
    """The page of a run, without its figures, which take long."""
    return render_page(run_of(log), []).decode()


def text_of(page):
    """What a person reads."""
    body = re.sub(r"<(style|svg).*?</\1>", "", page[page.index("<body>") :], flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_every_picture_is_there(files):
    """One PNG each, wide enough to be read."""
    sizes = {name: struct.unpack(">I", content[16:20])[0] for name, content in files.items() if name.endswith(".png")}

    assert sorted(sizes) == sorted(f"{name}.png" for name in PICTURES)
    assert min(sizes.values()) >= 900


@pytest.mark.parametrize(("code", "said"), [(None, "killed"), (75, "exit 75"), (0, None)])
def test_the_timeline_says_how_an_attempt_ended(code, said):
    """A kill that left no word, an exit code, and nothing for one that was complete."""
    log = Log().start().train(1, 30)
    log = (log if code is None else log.end(30, code)).wait(5).start(30).train(31, 40)
    run = run_of(log)
    texts = re.findall(r">(killed|exit \d+)</text>", timeline_picture(run.history, run.costs).svg)

    assert texts == ([said] if said else [])


def test_the_timeline_marks_saves_where_they_were():
    """Three saves, among spans that no binary fraction can hold, mark the parts they fell in."""
    spans = [Span(phase="saving", start=at, end=at + 0.7) for at in (0.1, 32.3, 77.7)]
    attempt = replace(run_of(whole()).history.attempts[0], seconds=100.0, spans=spans)

    assert touched(attempt, "saving", 50).nonzero()[0].tolist() == [0, 16, 38, 39]


def test_the_same_events_give_the_same_report(files):
    """Drawing twice gives the same bytes."""
    assert report_files(run_of(whole())) == files


class Addresses(HTMLParser):
    """What a page names that lies elsewhere, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [tag] if tag in ("script", "link", "img", "iframe", "image") else []
        self.found += [
            f"{name}={value}"
            for name, value in attrs
            if (name in ("src", "href", "xlink:href") and not value.startswith("#")) or name.startswith("on")
        ]


def test_the_page_stands_alone(page):
    """It loads nothing and runs nothing."""
    addresses = Addresses()
    addresses.feed(page)

    assert addresses.found == []
    assert "url(http" not in page
    assert "default-src 'none'" in page


def test_the_page_fits_a_phone_and_the_dark(page):
    """It has a viewport, colours for both schemes, and every colour of a figure is one of them."""
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))

    assert "width=device-width" in page
    assert "prefers-color-scheme: dark" in page
    assert set(re.findall(r"var\(--(\w+)\)", figures)) <= set(COLOURS)
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", figures)


def test_the_model_s_text_is_text(page):
    """A sample that looks like HTML is shown as it is."""
    assert "moves &lt;b&gt;you&lt;/b&gt;" in page


@pytest.mark.parametrize(
    "said", ["complete", "90 of 90", "best validation loss 0.4979", "goodput 90%", "Where the time went"]
)
def test_the_page_says_how_the_run_went(page, said):
    """Status, steps, loss and goodput, in words."""
    assert said in text_of(page)


def test_a_killed_run_says_so():
    """Attempts, what was redone and how each ended."""
    log = Log().start().train(1, 35).end(35, 75, "SIGTERM received").start(30).train(31, 40)
    said = text_of(page_of(log))

    assert "no end noted: it still runs, or was killed" in said
    assert "1 0 to 35 1m23s SIGTERM received 5 " in said


def test_a_run_without_evaluations_has_its_loss():
    """What has been logged is drawn, and the page says that nothing was evaluated."""
    log = Log().start().train(1, 9)
    pictures = [picture.name for picture in draw_pictures(run_of(log))]

    assert pictures == ["loss", "learning_rate", "gradient_norm", "tokens_per_second", "timeline"]
    assert "nothing has been evaluated yet" in text_of(page_of(log))


def test_a_run_that_has_only_begun_has_a_page():
    """With nothing to draw but the timeline."""
    assert "0 of 90" in text_of(page_of(Log().start()))


@pytest.mark.parametrize("loss", [None, 5000.0, 0.0, -1.0])
def test_any_loss_can_be_drawn(loss):
    """None, beyond all measure, zero or below it."""
    assert report_files(run_of(Log().start().train(1, 30, loss=lambda step: loss)))["report.html"]


def test_the_book_stands_beside_a_run_of_its_work():
    """The published curve is found for that text and model, drawn, and its values stand in the table."""
    log = Log().start(**VERDICT)
    for step, train, val in BOOK.curve:
        at = {"tokens": step * 512, "epoch": step / 9}
        log.add("evaluated", step, train_loss=train, val_loss=val - 0.1, seconds=1.0, **at)
        log.add("step", step, loss=train, tokens_per_second=1.0, **at)
    run = run_of(log)

    assert [known.name for known in run.published] == ["book"]
    assert "book, validation" in loss_picture(run.history, run.published).svg
    assert re.search(r"46 5\.11 2\.8500 6\.0790 436\.59 6\.179", text_of(page_of(log)))


@pytest.mark.parametrize(
    ("section", "change"), [("model", {"n_layer": 6}), ("data", {"tokenizer": "char"}), ("training", {"batch_size": 4})]
)
def test_other_work_is_not_held_against_the_book(section, change):
    """Another model, tokenizer or batch has no published curve."""
    config = {**VERDICT["config"], section: {**VERDICT["config"][section], **change}}

    assert find_published(config, VERDICT["corpus"]) == []


def test_another_text_is_not_held_against_the_book():
    """The hash of the text decides, not its name."""
    file = {**VERDICT["corpus"]["files"][0], "sha256": "0" * 64}

    assert find_published(VERDICT["config"], {"files": [file]}) == []


def test_several_runs_share_a_page():
    """Each run has its line in every figure, and what differs is listed."""
    other = Log().start(config={"seed": 2, "model": {"n_layer": 2}}).train(1, 60).end(60, 75, "SIGTERM received")
    one = Log().start(config={"seed": 2, "model": {"n_layer": 4}}).train(1, 90).end(90)
    files = render_comparison([run_of(one, "a/one"), run_of(other, "b/one")])
    page = files["compare.html"].decode()

    assert "compare_validation_loss.png" in files
    assert page.count(">a/one<") >= 4
    assert "model.n_layer 4 2" in text_of(page)
    assert "seed" not in text_of(page)


def test_drawing_libraries_load_only_to_draw():
    """Reading an event log imports neither matplotlib nor jinja2 nor torch."""
    code = "import sys, job.report.command; print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout

    assert said == "set()\n"
