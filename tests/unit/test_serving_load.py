"""When load comes: closed loops keep so many requests under way, open loops keep to their schedule."""

import statistics
import time
from itertools import pairwise
from threading import Barrier, Lock

import pytest

from job.errors import ConfigError, Interrupted
from job.serving.testing.arrivals import poisson
from job.serving.testing.figures import Timeline, most_at_once
from job.serving.testing.load import Load, run_load

BODIES = [{"prompt": number} for number in range(3)]


class Server:
    """Answers after a time, and knows what it was asked."""

    def __init__(self, seconds=0.01):
        self.seconds, self.asked, self.lock = seconds, [], Lock()

    def __call__(self, due, body):
        started = time.perf_counter()
        with self.lock:
            self.asked.append(body["prompt"])
        time.sleep(self.seconds)
        return Timeline(due=due, started=started, ended=time.perf_counter())


def test_arrivals_follow_from_the_seed():
    """The same rate and seed make the same schedule; others make others."""
    assert poisson(5.0, 50, seed=1) == poisson(5.0, 50, seed=1)
    assert poisson(5.0, 50, seed=1) != poisson(5.0, 50, seed=2)
    assert poisson(5.0, 50, seed=1) != poisson(6.0, 50, seed=1)
    assert poisson(5.0, 1, seed=1) == [0.0]


def test_arrivals_are_poissons():
    """Gaps have the mean 1/rate and, as those of a Poisson process must, a standard deviation like it."""
    times = poisson(20.0, 20_001, seed=0)
    gaps = [after - before for before, after in pairwise(times)]

    assert times[0] == 0
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(0.05, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.05, rel=0.05)


def test_a_closed_loop_keeps_so_many_under_way():
    """Never more than `concurrency` requests are under way, and no fewer for want of asking."""
    met, server = Barrier(4, timeout=10), Server()

    def send(due, body):
        met.wait()  # passes when four are under way
        return server(due, body)

    found = run_load(Load(requests=20, concurrency=4), BODIES, 0, send)

    assert (len(found), most_at_once(found)) == (20, 4)


def test_bodies_come_in_turn():
    """Each request takes the next body, and after the last the first again."""
    server = Server()
    run_load(Load(requests=7, concurrency=1), BODIES, 0, server)

    assert server.asked == [0, 1, 2, 0, 1, 2, 0]


def test_an_open_loop_does_not_wait_for_answers():
    """Requests are sent when they are due, though none has been answered."""
    found = run_load(Load(requests=8, request_rate=400.0), BODIES, 3, Server(seconds=0.5))
    began = found[0].due

    assert most_at_once(found) == 8
    assert [one.due - began for one in found] == pytest.approx(poisson(400.0, 8, seed=3))
    assert all(one.started >= one.due for one in found)


@pytest.mark.parametrize("load", [Load(requests=1000, concurrency=2), Load(requests=1000, request_rate=200.0)])
def test_a_load_can_be_stopped(load):
    """Asked to stop, a load sends nothing more and says so."""
    server = Server()

    def stop():
        if server.asked:
            raise Interrupted("SIGTERM received")

    with pytest.raises(Interrupted):
        run_load(load, BODIES, 0, server, stop)

    assert len(server.asked) < 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": 0, "concurrency": 1},
        {"requests": 1},
        {"requests": 1, "concurrency": 1, "request_rate": 1.0},
        {"requests": 1, "concurrency": 0},
        {"requests": 1, "concurrency": 10_000},
        {"requests": 1, "request_rate": 0.0},
        {"requests": 1, "request_rate": float("nan")},
    ],
)
def test_refused_loads(wrong):
    """A load that means nothing is refused."""
    with pytest.raises(ConfigError):
        Load(**wrong)
