"""What the settings of `storage` make of a request, as a server sees it."""

import pytest

from job.config import StorageConfig
from job.errors import ConfigError, StorageError
from job.infra.storage import open_store
from tests.local_s3 import Plan

LARGE = bytes(11 << 20)  # three parts
KMS_KEY = "arn:aws:kms:eu-central-1:111122223333:key/k"


def store(**settings):
    return open_store("s3://runs/run", StorageConfig(part_size=5 << 20, **{"addressing_style": "path", **settings}))


@pytest.mark.parametrize(
    ("setting", "sent"),
    [
        ({}, {}),
        ({"encryption": "AES256"}, {"server-side-encryption": "AES256"}),
        ({"encryption": "aws:kms"}, {"server-side-encryption": "aws:kms"}),
        (
            {"encryption": f"aws:kms:{KMS_KEY}"},
            {"server-side-encryption": "aws:kms", "server-side-encryption-aws-kms-key-id": KMS_KEY},
        ),
        ({"storage_class": "STANDARD_IA"}, {"storage-class": "STANDARD_IA"}),
    ],
)
def test_how_objects_are_kept(server, setting, sent):
    """Encryption and storage class are asked for with every object, whichever way it is written, and only if set."""
    one = store(**setting)
    one.put("small", [b"abc"])
    one.put("large", [LARGE])
    one.create("log/1", b"abc")
    creating = [request for request in server.requests if request.operation in ("PutObject", "CreateMultipartUpload")]
    asked = [
        {
            name.removeprefix("x-amz-"): value
            for name, value in request.headers.items()
            if "server-" in name or "class" in name
        }
        for request in creating
    ]

    assert asked == [sent] * 3


def test_how_objects_are_kept_without_conditional_writes(server):
    """A record that is written after a look is kept like all others."""
    server.plan = Plan(conditional=False)
    config = StorageConfig(addressing_style="path", encryption="AES256")
    open_store("s3://runs/run", config, single_writer_unsafe=True).create("log/1", b"abc")

    assert server.requests[-1].operation == "PutObject"
    assert server.requests[-1].headers["x-amz-server-side-encryption"] == "AES256"


def test_path_style(server):
    """With path style the bucket is the first part of the path."""
    store(addressing_style="path").put("a", [b"abc"])

    assert [(request.host.split(":")[0], request.path) for request in server.requests] == [("127.0.0.1", "/runs/run/a")]


def test_virtual_style(server, monkeypatch):
    """With virtual style the bucket is a part of the host name, and objects come back; a proxy leads there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.test")
    monkeypatch.setenv("HTTP_PROXY", server.endpoint)
    monkeypatch.delenv("NO_PROXY")
    virtual = store(addressing_style="virtual")

    assert virtual.put("large", [LARGE]) == virtual.digest("large")
    assert {(request.host, request.path) for request in server.requests} == {("runs.s3.test", "/run/large")}


def test_requests_are_repeated_in_standard_mode(server, monkeypatch):
    """A busy store is asked eight times, each after a random pause that grows: botocore's standard mode."""
    pauses = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", pauses.append)
    server.plan = Plan(valid=lambda access_key: False, refusal=(503, "SlowDown"))
    with pytest.raises(Exception, match="SlowDown"):
        store().read("a")

    assert len(server.requests) == 8
    assert len(set(pauses)) == 7
    assert all(pause <= min(2**number, 20) for number, pause in enumerate(pauses))


def test_a_stall_must_be_noticed_before_a_timeout():
    """A patience that is longer than the read timeout is ConfigError; unset it is half of that."""
    assert StorageConfig(timeouts=(1, 8)).patience == 4
    with pytest.raises(ConfigError, match=r"storage\.stall_seconds=60"):
        StorageConfig(stall_seconds=60)
    with pytest.raises(ConfigError, match=r"storage\.stall_seconds=0"):
        StorageConfig(stall_seconds=0)


def test_a_404_that_says_nothing_is_asked_again(server):
    """Which of object and bucket is missing stands in the body; where that was lost the question is put again."""
    server.plan.wordless = 3

    with pytest.raises(KeyError):
        store().read("not here")


def test_a_404_that_never_says_anything_is_no_absence(server):
    """When nobody says that it is the object that is missing, it is not taken for missing."""
    server.plan.wordless = 1_000

    with pytest.raises(StorageError, match="404"):
        store().read("not here")
