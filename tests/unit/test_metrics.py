"""Metrics: the names that dashboards rely on, labels from closed sets, no values that nobody measured."""

import math
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from job import errors
from job.infra.metrics import ENDINGS, FAILURE_REASONS, OPERATIONS, REJECTED_REASONS, Metrics

NAMES = re.findall(
    r"\w+",
    """
    pretrain_step pretrain_tokens_total pretrain_loss_nats pretrain_perplexity pretrain_bits_per_byte
    pretrain_learning_rate pretrain_gradient_norm pretrain_step_duration_seconds pretrain_tokens_per_second
    pretrain_mfu_ratio pretrain_phase pretrain_progress_ratio pretrain_eta_seconds pretrain_goodput_ratio
    pretrain_checkpoint_duration_seconds pretrain_checkpoint_bytes pretrain_checkpoint_last_success_timestamp_seconds
    pretrain_checkpoint_failures_total pretrain_checkpoint_rejected_total pretrain_storage_errors_total
    pretrain_checkpoint_stalled_seconds_total pretrain_rollbacks_total
    pretrain_nonfinite_steps_total pretrain_restarts_total pretrain_build_info pretrain_ended
    pretrain_training_started_timestamp_seconds pretrain_checkpoint_period_seconds
    """,
)
PHASES = re.findall(
    r"\w+", "starting importing pulling tokenizing restoring training evaluating sampling saving finishing done"
)


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


def samples(metrics):
    """Every exported series: name and labels -> value."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_of_the_design_is_declared(metrics, name):
    """Each name stands in the exposition from the start, with its help text."""
    help_lines = [line for line in metrics.text().decode().splitlines() if line.startswith(f"# HELP {name} ")]

    assert len(help_lines) == 1
    assert len(help_lines[0]) > len(f"# HELP {name} ")


def test_unknown_is_not_zero(metrics):
    """Before anything is measured no gauge but what the job is doing has a value, and no series is NaN."""
    gauges = {name for name in NAMES if not name.endswith("_total")} - {
        "pretrain_phase",
        "pretrain_build_info",
        "pretrain_ended",
    }
    found = samples(metrics)

    assert not {key[0] for key in found} & gauges
    assert not any(math.isnan(value) for value in found.values())


def test_a_gauge_shows_what_it_was_set_to(metrics):
    """A gauge has its value once it was set, zero included."""
    metrics.step.set(0)
    metrics.learning_rate.set(3e-4)

    found = samples(metrics)
    assert found["pretrain_step",] == 0
    assert found["pretrain_learning_rate",] == 3e-4


def test_restarts_are_unknown_until_the_run_is_read(metrics):
    """A pod that is only starting does not say 0, which would look like a loop when it says 7 a minute later."""
    assert ("pretrain_restarts_total",) not in samples(metrics)

    metrics.restarts.inc(0)
    assert samples(metrics)["pretrain_restarts_total",] == 0


@pytest.mark.parametrize(("code", "reason"), [*ENDINGS.items(), (99, "Unexpected")])
def test_an_end_has_one_reason(metrics, code, reason):
    """All reasons are 0 while the attempt lives; then one of them is 1."""

    def endings():
        return {key[2]: value for key, value in samples(metrics).items() if key[0] == "pretrain_ended"}

    assert endings() == dict.fromkeys(ENDINGS.values(), 0)

    metrics.ended(code)
    assert endings() == {name: float(name == reason) for name in ENDINGS.values()}


def test_every_error_of_the_job_is_a_reason():
    """Exit codes and names are those of errors.py, beside completion and the unexpected."""
    classes = {cls for cls in vars(errors).values() if isinstance(cls, type) and cls.__base__ is errors.JobError}

    assert {0: "Complete", 1: "Unexpected"} | {cls.exit_code: cls.__name__ for cls in classes} == ENDINGS


@pytest.mark.parametrize("name", PHASES)
def test_exactly_one_phase_is_on(metrics, name):
    """Every phase is exported; the current one is 1 and all others are 0."""
    metrics.phase("training")
    metrics.phase(name)

    phases = {key[1]: value for key, value in samples(metrics).items() if key[0] == "pretrain_phase"}
    assert phases == {phase: float(phase == name) for phase in PHASES}


def test_an_evaluation_sets_loss_perplexity_and_bits(metrics):
    """Perplexity follows from the loss; a split that was not evaluated is not there."""
    metrics.evaluated("validation", loss=2.0, bits_per_byte=1.5)

    found = {key: value for key, value in samples(metrics).items() if "validation" in key or "test" in key}
    assert found == {
        ("pretrain_loss_nats", "validation"): 2.0,
        ("pretrain_perplexity", "validation"): pytest.approx(math.exp(2.0)),
        ("pretrain_bits_per_byte", "validation"): 1.5,
    }


def test_a_hopeless_loss_has_infinite_perplexity(metrics):
    """exp() of a huge loss overflows; the metric is +Inf and the job goes on."""
    metrics.evaluated("train", loss=1000.0, bits_per_byte=1.0)

    assert samples(metrics)["pretrain_perplexity", "train"] == math.inf


def test_a_save_sets_stages_size_and_time(metrics):
    """The last save's stages in seconds, its bytes and when it was committed."""
    metrics.saved({"snapshot": 0.25, "upload": 1.5, "total": 2.0}, size=1000, now=1.7e9)

    found = samples(metrics)
    assert found["pretrain_checkpoint_duration_seconds", "upload"] == 1.5
    assert found["pretrain_checkpoint_stalled_seconds_total",] == 0.25
    assert found["pretrain_checkpoint_bytes",] == 1000
    assert found["pretrain_checkpoint_last_success_timestamp_seconds",] == 1.7e9


