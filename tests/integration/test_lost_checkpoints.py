"""Saves that fail and checkpoints that are damaged: noticed, counted, and never the reason to start over."""

import resource
from pathlib import Path

import pytest

from tests.integration.command import SLOW, Job, World, flip_bit

FULL = 150_000  # bytes that a file may have: enough for the model's, too few for the optimizer's


def fill_disk(job: Job, limit: int = FULL) -> None:
    """Let no file of the process grow beyond `limit` bytes: what a full disk does, for this process alone."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux limits another process")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.prlimit(job.process.pid, resource.RLIMIT_FSIZE, (limit, hard))


def free_disk(job: Job) -> None:
    """End what `fill_disk` did."""
    fill_disk(job, resource.RLIM_INFINITY)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A run whose disk was full for its first save, and for no later one."""
    world = World.create(tmp_path_factory.mktemp("crowded"))
    with world.training(*SLOW, "checkpoint.max_failures=100") as job:
        fill_disk(job)
        lost = job.until("checkpoint lost, the one before it stands, training goes on")
        free_disk(job)
        return world, lost, job.ending()


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(crowded, finished):
    """A save that finds no room is a warning; training goes on and ends as if nothing had been."""
    _, lost, ending = crowded

    assert (lost["level"], lost["step"], lost["reason"]) == ("warning", 5, "disk")
    assert ending.codes == {0}
    assert ending.summary["chain"] == finished.ending.summary["chain"]


def test_lost_saves_are_counted(crowded):
    """`pretrain_checkpoint_failures_total` says how many saves were lost and why."""
    world, _, ending = crowded
    lost = len(ending.events("checkpoint lost, the one before it stands, training goes on"))

    assert f'pretrain_checkpoint_failures_total{{reason="disk"}} {lost}.0' in world.metrics()


def test_a_disk_that_stays_full_ends_the_run_with_69(world):
    """`checkpoint.max_failures` saves lost in a row end the run: it only burns money."""
    with world.training() as job:
        fill_disk(job)
        ending = job.ending()

    assert ending.codes == {69}
    assert "3 saves in a row were lost" in ending.reason


def weights(world: World) -> list[Path]:
    """The model of each checkpoint, oldest first."""
    return sorted((world.run / "data").glob("*/s*/model.safetensors"), key=lambda path: path.parent.name)


@pytest.fixture(scope="module")
def rejected(killed, tmp_path_factory):
    """A killed run, continued after the weights of its newest checkpoint were damaged; what it had saved."""
    world = killed.world.copy(tmp_path_factory.mktemp("rejected"))
    flip_bit(weights(world)[-1])
    return world, killed.world.saved(), world.train()


def test_a_damaged_checkpoint_is_passed_over(rejected):
    """One bit flipped in the newest checkpoint: a warning, and the one before is continued."""
    _, saved, ending = rejected
    warning, started = ending.events("checkpoint rejected, the one before it is tried"), ending.events("run continued")

    assert [(line["step"], line["reason"]) for line in warning] == [(saved[-1], "sha256")]
    assert [line["step"] for line in started] == [saved[-2]]


def test_a_run_with_a_damaged_checkpoint_ends_as_ever(rejected, finished):
    """What was lost is trained again: the chain is that of an unbroken run."""
    _, _, ending = rejected

    assert ending.codes == {0}
    assert ending.summary["chain"] == finished.ending.summary["chain"]


def test_a_damaged_checkpoint_is_counted(rejected):
    """`pretrain_checkpoint_rejected_total` and the history name the reason."""
    world, saved, _ = rejected

    assert 'pretrain_checkpoint_rejected_total{reason="sha256"} 1.0' in world.metrics()
    assert [event["step"] for event in world.history() if event["event"] == "checkpoint rejected"] == saved[-1:]


@pytest.fixture(scope="module")
def ruined(killed, tmp_path_factory):
    """A killed run whose every checkpoint was damaged, and how the next start ended."""
    world = killed.world.copy(tmp_path_factory.mktemp("ruined"))
    for path in weights(world):
        flip_bit(path)
    return world, world.train()


def test_a_run_without_a_valid_checkpoint_ends_with_66(ruined):
    """Records but nothing valid: never step 0; the message says what is wrong with each and what a person can do."""
    _, ending = ruined

    assert ending.codes == {66}
    assert ending.reason.count("has sha256") >= 2
    assert "--restart-from-scratch" in ending.reason


def test_a_person_can_start_over(ruined, finished):
    """--restart-from-scratch trains from step 0 to the end."""
    world, _ = ruined
    ending = world.gpt_job("train", "--restart-from-scratch")

    assert ending.codes == {0}
    assert [line["step"] for line in ending.events("run started")] == [0]
    assert ending.summary["chain"] == finished.ending.summary["chain"]
