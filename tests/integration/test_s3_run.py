"""A whole run on a real S3 server: the same as in a folder, over a kill, an outage and wrong keys."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests.integration.command import IMPATIENT, SLOW, Ending, World
from tests.s3_server import S3Server

CANARY = "CANARY0123456789abcdef/secret"
PATH_STYLE = "storage.addressing_style=path"
SELDOM = "checkpoint.every=10"


@dataclass(frozen=True)
class Remote:
    """A run in a bucket, and the world that it is started from."""

    world: World
    server: S3Server
    uri: str

    @property
    def settings(self) -> tuple[str, ...]:
        """What puts the run there."""
        return PATH_STYLE, SELDOM, f"run_uri={self.uri}"

    def at(self, command: str, *arguments: str) -> Ending:
        """How a command about the run ended."""
        return self.world.gpt_job(command, "--run", self.uri, "--set", PATH_STYLE, *arguments)

    def objects(self) -> Mapping[str, bytes]:
        """Everything that the run left in the bucket."""
        client, bucket = self.server.client(), self.server.bucket
        prefix = self.uri.removeprefix(f"s3://{bucket}/")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys
        }


def remote(server: S3Server, folder, **environ: str) -> Remote:
    """A place for a run in the bucket."""
    return Remote(World.create(folder, {**server.environ, **environ}), server, server.fresh_uri())


@pytest.fixture(scope="module")
def corpus(s3_server, finished):
    """The corpus as two objects below a prefix, beside one that is no text."""
    uri, client = s3_server.fresh_uri(), s3_server.client()
    prefix = uri.removeprefix(f"s3://{s3_server.bucket}/")
    for name, content in (("text.txt", finished.world.corpus.read_bytes()), ("notes.pdf", b"%PDF")):
        client.put_object(Bucket=s3_server.bucket, Key=f"{prefix}/{name}", Body=content)
    return uri


@dataclass(frozen=True)
class Continued:
    """A run that was killed and continued, all of it in a bucket."""

    remote: Remote
    ending: Ending


@pytest.fixture(scope="module")
def continued(s3_server, corpus, tmp_path_factory) -> Continued:
    """Trained on a text in a bucket, killed after step 10 was saved, and continued from another machine's folder."""
    first = remote(s3_server, tmp_path_factory.mktemp("first"))
    settings = (*first.settings, f"data.corpus={corpus}")
    with first.world.training(*settings, *SLOW) as job:
        job.until("checkpoint saved", step=10)
        job.process.kill()
        job.ending()
    second = Remote(World.create(tmp_path_factory.mktemp("second"), s3_server.environ), s3_server, first.uri)
    seen = ("observe.report=true", "observe.tensorboard=true")
    return Continued(second, second.world.train(*settings, *seen))


def test_a_run_in_a_bucket_is_the_run_in_a_folder(continued, finished):
    """Killed and continued on S3 the chain of steps is that of an unbroken run in a folder."""
    assert continued.ending.codes == {0}
    assert continued.ending.summary["chain"] == finished.ending.summary["chain"]


def test_a_run_in_a_bucket_is_continued(continued):
    """The second attempt begins at a checkpoint of the first, on a machine that has nothing of it."""
    assert [line["step"] >= 10 for line in continued.ending.events("run continued")] == [True]


def test_history_in_a_bucket_is_whole(continued):
    """events.jsonl: every logged step once."""
    events = [json.loads(line) for line in continued.remote.objects()["events.jsonl"].splitlines()]

    assert [event["step"] for event in events if event["event"] == "step"] == list(range(5, 41, 5))


def test_views_are_in_the_bucket(continued):
    """Report, TensorBoard's file and last values lie beside the checkpoints; no probe is left."""
    objects = continued.remote.objects()

    assert objects["report/loss.png"].startswith(b"\x89PNG")
    assert b">complete<" in objects["report/report.html"]
    assert [key for key in objects if key.startswith("tensorboard/events.out.tfevents.")]
    assert b"pretrain_restarts_total 1.0" in objects["metrics.prom"]
    assert not [key for key in objects if key.startswith("probe/")]


