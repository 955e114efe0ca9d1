"""The job's container and an S3 server's container on one network, each killed while the other works."""

import pytest

from tests.image.engine import docker
from tests.image.small_run import ANY_USER, LOCKED, settings

LOCKED_SERVER = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
KEYS = {
    "AWS_ENDPOINT_URL_S3": "http://s3:8080",
    "AWS_ACCESS_KEY_ID": "test:tester",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def network(shared_engine):
    """A network with no way out of it but to the server."""
    return shared_engine.network()


@pytest.fixture(scope="module")
def server(shared_engine, s3_image, network):
    """The server, healthy, its objects on a volume."""
    flags = (*LOCKED_SERVER, "--network", network, "--network-alias", "s3", "--health-interval", "1s")
    container = shared_engine.run(s3_image, flags=(*flags, "--volume", f"{shared_engine.volume()}:/data"))
    healthy(container)
    return container


def healthy(container):
    """Wait until the engine says so."""
    docker("exec", container.name, "sh", "-c", "until python /srv/serve.py check; do sleep 0.2; done", limit=60)


def start(engine, image, network, run_uri, *command, **changes):
    """A command of the job that reaches the server and nothing else."""
    values = settings(run_uri=run_uri, storage__addressing_style="path", **changes)
    flags = (*LOCKED, *ANY_USER, "--network", network)
    return engine.run(image, *(command or ["train"]), flags=flags, GPT_JOB_SET=values, **KEYS)


@pytest.fixture(scope="module")
def chain(shared_engine, image, network, server):
    """Of a run that nobody disturbed: equal chains are equal runs."""
    container = start(shared_engine, image, network, "s3://runs/peace")
    assert container.wait() == 0
    return container.summary()["chain"]


def test_the_job_is_killed_and_goes_on_from_the_bucket(engine, image, network, chain):
    """Nothing local is left of the first container; the second one ends with the chain of the undisturbed run."""
    first = start(engine, image, network, "s3://runs/job-killed")
    first.until("checkpoint saved", step=100)
    docker("kill", first.name)
    second = start(engine, image, network, "s3://runs/job-killed")

    assert second.wait() == 0
    assert second.until("run continued")["step"] >= 100
    assert second.summary()["chain"] == chain


def test_the_server_is_killed_and_comes_back(engine, image, network, server, chain):
    """The job trains on without it, saves when it is back, and ends with the same chain; every checkpoint is whole."""
    job = start(engine, image, network, "s3://runs/server-killed")
    job.until("checkpoint saved", step=50)
    docker("kill", server.name)
    docker("start", server.name)
    healthy(server)

    assert job.wait() == 0
    assert job.summary()["chain"] == chain
    verify = start(engine, image, network, "s3://runs/server-killed", "checkpoints", "verify")
    assert verify.wait() == 0


def test_wrong_keys_are_no_empty_bucket(engine, image, network, server):
    """77, and not a run that begins at step 0."""
    values = settings(run_uri="s3://runs/peace", storage__addressing_style="path")
    keys = KEYS | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    job = engine.run(image, "train", flags=(*LOCKED, "--network", network), GPT_JOB_SET=values, **keys)

    assert job.wait() == 77
