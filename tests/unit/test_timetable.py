"""When things are due, and what the learning rate is: pure functions of the step."""

import pytest

from job.config import OptimizerConfig, TrainingConfig
from job.training.schedule import learning_rate
from job.training.timetable import Timetable, total_steps


def timetable(windows=18, **training):
    return Timetable(TrainingConfig(**{"batch_size": 2, **training}), windows)


def due(question, until):
    return [step for step in range(until + 1) if question(step)]


def test_epochs_end_a_run():
    """Ten epochs of 18 windows in batches of two are 90 steps."""
    assert timetable(epochs=10).end == 90


@pytest.mark.parametrize(("max_steps", "epochs", "end"), [(50, 10, 50), (100, 10, 90), (100, None, 100), (None, 1, 9)])
def test_whichever_end_comes_first_counts(max_steps, epochs, end):
    """With steps and epochs both set, the earlier one ends the run."""
    assert total_steps(TrainingConfig(batch_size=2, max_steps=max_steps, epochs=epochs), 18) == end


def test_a_part_of_an_epoch_rounds_up():
    """The last, partial batch of an epoch is a whole step."""
    assert total_steps(TrainingConfig(batch_size=4, epochs=1), 18) == 5


def test_the_tutorial_evaluates_after_updates_1_6_11():
    """A period of 5 with offset 1 is the tutorial's, with the start and the end beside it."""
    table = timetable(epochs=2, eval_every=5, eval_offset=1)

    assert due(table.evaluates, 18) == [0, 1, 6, 11, 16, 18]


def test_evaluation_at_the_ends_of_epochs():
    """The period "epoch" is due at the first step that has read a whole epoch."""
    table = timetable(windows=7, epochs=3, eval_every="epoch")

    assert due(table.evaluates, 11) == [0, 4, 7, 11]


def test_samples_begin_after_the_first_step():
    """No sample is drawn before training; one is drawn at the end."""
    assert due(timetable(max_steps=10, sample_every=4).samples, 10) == [4, 8, 10]


def test_no_samples_unless_asked_for():
    """Without a period there are none."""
    assert due(timetable(max_steps=10).samples, 10) == []


def test_time_ends_a_run():
    """max_seconds counts training seconds over all attempts."""
    table = timetable(max_seconds=60)

    assert [table.finished(5, seconds) for seconds in (59.9, 60.0)] == [False, True]


def rates(steps, total=100, **config):
    return [learning_rate(step, total, OptimizerConfig(**config)) for step in steps]


def test_warmup_rises_in_a_line_to_the_peak():
    """The first of ten warmup steps has a tenth of the peak, the last one all of it."""
    assert rates([0, 4, 9], learning_rate=1.0, warmup_steps=10) == pytest.approx([0.1, 0.5, 1.0])


def test_warmup_starts_where_it_is_told_to():
    """initial_learning_rate is the rate before the first step."""
    assert rates([0, 9], learning_rate=1.0, initial_learning_rate=0.5, warmup_steps=10) == pytest.approx([0.55, 1.0])


def test_cosine_falls_to_the_minimum():
    """The peak at the start, half-way in the middle, the minimum at the end and beyond."""
    found = rates([0, 50, 100, 200], learning_rate=1.0, min_learning_rate=0.2, schedule="cosine")

    assert found == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_linear_falls_in_a_line():
    """A quarter of the way down after a quarter of the steps."""
    assert rates([0, 25, 100], learning_rate=1.0, schedule="linear") == pytest.approx([1.0, 0.75, 0.0])


def test_wsd_stays_then_falls():
    """The peak until the cooldown begins, then a line to the minimum."""
    found = rates([0, 79, 90, 100], learning_rate=1.0, schedule="wsd", cooldown=0.2)

    assert found == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_constant_is_constant():
    """No decay whatever the step."""
    assert set(rates(range(0, 1000, 99), learning_rate=0.3, schedule="constant")) == {0.3}
