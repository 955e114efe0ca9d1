"""A container that is stopped or killed, and what the next one on the same volume makes of it."""

import pytest

from tests.image.engine import docker
from tests.image.small_run import ANY_USER, LOCKED, SETTINGS, settings

PEACE, CUT = "runs/peace", "runs/cut"


@pytest.fixture(scope="module")
def volume(shared_engine, image):
    """A volume on which a run of the same settings has ended in peace."""
    volume = shared_engine.volume()
    assert start(shared_engine, image, volume, run_uri=PEACE).wait() == 0
    return volume


def start(engine, image, volume, *flags, **changes):
    """Train on the volume, locked down, as any user."""
    mounted = (*LOCKED, *ANY_USER, "--volume", f"{volume}:/runs", *flags)
    return engine.run(image, "train", flags=mounted, GPT_JOB_SET=settings(**changes))


def compared(image, volume, run, other):
    """Exit code of comparing the last checkpoints of two runs bit for bit: 0 is EQUAL."""
    words = ["checkpoints", "diff", "--run", run, "--with-run", other, "--exit-code"]
    said = docker("run", "--rm", "--volume", f"{volume}:/runs", image, *words, check=False)
    return said.returncode, "EQUAL" in said.stdout


def test_sigterm_saves_and_the_next_container_ends_equal(engine, image, volume):
    """`docker stop` gets a checkpoint and 75 within the grace; the next container ends it as if uncut, bit for bit."""
    first = start(engine, image, volume, run_uri=CUT)
    first.until("checkpoint saved", step=100)
    docker("stop", "--time", "40", first.name)
    stopped = first.summary()
    saved = int(stopped["checkpoint"].rpartition("/s")[2])
    second = start(engine, image, volume, run_uri=CUT)

    assert (first.state()["ExitCode"], stopped["status"]) == (75, "interrupted")
    assert 100 <= stopped["step"] == saved < SETTINGS["training.max_steps"]
    assert second.wait() == 0
    assert second.until("run continued")["step"] == saved
    assert compared(image, volume, CUT, PEACE) == (0, True)


def test_a_killed_container_loses_no_more_than_a_checkpoint(engine, image, volume):
    """`docker kill` is 137; the next container goes on from the newest checkpoint and ends equal."""
    run_uri = "runs/killed"
    first = start(engine, image, volume, run_uri=run_uri)
    first.until("checkpoint saved", step=150)
    docker("kill", first.name)
    assert first.wait() == 137

    second = start(engine, image, volume, run_uri=run_uri)

    assert second.wait() == 0
    assert second.until("run continued")["step"] >= 150
    assert compared(image, volume, run_uri, PEACE) == (0, True)


def test_another_run_is_seen_to_be_unequal(engine, image, volume):
    """The comparison that the others rely on: one more seed, and it says so."""
    other = start(engine, image, volume, run_uri="runs/other", seed=1)

    assert other.wait() == 0
    assert compared(image, volume, "runs/other", PEACE)[0] == 1


def test_out_of_memory_is_137_and_the_run_goes_on(engine, image):
    """The kernel's kill in the middle of a step costs nothing that was saved."""
    volume = engine.volume()
    wide = {"run_uri": "runs/wide", "training__batch_size": 64, "model__context_length": 512}
    wide |= {"training__eval_every": 4, "training__eval_batches": 1, "checkpoint__every": 2}
    small, large = {"training__micro_batch_size": 1}, {"training__micro_batch_size": 64}
    first = start(engine, image, volume, **wide, **small, training__max_steps=2)
    assert first.wait() == 0

    limit = ("--memory", "600m", "--memory-swap", "600m")
    second = start(engine, image, volume, *limit, **wide, **large, training__max_steps=4)
    assert second.wait() == 137
    assert second.state()["OOMKilled"]
    assert second.until("run continued")["step"] == 2

    third = start(engine, image, volume, *limit, **wide, **small, training__max_steps=4)
    assert third.wait() == 0
    assert third.until("run continued")["step"] == 2
