"""The container's health check: another process that asks the job's endpoint by the address that the job left."""

import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from job.infra.health import HealthServer, Pulse
from job.infra.healthcheck import ADDRESS_FILE


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def address_file(tmp_path, monkeypatch):
    path = tmp_path / "address"
    monkeypatch.setenv(ADDRESS_FILE, str(path))
    return path


@pytest.fixture
def server(address_file, clock):
    server = HealthServer(CollectorRegistry(), Pulse(clock), stall_seconds=60, host="0.0.0.0", port=0).start()
    yield server
    server.close()


def check():
    """Exit code and words of the health check, as the engine would run it."""
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}  # which must not be asked
    command = [sys.executable, "-m", "job.infra.healthcheck"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout.strip()


def test_a_job_that_moves_is_healthy(server):
    """The check finds the port that the job took and gets its answer."""
    assert check() == (0, "ok")


def test_a_job_that_stands_still_is_unhealthy(server, clock):
    """Nothing moved for longer than the limit: 1, with the endpoint's own words."""
    clock.now += 61

    assert check() == (1, "nothing has moved for 61 s (limit 60 s)")


def test_a_job_that_does_not_answer_is_unhealthy(address_file):
    """An address where nobody listens: 1."""
    address_file.write_text("http://127.0.0.1:9/healthz")

    assert check()[0] == 1


def test_nothing_to_ask_is_no_fault(address_file):
    """Before the endpoint is open, and for commands without one: 0."""
    assert check() == (0, "no endpoint")


def test_the_address_goes_with_the_endpoint(server, address_file):
    """A closed endpoint leaves no address behind that the next check would ask in vain."""
    before = address_file.exists()
    server.close()

    assert (before, address_file.exists()) == (True, False)


def test_an_endpoint_takes_only_its_own_address_away(server, address_file):
    """Where another one has left its address since, the check goes on asking that one."""
    address_file.write_text("http://127.0.0.1:9/healthz")
    server.close()

    assert address_file.exists()


def test_the_check_loads_nothing_of_the_job():
    """It runs every few seconds beside the training: only the standard library is imported."""
    code = "import sys, job.infra.healthcheck; print({'structlog', 'prometheus_client', 'torch'} & set(sys.modules))"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.strip() == "set()"