def test_a_report_is_made_from_a_bucket(continued):
    """`report --run s3://... --to FOLDER`: the page tells both attempts, and nothing is written to the bucket."""
    before = continued.remote.objects()
    ending = continued.remote.at("report", "--to", "here")
    page = (continued.remote.world.folder / "here" / "report.html").read_text()

    assert ending.stdout == "here/report.html\n"
    assert "1 interruption" in page
    assert continued.remote.objects() == before


def test_checkpoints_in_a_bucket_are_listed(continued):
    """`checkpoints list --run s3://...` shows those that stand."""
    rows = json.loads(continued.remote.at("checkpoints list", "--json").stdout)

    assert [(row["step"], row["valid"]) for row in rows] == [(30, True), (40, True)]


def test_a_run_in_a_bucket_is_evaluated(continued, corpus):
    """`evaluate --run s3://...` pulls the run's own text again and measures every split."""
    losses = json.loads(continued.remote.at("evaluate", "--json").stdout)

    assert list(losses) == ["train", "validation", "test"]


def test_a_run_in_a_bucket_continues_a_prompt(continued):
    """`generate --run s3://...` needs nothing but the checkpoint."""
    ending = continued.remote.at("generate", "--prompt", "line 1", "--max-new-tokens", "5")

    assert ending.code == 0
    assert ending.stdout.startswith("line 1")


def test_a_wrong_secret_ends_with_77(s3_server, tmp_path):
    """Refused credentials end the run with 77; they are never taken for an empty bucket, nor shown."""
    place = remote(s3_server, tmp_path, AWS_SECRET_ACCESS_KEY=CANARY)
    ending = place.world.train(*place.settings)

    assert ending.codes == {77}
    assert "SignatureDoesNotMatch" in ending.reason
    assert CANARY not in ending.stdout + ending.stderr + json.dumps(dict(ending.termination))
    assert place.objects() == {}


def test_a_closed_port_ends_with_69(s3_server, tmp_path):
    """An endpoint where nobody answers ends the run with 69, after all retries."""
    place = remote(s3_server, tmp_path, AWS_ENDPOINT_URL_S3="https://127.0.0.1:1")
    with place.world.training(*place.settings, "storage.timeouts=[1, 1]", launcher=IMPATIENT) as job:
        ending = job.ending()

    assert ending.codes == {69}
    assert "https://127.0.0.1:1" in ending.reason


@dataclass(frozen=True)
class Outage:
    """A run whose store went away in the middle and came back for the next attempt."""

    remote: Remote
    during: Ending
    after: Ending


@pytest.fixture(scope="module")
def outage(s3_server, tmp_path_factory) -> Outage:
    """The server is killed once step 10 is saved; what the job carries as its token is a canary."""
    place = remote(s3_server, tmp_path_factory.mktemp("outage"), AWS_SESSION_TOKEN=CANARY)
    with place.world.training(*place.settings, *SLOW, launcher=IMPATIENT) as job:
        job.until("checkpoint saved", step=10)
        s3_server.stop()
        try:
            during = job.ending()
        finally:
            s3_server.start()
    return Outage(place, during, place.world.train(*place.settings))


def test_an_outage_ends_with_69(outage):
    """When the store is gone saves are lost, and after some in a row the run ends."""
    assert outage.during.codes == {69}
    assert "3 saves in a row were lost" in outage.during.reason
    assert outage.during.events("checkpoint lost, the one before it stands, training goes on")


def test_a_run_survives_an_outage(outage, finished):
    """The next attempt continues from the last checkpoint that stood, to the end of an unbroken run."""
    assert outage.after.codes == {0}
    assert outage.after.events("run continued")
    assert outage.after.summary["chain"] == finished.ending.summary["chain"]


def test_no_secret_is_left_behind(outage):
    """Logs, results, termination messages, events, records and metrics hold no trace of a credential."""
    said = [part for ending in (outage.during, outage.after) for part in (ending.stdout, ending.stderr)]
    said += [json.dumps(dict(ending.termination)) for ending in (outage.during, outage.after)]
    left = outage.remote.objects()

    assert [text for text in said if CANARY in text] == []
    assert [key for key, content in left.items() if CANARY.encode() in content] == []
