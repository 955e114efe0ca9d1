"""The report beside training: seldom, in another process, and never at the run's cost."""

import pytest
import structlog

from job.training.reporter import FIRST, LONGEST, SHARE, SOON, Reporter
from tests.unit.report_support import whole


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(bytes(whole()))
    return path


def drawn_by(reporter):
    """What a drawing under way comes to."""
    reporter._process.wait(60)
    return reporter.poll()


def test_a_report_is_drawn_in_time_and_not_too_often(events, tmp_path, clock):
    """Nothing in the first minute, then a drawing, and the next only after a hundred times what that took."""
    reporter = Reporter(events, "runs/one", tmp_path / "scratch", clock=clock)
    reporter.begin()
    assert reporter.poll() == {}
    assert reporter._process is None

    clock.now = FIRST
    reporter.begin()
    clock.now += 5.0
    files = drawn_by(reporter)
    assert b"runs/one" in files["report/report.html"]

    clock.now += 5.0 * SHARE - 1
    reporter.begin()
    assert reporter._process is None


def test_the_end_is_drawn_at_once(events, tmp_path):
    """However lately it was drawn, the end is in the report."""
    reporter = Reporter(events, "runs/one", tmp_path / "scratch")

    assert b"complete" in reporter.draw(60)["report/report.html"]


def test_a_drawing_that_hangs_is_left(events, tmp_path, clock):
    """After two minutes the process is killed, and said."""
    reporter = Reporter(events, "runs/one", tmp_path / "scratch", clock=clock)
    clock.now = FIRST
    with structlog.testing.capture_logs() as said:
        reporter.begin()
        process = reporter._process
        clock.now += LONGEST
        files = reporter.poll()

    assert files == {}
    assert process.returncode == -9
    assert [line["event"] for line in said] == ["report not drawn"]


def test_what_cannot_be_drawn_ends_no_run(tmp_path):
    """Without an event log there is a warning, once, which says why and what a person can do."""
    reporter = Reporter(tmp_path / "none.jsonl", "runs/one", tmp_path / "scratch")
    with structlog.testing.capture_logs() as said:
        assert reporter.draw(60) == {}
        assert reporter.draw(60) == {}

    assert len(said) == 1
    assert "FileNotFoundError" in said[0]["reason"]
    assert said[0]["by_hand"] == "gpt-job report --run runs/one"


def test_without_time_nothing_is_drawn(events, tmp_path):
    """A run whose grace is over does not wait for pictures."""
    assert Reporter(events, "runs/one", tmp_path / "scratch").draw(0.0) == {}


def test_who_draws_the_end_is_ready_before_it(events, tmp_path):
    """Started some seconds before, it waits, draws nothing that is taken for a report, and then what the log has."""
    reporter = Reporter(events, "runs/one", tmp_path / "scratch")
    reporter.make_ready(SOON + 1)
    assert reporter._process is None

    whole_log = events.read_bytes()
    events.write_bytes(whole_log.splitlines(keepends=True)[0])
    reporter.make_ready(SOON - 1)
    ready = reporter._process
    assert reporter.poll() == {}

    events.write_bytes(whole_log)
    assert b"complete" in reporter.draw(60)["report/report.html"]
    assert ready.returncode == 0


def test_who_waits_ends_with_the_training(events, tmp_path):
    """A training that is killed leaves nobody behind who waits for its word."""
    reporter = Reporter(events, "runs/one", tmp_path / "scratch")
    reporter.make_ready(0)
    reporter._process.stdin.close()

    assert reporter._process.wait(60) == 0
    assert list((tmp_path / "scratch" / "report").iterdir()) == []
