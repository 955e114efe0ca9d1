"""The health endpoint, over real HTTP on a port that the kernel chose."""

import http.client
import socket

import pytest
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from job.infra.health import HealthServer, Pulse, listening_host
from job.infra.metrics import Metrics


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def server(registry, clock):
    server = HealthServer(registry, Pulse(clock), stall_seconds=60, host="127.0.0.1", port=0).start()
    yield server
    server.close()


def ask(server, path, method="GET"):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_a_pulse_counts_from_the_last_beat(clock):
    """Seconds since the last beat, by a clock that is given."""
    pulse = Pulse(clock)
    clock.now += 5
    before = pulse.seconds_since()
    pulse.beat()
    clock.now += 2

    assert (before, pulse.seconds_since()) == (5, 2)


def test_metrics_are_served_as_prometheus_reads_them(server, registry):
    """`/metrics` is the registry's text, with the content type of the format."""
    Metrics(registry).step.set(250)
    status, headers, body = ask(server, "/metrics")

    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert families["pretrain_step"].samples[0].value == 250


def test_a_job_that_moves_is_healthy(server, clock):
    """`/healthz` is 200 as long as something moved within the limit."""
    clock.now += 60

    assert ask(server, "/healthz")[0] == 200


def test_a_job_that_stands_still_is_not(server, clock):
    """`/healthz` is 503 when nothing has moved for longer, and says for how long."""
    clock.now += 61
    status, _, body = ask(server, "/healthz")

    assert status == 503
    assert body == "nothing has moved for 61 s (limit 60 s)\n"


def test_ready_means_that_training_has_begun(server):
    """`/readyz` is 503 until training has begun, then 200."""
    before = ask(server, "/readyz")
    server.ready()

    assert before[0] == 503
    assert before[2] == "training has not begun\n"
    assert ask(server, "/readyz")[0] == 200


def test_nothing_else_is_there(server):
    """Any other path is 404."""
    assert ask(server, "/")[0] == 404
    assert ask(server, "/metrics/../etc/passwd")[0] == 404


def test_a_query_is_no_part_of_the_path(server):
    """Probes may add a query."""
    assert ask(server, "/healthz?verbose=1")[0] == 200


def test_head_is_get_without_the_body(server):
    """HEAD has GET's status and length, and no body."""
    status, headers, body = ask(server, "/healthz", "HEAD")

    assert (status, headers["Content-Length"], body) == (200, "3", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(server, method):
    """Other methods are refused with the ones that work."""
    status, headers, _ = ask(server, "/metrics", method)

    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_an_answer_tells_nothing_about_the_inside(server, registry, capsys):
    """A collector that fails is a 500 without a traceback, and says no more about the software than its name."""

    class Broken:
        def describe(self):
            return []

        def collect(self):
            raise RuntimeError("inside")

    registry.register(Broken())
    with structlog.testing.capture_logs() as logs:
        status, headers, body = ask(server, "/metrics")

    assert (status, body) == (500, "internal error\n")
    assert headers["Server"].strip() == "gpt-pretrain-job"
    assert [line["event"] for line in logs] == ["no answer"]
    assert capsys.readouterr().err == ""


def test_a_client_that_says_nothing_blocks_nobody(server):
    """An open connection without a request leaves the endpoint to others."""
    with socket.create_connection(("127.0.0.1", server.port)):
        assert ask(server, "/healthz")[0] == 200


def test_nonsense_is_a_short_400(server, capsys):
    """Bytes that are no request get a line of text, and the log no traceback."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"\x16\x03\x01 what\r\n\r\n")
        answer = client.makefile("rb").read()

    assert b"400" in answer
    assert b"Traceback" not in answer
    assert capsys.readouterr().err == ""


def test_a_busy_port_is_a_warning(registry, server):
    """When the port is taken the job goes on without an endpoint."""
    with structlog.testing.capture_logs() as logs:
        second = HealthServer(registry, Pulse(), 60, "127.0.0.1", server.port).start()
    second.ready()
    second.close()

    assert second.port is None
    assert [(line["event"], line["log_level"]) for line in logs] == [("no metrics endpoint", "warning")]


def test_a_closed_server_frees_its_port(registry):
    """After `close` the same port can be taken again."""
    first = HealthServer(registry, Pulse(), 60, "127.0.0.1", 0).start()
    port = first.port
    first.close()
    second = HealthServer(registry, Pulse(), 60, "127.0.0.1", port).start()

    assert (first.port, second.port) == (None, port)
    second.close()


@pytest.mark.parametrize(
    ("host", "environ", "expected"),
    [
        ("auto", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "0.0.0.0"),
        ("auto", {"GPT_JOB_IMAGE": "1"}, "0.0.0.0"),
        ("127.0.0.1", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "127.0.0.1"),
        ("::", {}, "::"),
    ],
)
def test_only_a_container_listens_to_all(host, environ, expected):
    """`auto` is every interface where the network is the container's own; a named host is taken as it is."""
    assert listening_host(host, environ) == expected


def test_outside_a_container_only_this_machine_is_heard(monkeypatch):
    """`auto` on a laptop is loopback."""
    monkeypatch.setattr("job.infra.health.DOCKER_MARK", "/nonexistent")

    assert listening_host("auto", {}) == "127.0.0.1"
