"""Checkpoints that come by the clock, which never stands still between two looks at it."""

import random

from tests.chaos.commands import train
from tests.chaos.harness import keep_up
from tests.integration.command import World

STEPS = "training.max_steps=32"
BY_THE_CLOCK = (STEPS, "checkpoint.every=1000", "checkpoint.every_seconds=7", "observe.log_every=7")


def let_time_jump():
    """Each look at the saver's clock finds it up to four seconds later than the last; no save is skipped."""
    from types import SimpleNamespace

    from job.training import saver

    drawn, now = random.Random(5), [0.0]

    def monotonic():
        now[0] += drawn.uniform(0, 4)
        return now[0]

    saver.time = SimpleNamespace(monotonic=monotonic)
    keep_up()


def chains(world):
    return {record["step"]: record["chain"] for record in world.records() if record["kind"] == "checkpoint"}


def test_each_has_the_chain_of_its_step(tmp_path):
    """Whenever the clock makes a step due, what is saved is what a run that saves every step has there."""
    clocked, every_step = World.create(tmp_path / "clocked"), World.create(tmp_path / "steps")
    assert train(clocked, *BY_THE_CLOCK, before=let_time_jump).code == 0
    assert every_step.train(STEPS, "checkpoint.every=1").code == 0
    found, expected = chains(clocked), chains(every_step)

    assert len(found) > 3
    assert found == {step: expected[step] for step in found}
