"""The job, an S3 server, Prometheus and a Pushgateway together, by the project's own compose file."""

import os
import re
import uuid
from pathlib import Path

import pytest

from tests.image.engine import docker
from tests.image.small_run import settings
from tests.k8s.watching import Prometheus, eventually, free_port

COMPOSE = Path(__file__).parents[2] / "docker/compose.yaml"
PORTS = ("METRICS_PORT", "S3_PORT", "PROMETHEUS_PORT", "PUSHGATEWAY_PORT")
WATCHERS = ("PROMETHEUS_IMAGE", "PUSHGATEWAY_IMAGE")


def public_images():
    """The images of others that compose would take; the tests are skipped where one cannot be had."""
    for variable, default in re.findall(r"image: \$\{(\w+):-(.*)\}", COMPOSE.read_text()):
        image = os.environ.get(variable) or default
        if variable in WATCHERS and docker("image", "inspect", image, check=False).returncode:
            pulled = docker("pull", image, check=False)
            if pulled.returncode and os.environ.get("REQUIRE_DOCKER") == "1":
                pytest.fail(f"{variable}={image} cannot be pulled: {pulled.stderr.strip()}")
            if pulled.returncode:
                pytest.skip(f"{image} cannot be pulled; {variable} may name one that is here")


@pytest.fixture(scope="module")
def compose(image, s3_image):
    """Runs `docker compose` on a project of its own, with free ports; all of it is gone afterwards."""
    public_images()
    values = {name: str(free_port()) for name in PORTS}
    values |= {"IMAGE": image, "S3_IMAGE": s3_image, "JOB_SET": settings(training__max_steps=100_000)}
    project = f"gpt-job-test-{uuid.uuid4().hex[:12]}"

    def run(*words, check=True):
        return docker("compose", "--project-name", project, "--file", str(COMPOSE), *words, check=check, environ=values)

    run.ports = values
    yield run
    run("down", "--volumes", "--timeout", "40", check=False)


@pytest.fixture(scope="module")
def prometheus(compose):
    """Compose's Prometheus, with all that it looks at running."""
    compose("up", "--detach", "job", "s3", "prometheus", "pushgateway")
    return Prometheus(f"127.0.0.1:{compose.ports['PROMETHEUS_PORT']}")


def asked(prometheus, expression):
    """What Prometheus answers; nothing as long as it does not."""
    try:
        return prometheus.query(expression)
    except OSError:
        return {}


def test_a_real_run_is_scraped(prometheus):
    """Step, loss and one phase of a run in its own container are in a Prometheus in another."""
    eventually(lambda: asked(prometheus, 'pretrain_step{job="gpt-pretrain"} > 200'), patience=240)

    assert prometheus.query('up{job="gpt-pretrain"}') == {"gpt-pretrain": 1}
    assert len(prometheus.query('pretrain_phase{job="gpt-pretrain"} == 1')) == 1
    assert 0 < prometheus.query('pretrain_loss_nats{job="gpt-pretrain", split="train"}')["gpt-pretrain"] < 6


def test_its_alerts_are_loaded_and_silent(prometheus):
    """The rules of k8s/ are Prometheus' own here, each evaluated without an error, and a healthy run raises none."""
    eventually(lambda: asked(prometheus, 'pretrain_step{job="gpt-pretrain"} > 0'), patience=240)
    rules = eventually(
        lambda: [
            rule
            for group in prometheus.ask("rules")["groups"]
            for rule in group["rules"]
            if rule["health"] != "unknown"
        ]
    )

    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"] for rule in rules} > {"PretrainStalled", "PretrainEnded"}
    assert prometheus.query('ALERTS{alertstate="firing"}') == {}


def test_a_run_that_is_over_is_still_there(compose, prometheus):
    """Stopped, it is no longer scraped; its last step and how it ended are the Pushgateway's."""
    eventually(lambda: asked(prometheus, 'pretrain_step{job="gpt-pretrain"} > 200'), patience=240)
    compose("stop", "job")
    ended = eventually(lambda: prometheus.query('pretrain_ended{run="quickstart", code="75"} == 1'))

    assert eventually(lambda: prometheus.query('up{job="gpt-pretrain"} == 0'))
    assert ended == {"gpt-pretrain.quickstart.Interrupted": 1}
    assert prometheus.query('pretrain_step{run="quickstart"}')["gpt-pretrain.quickstart"] > 200


def test_a_run_shorter_than_a_scrape_is_not_lost(compose, prometheus):
    """Ten steps, gone before anybody looked: all of their tokens are in Prometheus."""
    words = [
        "--set",
        "run_uri=s3://runs/short",
        "--set",
        "training.max_steps=10",
        "--set",
        "storage.addressing_style=path",
    ]
    pushed = ["--set", "observe.pushgateway_url=http://pushgateway:9091"]
    compose("run", "--rm", "job", "train", *words, *pushed)

    assert eventually(lambda: prometheus.query('pretrain_tokens_total{run="short"}')) == {
        "gpt-pretrain.short": 10.0 * 8 * 64
    }
