"""Runs that several tests look at: made once, copied by whoever changes them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.command import SLOW, Ending, World, get
from tests.local_s3 import LocalS3

# Each checkpoint is saved up to step 15; when the next is due nothing is under way, and the process stands still.
STANDING = (
    "-c",
    "import sys, time; from job.training.saver import Saver; begin = Saver.begin\n"
    "def stand():\n"
    '    print(\'{"event": "stands still"}\', file=sys.stderr, flush=True)\n'
    "    time.sleep(3600)\n"
    "Saver.begin = lambda self, step, take: (self.wait(), begin(self, step, take) if step <= 15 else stand())[-1]\n"
    "import job.cli; job.cli.main(prog_name='gpt-job')",
)


@pytest.fixture
def world(tmp_path) -> World:
    """A world in which nothing has happened."""
    return World.create(tmp_path / "world")


@pytest.fixture
def server(monkeypatch) -> Iterator[LocalS3]:
    """A server with faults on request, and boto3's variables pointing at it and nowhere else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with LocalS3() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        yield server


@dataclass(frozen=True)
class Finished:
    """A run that nothing disturbed."""

    world: World
    ending: Ending


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    """A run that nothing disturbed; not to be written to."""
    world = World.create(tmp_path_factory.mktemp("finished"))
    return Finished(world, world.train("observe.report=true", "observe.tensorboard=true"))


@dataclass(frozen=True)
class Killed:
    """A run that was killed between two checkpoints, and what its endpoint said when the third was saved."""

    world: World
    answers: dict[str, tuple[int, str]]


@pytest.fixture(scope="session")
def killed(tmp_path_factory) -> Killed:
    """A run that was killed between two checkpoints; not to be written to."""
    world = World.create(tmp_path_factory.mktemp("killed"))
    with world.training(*SLOW, "observe.metrics_port=0", launcher=STANDING) as job:
        url = job.until("metrics endpoint")["url"].removesuffix("/metrics")
        for _ in range(3):
            job.until("checkpoint saved")
        answers = {path: get(url + path) for path in ("/metrics", "/healthz", "/readyz")}
        job.until("stands still")
        job.process.kill()
        assert job.ending().code == -9
    return Killed(world, answers)
