"""Processes that wait for those they train with: how long, what they say then, and that they hear a stop."""

import os
import signal
import time

import pytest

from job.errors import Interrupted, UnreachableError
from job.infra.place import Place
from job.infra.signals import StopSignal
from job.infra.together import join
from tests.ports import free_ports


@pytest.fixture
def first(monkeypatch):
    """A place to meet at."""
    port = str(*free_ports(1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    return f"127.0.0.1:{port}"


def come(rank, patience, stop=None):
    """Join as this rank of three."""
    with join(Place(rank=rank, world_size=3), stop or StopSignal(30.0), patience, lambda _: None):
        pytest.fail("there is nobody to train with")


@pytest.mark.usefixtures("first")
def test_ranks_that_do_not_come():
    """The first rank ends with 69: who has not come, how long it waited, and the setting."""
    with pytest.raises(UnreachableError) as ended:
        come(0, 0.3)

    assert ended.value.exit_code == 69
    reason = "waited in vain for rank 1, rank 2: 1 of 3 have come after 0.3 s (runtime.join_seconds); start again"
    assert str(ended.value) == reason


def test_a_first_rank_that_does_not_come(first):
    """The others end with 69 and the place where they looked for it."""
    with pytest.raises(UnreachableError, match=f"nobody listens at {first} after 0.3 s .runtime.join_seconds."):
        come(1, 0.3)


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_while_waiting(rank):
    """SIGTERM ends the waiting with 75 at once, whoever is waited for."""
    started = time.monotonic()
    with StopSignal(30.0).install() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM received"):
            come(rank, 60.0, stop)

    assert time.monotonic() - started < 5
