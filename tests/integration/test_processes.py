"""`gpt-job train --processes`: real launchers with real workers, what they say and how they end."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.integration.command import REAL, World
from tests.ports import free_ports

LONG = ("training.max_steps=100000", "checkpoint.every=1000", "training.eval_every=50000")
NO_CREDENTIALS = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
CODES = {
    65: ("data.split=[0.9999, 0.0001]",),
    66: ("data.corpus=nowhere.txt",),
    70: ("optimizer.learning_rate=1e38", "training.max_rollbacks=0", "optimizer.clip_norm=none"),
    77: ("run_uri=s3://nobody/here",),
    78: ("training.batch_size=1",),
}


def start(world, *settings, **environ):
    """A launcher with two workers."""
    words = [word for setting in settings for word in ("--set", setting)]
    return world.job("train", "--processes", "2", *words, launcher=REAL, OMP_NUM_THREADS="1", **environ)


def workers(process):
    """Process ids of its children, the first rank first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, children))


def listens(pid):
    """Whether the process handles SIGTERM."""
    handled = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(handled.split()[1], 16) & 1 << signal.SIGTERM - 1)


def answers(port):
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(said):
    """Wait until `said()`, for a minute at most."""
    until = time.monotonic() + 60
    while not said():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_two_to_the_end(tmp_path):
    """Both workers train, it ends with their 0, and the first one's summary is all that stdout says."""
    world = World.create(tmp_path)
    ending = start_and_end(world, "training.max_steps=10")
    [begun] = [event for event in world.history() if event["event"] == "run started"]

    assert ending.code == ending.termination["code"] == 0, ending.stderr
    assert ending.summary["status"] == "complete"
    assert ending.summary["step"] == world.saved()[-1] == 10
    assert (begun["numerics"]["world_size"], len(ending.stdout.splitlines())) == (2, 1)


def test_a_signal_before_there_is_a_worker(tmp_path):
    """SIGTERM while the launcher imports torch: it ends with 75, and nobody was started."""
    with start(World.create(tmp_path)) as job:
        wait_until(lambda: listens(job.process.pid))
        job.process.send_signal(signal.SIGTERM)
        ending = job.ending()

    assert ending.codes == {75}
    assert ending.reason == "Interrupted: SIGTERM received before any process had begun"
    assert not ending.events("processes start")


def test_a_signal_before_the_workers_listen(tmp_path):
    """SIGTERM while the workers import: it waits for them to listen, and all end with 75 as at any other time."""
    with start(World.create(tmp_path)) as job:
        job.until("processes start")
        wait_until(lambda: [listens(pid) for pid in workers(job.process)] == [False, False])
        job.process.send_signal(signal.SIGTERM)
        ending = job.ending()

    assert ending.codes == {75}
    assert "SIGTERM received" in ending.reason


@pytest.mark.slow
def test_a_signal_is_handed_on_and_the_grace_waited_for(tmp_path):
    """SIGTERM to the launcher: both workers save the same step, and it ends with their 75 and their reason."""
    world = World.create(tmp_path)
    with start(world, *LONG) as job:
        job.until("evaluated")
        job.process.send_signal(signal.SIGTERM)
        ending = job.ending()

    assert ending.codes == {75}
    assert "SIGTERM received" in ending.reason
    assert world.saved() == [ending.summary["step"]] == [ending.termination["step"]]
    assert [line["level"] for line in ending.log].count("error") == 2  # the first rank's, and the launcher's


@pytest.mark.slow
def test_a_killed_worker_is_started_again(tmp_path):
    """SIGKILL of one worker: all are started again and end well; the log names who was killed."""
    world = World.create(tmp_path)
    with start(world, "training.max_steps=300", "training.eval_every=300", "checkpoint.every=50") as job:
        job.until("checkpoint saved")
        os.kill(workers(job.process)[-1], signal.SIGKILL)
        again = job.until("processes are started again")
        ending = job.ending()

    assert (again["code"], again["reason"]) == (137, "rank 1 was killed by SIGKILL; start again to continue")
    assert ending.code == 0
    assert ending.events("run continued")
    assert ending.summary["step"] == 300


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_ends_with_the_workers_code_and_is_not_started_again(tmp_path, code):
    """What a retry repeats ends the launcher at once, with code and reason of the worker in every place."""
    ending = start_and_end(World.create(tmp_path), *CODES[code], **NO_CREDENTIALS)

    assert ending.codes == {code}
    assert not ending.events("processes are started again")
    assert len(ending.stdout.splitlines()) == 1


@pytest.mark.slow
def test_killed_too_often(tmp_path):
    """After `runtime.restarts` it ends with 128 and the signal's number, and says which rank it was."""
    world = World.create(tmp_path)
    with start(world, *LONG, "runtime.restarts=0") as job:
        job.until("evaluated")
        os.kill(workers(job.process)[-1], signal.SIGKILL)
        ending = job.ending()

    assert ending.codes == {137}
    assert ending.reason == "rank 1 was killed by SIGKILL; start again to continue"


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_nobody_behind(tmp_path):
    """SIGKILL of the launcher: its workers notice and end within a minute."""
    with start(World.create(tmp_path), *LONG) as job:
        job.until("evaluated")
        left = workers(job.process)
        job.process.kill()
        until = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < until:
            time.sleep(0.2)

    assert len(left) == 2
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def pet():
    """Variables of Kubeflow Trainer for two machines of one worker each, but for which one it is."""
    port = str(*free_ports(1))
    return {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}


@pytest.mark.parametrize("machine", ["0", "1"])
def test_a_signal_while_the_other_machine_is_waited_for(tmp_path, pet, machine):
    """SIGTERM to a launcher that is alone yet, whichever of the two: it ends with 75, and nobody was started."""
    with World.create(tmp_path).job("train", launcher=REAL, **pet, PET_NODE_RANK=machine) as job:
        job.until("processes start")
        if machine == "0":
            wait_until(lambda: answers(int(pet["PET_MASTER_PORT"])))
        job.process.send_signal(signal.SIGTERM)
        ending = job.ending()

    assert ending.codes == {75}
    assert ending.reason == "Interrupted: SIGTERM received before any process had begun"


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ("0", "waited in vain for machine 1: 1 of 2 have come after 2 s (runtime.join_seconds); start again"),
        ("1", "nobody listens at 127.0.0.1:"),
    ],
)
def test_a_machine_that_does_not_come(tmp_path, pet, machine, reason):
    """The launcher that is alone ends with 69 and says which machine it waited for."""
    settings = ("--set", "runtime.join_seconds=2")
    with World.create(tmp_path).job("train", *settings, launcher=REAL, **pet, PET_NODE_RANK=machine) as job:
        ending = job.ending()

    assert ending.codes == {69}
    assert reason in ending.reason


@pytest.mark.slow
def test_two_machines(tmp_path, pet):
    """PET_* make two launchers of one worker each one run, as Kubeflow Trainer starts it."""
    world = World.create(tmp_path)
    first = world.job("train", launcher=REAL, **pet, PET_NODE_RANK="0")
    second = world.job("train", launcher=REAL, **pet, PET_NODE_RANK="1")
    with first, second:
        ends = [first.ending(), second.ending()]

    assert [ending.code for ending in ends] == [0, 0], ends[0].stderr
    assert [ending.stdout.count("complete") for ending in ends] == [1, 0]


def start_and_end(world, *settings, **environ):
    """How a launcher ended."""
    with start(world, *settings, **environ) as job:
        return job.ending()
