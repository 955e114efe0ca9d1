"""Steps that are not finite: skipped, then gone back from, and the same run whether it was stopped on the way or not.

What is broken is the data: whoever trains on certain windows gets a loss that is not a number, at whatever step.
"""

import json

import pytest

from job.errors import DivergedError
from job.training.rollback import data_to_pass_over
from tests.chaos.harness import Plan, run, tiny
from tests.chaos.outcome import outcome

SETTINGS = ("training.max_nonfinite_steps=3", "observe.log_every=2")
BAD = range(17, 21)  # batches, counted from 0: the updates 18 to 21


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """A run with bad data that nobody stopped: its outcome and its events."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(tiny(f"{folder}/run", corpus, *SETTINGS), Plan(bad_data=BAD)) == 0
    return outcome(f"{folder}/run", folder / "files"), events(folder)


def events(folder):
    return [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("first_bad", "last_bad", "offset"),
    [(18, 20, (15, 20)), (16, 18, (15, 12)), (15, 17, (10, 28)), (1, 3, (0, 12)), (21, 23, (20, 12))],
)
def test_where_a_run_goes_back_to(first_bad, last_bad, offset):
    """To the last step before the bad ones that is a multiple of the period; over the data of every step since."""
    found = data_to_pass_over(first_bad, last_bad, every=5, batch_size=4)

    assert (found.step, found.samples) == offset


def test_the_run_goes_back_and_passes_over_the_data(unbroken):
    """The third bad step in a row takes the run back to step 15 or before, and from there the samples of five steps
    are left out."""
    _, told = unbroken
    (rolled_back,) = (event for event in told if event["event"] == "rolled back")
    wanted = {"step": 20, "skipping_from": 15, "samples_passed_over": 20, "rollbacks": 1}

    assert {name: rolled_back[name] for name in wanted} == wanted
    assert rolled_back["continued_from"] in (5, 10, 15)  # a save that was skipped does not change the way


def test_after_going_back_each_step_is_told_once(unbroken):
    """Steps and evaluations of the way that was left are not in the history; every one of the new way is."""
    found, _ = unbroken

    assert found.logged_steps == tuple(range(2, 41, 2))
    assert found.evaluated_steps == (0, 10, 20, 30, 40)


def test_the_data_that_is_left_is_met_no_more(unbroken):
    """The one bad batch that was not passed over is skipped as a step of its own, and the rest of the run is finite."""
    _, told = unbroken

    assert [event["step"] for event in told if event["event"] == "step skipped"] == [16]


@pytest.mark.parametrize("step", [12, 15, 17, 18, 19, 20, 21, 30])
def test_stopped_around_a_rollback(unbroken, corpus, tmp_path, step):
    """Stopped before, among or after the bad steps and continued: equal to the run that nobody stopped."""
    resolved = tiny(f"{tmp_path}/run", corpus, *SETTINGS)
    codes = run(resolved, Plan(bad_data=BAD, stop_at_step=step)), run(resolved, Plan(bad_data=BAD))

    assert codes == (75, 0)
    assert outcome(f"{tmp_path}/run", tmp_path / "files") == unbroken[0]


@pytest.mark.parametrize("number", [16, 18, 20, 22, 25])
def test_killed_around_a_rollback(unbroken, corpus, tmp_path, number):
    """Killed at a batch before, among or after the bad steps and continued: equal to the run that nobody killed."""
    resolved = tiny(f"{tmp_path}/run", corpus, *SETTINGS)
    codes = run(resolved, Plan(bad_data=BAD, kill_at=("batch", number))), run(resolved, Plan(bad_data=BAD))

    assert codes == (-9, 0)
    assert outcome(f"{tmp_path}/run", tmp_path / "files") == unbroken[0]


def test_a_checkpoint_that_is_missing_does_not_change_the_way(unbroken, corpus, tmp_path):
    """When the checkpoint to go back to was never saved, an earlier one or the seed leads to the same place."""
    resolved = tiny(f"{tmp_path}/run", corpus, *SETTINGS, "checkpoint.max_failures=9")
    assert run(resolved, Plan(bad_data=BAD, lost_saves=(5, 10, 15))) == 0

    assert outcome(f"{tmp_path}/run", tmp_path / "files") == unbroken[0]


@pytest.mark.parametrize("log_every", [1, 7])
def test_when_results_are_read_does_not_matter(unbroken, corpus, tmp_path, log_every):
    """The way back is the same however seldom losses are looked at."""
    resolved = tiny(f"{tmp_path}/run", corpus, *SETTINGS, f"observe.log_every={log_every}")
    assert run(resolved, Plan(bad_data=BAD)) == 0
    found = outcome(f"{tmp_path}/run", tmp_path / "files")

    assert (found.chain, found.model, found.optimizer) == (
        unbroken[0].chain,
        unbroken[0].model,
        unbroken[0].optimizer,
    )


def test_rollbacks_are_bounded(corpus, tmp_path):
    """Data that is bad for good: after the rollbacks that are borne the run ends with 70, and says so."""
    resolved = tiny(f"{tmp_path}/run", corpus, *SETTINGS, "training.max_rollbacks=2")

    assert run(resolved, Plan(bad_data=range(12, 100))) == DivergedError.exit_code
    assert [event["rollbacks"] for event in events(tmp_path) if event["event"] == "rolled back"] == [1, 2]
    assert "after 2 rollbacks" in events(tmp_path)[-1]["reason"]


def test_without_rollbacks_the_run_ends_at_once(corpus, tmp_path):
    """With `training.max_rollbacks` 0 the third bad step in a row is the end."""
    resolved = tiny(f"{tmp_path}/run", corpus, *SETTINGS, "training.max_rollbacks=0")

    assert run(resolved, Plan(bad_data=BAD)) == DivergedError.exit_code
    assert "3 steps in a row, up to step 20" in events(tmp_path)[-1]["reason"]
