"""An event log becomes plain values, whatever state it is in, and what was lost is counted in time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.errors import DataError
from job.report.costs import measure_costs
from job.report.reading import read_history
from job.report.thinning import thin
from tests.unit.report_support import TOKENS, Log, whole


def read(log):
    return read_history(bytes(log), "events.jsonl")


def costs_of(log):
    return measure_costs(read(log))


def test_a_run_is_read_whole():
    """Steps, evaluations, samples, checkpoints and the attempt, as they were written."""
    history = read(whole())

    assert list(history.steps["step"]) == list(range(1, 91))
    assert [e.step for e in history.evaluations] == list(range(10, 91, 10))
    assert [save.step for save in history.saves] == [30, 60, 90]
    assert history.samples[0].text == " moves <b>you</b>"
    assert (history.tokens_per_step, history.attempts[0].code, history.oddities) == (TOKENS, 0, [])


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"not json\n[1]\n", b'{"a": 1}\n', b'{"event": "step"}\n', b"\xff\x00"]
)
def test_what_is_no_event_log_is_refused(content):
    """An empty or foreign file is an error that says what was expected, where, and what was there."""
    with pytest.raises(DataError, match=r"^run/events\.jsonl: expected a run's events, .*; got "):
        read_history(content, "run/events.jsonl")


def test_a_cut_log_is_read_up_to_the_cut():
    """The line that a killed process did not finish is left out, and said."""
    history = read_history(bytes(whole())[:-20], "events.jsonl")

    assert history.attempts[0].code is None
    assert history.oddities == ["the last line of the event log is cut: its process ended while it wrote"]


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(list(whole().lines()))), max_size=30))
def test_no_log_is_too_strange_to_be_read_or_refused(lines):
    """Any mixture of bytes and events gives a history or a DataError."""
    try:
        history = read_history(b"\n".join(lines), "events.jsonl")
    except DataError:
        return
    measure_costs(history)


def test_foreign_lines_are_counted():
    """Lines that are no events change nothing, and the reader is told how many they were."""
    lines = list(whole().lines())
    history = read_history(b"".join([*lines[:5], b"hello\n", b"[1]\n", *lines[5:]]), "events.jsonl")

    assert len(history.steps["step"]) == 90
    assert history.oddities == ["2 lines of the event log left out: no events of a run"]


def test_of_two_events_of_one_step_the_later_holds():
    """An evaluation that is there twice is one."""
    history = read(whole().add("evaluated", 90, tokens=90 * TOKENS, train_loss=1.0, val_loss=7.0))

    assert [e.val_loss for e in history.evaluations if e.step == 90] == [7.0]


def test_losses_that_are_not_finite_are_said():
    """A run whose losses are null is read, and says how many steps and evaluations have none."""
    log = Log().start().train(1, 20, loss=lambda step: None).add("step skipped", 20, loss=None, gradient_norm=None)
    history = read(log)

    assert np.isnan(history.steps["loss"]).all()
    assert history.best is None
    assert history.oddities == [
        "1 step skipped: loss or gradients were not finite",
        "2 evaluations without a finite loss, the first at step 10",
    ]


def test_goodput_is_the_share_of_time_in_steps():
    """90 steps of 2 s, 9 evaluations of 1 s and 10 s before: 180 of 199 seconds."""
    costs = costs_of(whole())

    assert costs.wall == pytest.approx(199)
    assert costs.training == pytest.approx(180)
    assert costs.goodput == pytest.approx(180 / 199)
    assert costs.phases == pytest.approx({"importing": 10, "evaluating": 9})


def test_an_eviction_costs_what_was_redone_and_the_time_away():
    """Stopped at 35, back a minute later at 30: five steps again, 60 s away, 10 s to start."""
    log = Log().start().train(1, 35).end(35, 75, "SIGTERM received").wait(60).start(30).train(31, 90).end(90)
    (lost,) = costs_of(log).interruptions

    assert (lost.redone_steps, lost.redone, lost.away, lost.startup) == (5, pytest.approx(10), pytest.approx(60), 10)


def test_nobody_knows_what_a_killed_attempt_did_last():
    """Without an end the steps to redo are unknown, and the time since the last word counts as away."""
    log = Log().start().train(1, 30).wait(45).start(30).train(31, 90).end(90)
    (lost,) = costs_of(log).interruptions

    assert (lost.redone_steps, lost.away) == (None, pytest.approx(45))


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_changes_no_duration(jump):
    """A day forth or back in the middle of an attempt is said and not counted."""
    log = Log().start().train(1, 45)
    log.now += jump
    history = read(log.train(46, 90).end(90))

    assert measure_costs(history).wall == pytest.approx(199)
    assert history.oddities == ["the clock jumped within 1 attempt; durations are those of a steady clock"]


def test_a_jump_within_an_attempt_is_no_time_away():
    """What the next attempt finds gone is counted from the last word of the one before, by the same calendar."""
    log = Log().start().train(1, 15)
    log.now += 86_400
    log.train(16, 30).wait(60).start(30).train(31, 90).end(90)

    assert costs_of(log).interruptions[0].away == pytest.approx(60)


def test_clocks_of_two_machines_that_disagree_take_no_time_away():
    """A second attempt dated before the first has cost no time, which is said."""
    log = Log().start().train(1, 30)
    log.now -= 3600
    history = read(log.start(30).train(31, 90).end(90))

    assert measure_costs(history).interruptions[0].away == 0
    assert history.oddities == ["1 attempt began before the last word of the one before: clocks disagree"]


def test_logs_without_a_steady_clock_go_by_the_dates():
    """Logs of before have no uptime: durations are those of the dates, never negative."""
    log = whole()
    for event in log.events:
        del event["uptime"]

    assert costs_of(log).wall == pytest.approx(199)


@given(
    y=st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=400),
    columns=st.integers(1, 20),
)
def test_thinning_loses_no_extreme(y, columns):
    """First, last, lowest and highest of the whole are among at most four points a column, in their order."""
    values = np.array(y)
    x, kept = thin(np.arange(len(values), dtype=float), values, columns)
    finite = values[np.isfinite(values)]

    assert len(kept) <= max(4 * columns, 0)
    assert (np.diff(x) > 0).all()
    assert all(values[int(at)] == value for at, value in zip(x, kept, strict=True))
    if len(finite):
        assert (kept[0], kept[-1], kept.min(), kept.max()) == (finite[0], finite[-1], finite.min(), finite.max())


def test_a_spike_of_one_step_in_a_hundred_thousand_is_drawn():
    """What was one bad batch is still to be seen."""
    y = np.ones(100_000)
    y[54_321] = 9.0
    x, kept = thin(np.arange(100_000.0), y)

    assert len(kept) < 2000
    assert x[kept == 9.0] == 54_321