@pytest.mark.parametrize(
    ("count", "name", "allowed"),
    [
        ("count_failure", "pretrain_checkpoint_failures_total", FAILURE_REASONS),
        ("count_rejected", "pretrain_checkpoint_rejected_total", REJECTED_REASONS),
        ("count_storage_error", "pretrain_storage_errors_total", OPERATIONS),
    ],
)
def test_reasons_come_from_closed_sets(metrics, count, name, allowed):
    """A known reason has its own series, from 0 on; any other text is `other`."""
    getattr(metrics, count)(allowed[0])
    getattr(metrics, count)("connection to 10.0.0.1 reset")

    found = {key[1]: value for key, value in samples(metrics).items() if key[0] == name}
    assert found == {reason: float(reason in (allowed[0], "other")) for reason in allowed}


def test_series_do_not_grow_with_the_run(metrics):
    """S-06: after 10,000 steps, 50 different errors and 5 restarts there are at most 200 series."""
    for step in range(10_000):
        metrics.step.set(step)
        metrics.tokens.inc(4096)
        metrics.step_seconds.observe(step / 1000)
    for gauge in ("learning_rate", "gradient_norm", "tokens_per_second", "mfu", "progress", "eta_seconds", "goodput"):
        getattr(metrics, gauge).set(1)
    for phase in PHASES:
        metrics.phase(phase)
    for split in ("train", "validation", "test"):
        metrics.evaluated(split, 1.0, 1.0)
    stages = ("snapshot", "serialize", "upload", "verify", "commit", "total")
    metrics.saved(dict.fromkeys(stages, 1.0), 1, 1.0)
    for error in range(50):
        metrics.count_failure(f"failure {error}")
        metrics.count_rejected(f"rejected {error}")
        metrics.count_storage_error(f"operation {error}")
    metrics.restarts.inc(5)
    metrics.training_started.set(1.0)
    metrics.checkpoint_period.set(1.0)
    metrics.ended(99)
    metrics.watch_gpu(lambda: {"memory_used_bytes": 1, "memory_total_bytes": 2, "utilization_ratio": 0.5})

    assert 100 < len(samples(metrics)) <= 200


def test_a_gpu_is_read_when_it_is_scraped(metrics):
    """With a device its memory and use are exported as they are at the time; without one there are no such series."""
    assert "gpu" not in metrics.text().decode()

    use = {"memory_used_bytes": 1.0, "memory_total_bytes": 8.0}
    metrics.watch_gpu(lambda: use)
    use["memory_used_bytes"] = 5.0

    found = {key[0]: value for key, value in samples(metrics).items() if "gpu" in key[0]}
    assert found == {"pretrain_gpu_memory_used_bytes": 5.0, "pretrain_gpu_memory_total_bytes": 8.0}


def test_a_failing_driver_hides_nothing_else(metrics):
    """When a GPU cannot be read all other metrics are still served."""
    metrics.watch_gpu(lambda: 1 / 0)
    metrics.step.set(7)

    assert samples(metrics)["pretrain_step",] == 7


def test_build_facts_are_labels(metrics):
    """What is running is one series with a label for each fact."""
    metrics.build_info.info({"version": "0.1.0", "torch": "2.13.0"})

    assert metrics.registry.get_sample_value("pretrain_build_info", {"version": "0.1.0", "torch": "2.13.0"}) == 1


@pytest.fixture
def gateway():
    """A server that keeps the path and body of what it is sent."""
    received = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.received = received
    yield server
    server.shutdown()
    server.server_close()


def test_pushed_values_arrive_under_the_grouping_key(metrics, gateway):
    """A Pushgateway gets all values, grouped by what names the job and not the pod."""
    metrics.step.set(250)
    metrics.push(f"http://127.0.0.1:{gateway.server_port}", {"job": "pretrain", "namespace": "ml"})

    [(path, body)] = gateway.received
    assert path == "/metrics/job/pretrain/namespace/ml"
    assert "pretrain_step 250.0" in body


def test_an_ending_alone_leaves_the_other_values(metrics, gateway):
    """An attempt that never trained pushes how it ended and nothing that would overwrite what the one before did."""
    metrics.ended(66)
    metrics.push(f"http://127.0.0.1:{gateway.server_port}", {"job": "pretrain"}, only_ending=True)

    [(_, body)] = gateway.received
    assert 'pretrain_ended{code="66",reason="NotFoundError"} 1.0' in body
    assert set(re.findall(r"^[a-z_]+", body, re.MULTILINE)) == {"pretrain_ended"}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "not a url", "http://[bad"])
def test_a_failed_push_is_a_warning(metrics, url):
    """A Pushgateway that is not there, or never was one, costs a log line."""
    with structlog.testing.capture_logs() as logs:
        metrics.push(url, {"job": "pretrain"})

    assert [(line["event"], line["log_level"]) for line in logs] == [("metrics not pushed", "warning")]
