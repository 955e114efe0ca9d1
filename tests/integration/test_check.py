"""`gpt-job check` on a real S3 server, with every right and with one refused, and as a person runs it."""

import json

import pytest

from job.checks.storage import storage
from job.config import StorageConfig
from tests.fault_plans import Fault, Rule, asks, refuse, with_act
from tests.fault_proxy import FaultProxy
from tests.integration.command import World

RIGHTS = ["write", "read", "list", "write once", "write in parts", "list unfinished uploads", "delete"]


def keys(server, uri):
    prefix = uri.removeprefix(f"s3://{server.bucket}/")
    return server.client().list_objects_v2(Bucket=server.bucket, Prefix=prefix).get("Contents", [])


@pytest.fixture
def asked(s3_environment, monkeypatch):
    """What is found out about a fresh place behind a proxy with this plan, and what is left there."""

    def ask(plan, **options):
        with FaultProxy(s3_environment, plan) as proxy:
            for name, value in proxy.environ.items():
                monkeypatch.setenv(name, value)
            uri = s3_environment.fresh_uri()
            return list(storage("storage", uri, StorageConfig(), **options)), keys(s3_environment, uri)

    return ask


def test_every_right(s3_environment):
    """All are tried and granted, and nothing stays in the bucket."""
    uri = s3_environment.fresh_uri()
    [found] = storage("storage", uri, StorageConfig())

    assert found.level == "ok"
    assert found.said == f"{uri}: may {', '.join(RIGHTS)}"
    assert keys(s3_environment, uri) == []


@pytest.mark.parametrize(
    ("right", "operations", "level", "code"),
    [
        ("write", ("PUT",), "error", 77),
        ("read", ("GET",), "error", 77),
        ("list", ("LIST",), "error", 77),
        ("delete", ("DELETE",), "warning", 0),
    ],
)
def test_a_right_that_is_refused(asked, right, operations, level, code):
    """It is named with what to allow; those that do not depend on it are tried all the same."""
    found, left = asked(Rule(refuse(403, "AccessDenied"), asks(*operations)))
    refused = next(one for one in found if one.about == f"storage: {right}")

    assert (refused.level, refused.code) == (level, code)
    assert "allow s3:" in refused.advice
    assert found[-1].level == "ok"
    assert bool(left) == (right == "delete")


def test_a_store_that_overwrites(asked, s3_environment):
    """One that ignores conditions is found out; with a person's word that nobody else writes it will do."""
    client = s3_environment.client()
    overwrite = Rule(
        with_act(Fault("overwrites"), lambda r: client.delete_object(Bucket=s3_environment.bucket, Key=r.key)),
        lambda request: request.method == "PUT" and "if-none-match" in request.headers,
    )
    found, _ = asked(overwrite)
    trusted, _ = asked(overwrite, single_writer_unsafe=True)

    assert [(one.about, one.code) for one in found if one.code] == [("storage: write once", 78)]
    assert [one for one in trusted if one.code] == []


def test_a_server_that_does_not_answer(monkeypatch):
    """An unreachable one is one finding, with 69."""
    for name, value in {
        "ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    [found] = storage("storage", "s3://bucket/run", StorageConfig())

    assert (found.about, found.code) == ("storage: write", 69)


def test_without_credentials(monkeypatch):
    """One finding, 77, that says what to give: nobody was asked for a right, so none is said to be missing."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    [found] = storage("storage", "s3://bucket/run", StorageConfig())

    assert (found.about, found.code) == ("storage: write", 77)
    assert found.advice.startswith("give the job credentials")


def test_the_command(tmp_path):
    """All well: one JSON object, 0, and every finding beside its numbers."""
    ending = World.create(tmp_path).gpt_job("check", "--json")
    said = json.loads(ending.stdout)

    assert (ending.code, said["status"], said["code"]) == (0, "ok", 0)
    assert {finding["about"] for finding in said["findings"]} >= {"memory", "time", "storage", "corpus"}


def test_the_command_where_all_is_wrong(tmp_path):
    """The exit code, the last log line and the termination message are those of the worst finding, and name all."""
    broken = ("data.corpus=none.txt", "runtime.device=cuda", "run_uri=corpus.txt/run")
    ending = World.create(tmp_path).gpt_job("check", *(word for one in broken for word in ("--set", one)))

    assert ending.codes == {78}
    for about in ("driver", "corpus", "device", "storage: write"):
        assert f"{about}: " in ending.reason
        assert f"error   {about}" in ending.stdout
