"""The object store on S3 keeps the contract on a real server, and tells apart what can go wrong on the way."""

import dataclasses
import io
import random
import socket

import pytest
import urllib3
from botocore.awsrequest import AWSResponse
from structlog.testing import capture_logs

from job.checkpoint.probe import probe
from job.config import StorageConfig
from job.errors import AccessError, ConfigError, Interrupted, NotFoundError, StorageError
from job.infra.object_store import UNSAFE
from job.infra.s3 import S3ObjectStore
from job.infra.s3_connection import connect
from job.infra.storage import open_store
from tests.contract.object_store_contract import ObjectStoreContract

CONFIG = StorageConfig(addressing_style="path", part_size=5 << 20)
LARGE = random.Random(0).randbytes(11 << 20)  # three parts


class TestS3ObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, s3_environment):
        return open_store(s3_environment.fresh_uri(), CONFIG)

    @pytest.fixture
    def cut_write(self, s3_environment, store):
        """A multipart upload of which one part arrives."""
        client, (bucket, prefix) = s3_environment.client(), store.uri.removeprefix("s3://").split("/")

        def cut(key):
            place = {"Bucket": bucket, "Key": f"{prefix}/{key}"}
            upload = client.create_multipart_upload(**place)["UploadId"]
            client.upload_part(**place, UploadId=upload, PartNumber=1, Body=LARGE[: 5 << 20])

        return cut


@pytest.fixture
def no_waiting(monkeypatch):
    """Retries follow each other at once."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def connection(s3_environment):
    return connect(CONFIG)


@pytest.fixture
def client(connection):
    return connection.client


@pytest.fixture
def store(s3_environment, connection):
    return store_at(s3_environment.fresh_uri(), connection)


def store_at(uri, connection, single_writer_unsafe=False, **settings):
    """A store that talks through `connection`."""
    bucket, prefix = uri.removeprefix("s3://").split("/")
    return S3ObjectStore(connection, bucket, prefix, dataclasses.replace(CONFIG, **settings), single_writer_unsafe)


def answer(client, operation, *answers):
    """Read and answer the next requests of `operation` in the server's place; an answer None lets one pass."""
    left = list(answers)

    def take_next(request, **_):
        response = left.pop(0) if left else None
        if response and hasattr(request.body, "read"):
            request.body.read()
        return response

    client.meta.events.register(f"before-send.s3.{operation}", take_next)


def refusal(status, code):
    """What S3 answers when it refuses."""
    return _response(status, f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())


def _response(status, body=b"", **headers):
    raw = urllib3.HTTPResponse(io.BytesIO(body), headers, status, preload_content=False)
    return AWSResponse("https://injected", status, raw.headers, raw)


VERBS = [
    lambda store, target: store.put("a", [b"abc"]),
    lambda store, target: store.put("a", [LARGE]),
    lambda store, target: store.create("a", b"abc"),
    lambda store, target: store.get("a", target),
    lambda store, target: store.read("a"),
    lambda store, target: store.size("a"),
    lambda store, target: store.keys(""),
    lambda store, target: store.delete("a"),
    lambda store, target: store.digest("a"),
    lambda store, target: store.unfinished(""),
    lambda store, target: store.abandon("a"),
]


def test_uri(s3_environment):
    """A store says where it is."""
    assert open_store("s3://runs/some/where/", CONFIG).uri == "s3://runs/some/where"


def test_prefixes_are_apart(s3_environment):
    """Two runs in a bucket do not see each other, not even when one name begins with the other."""
    uri = s3_environment.fresh_uri()
    one, other = open_store(uri, CONFIG), open_store(f"{uri}-2", CONFIG)
    one.put("a", [b"one"])
    other.put("b", [b"other"])

    assert (one.keys(""), other.keys("")) == (["a"], ["b"])


def test_whole_bucket(s3_environment, client):
    """A URI without a prefix is the whole bucket."""
    client.create_bucket(Bucket="whole")
    store = open_store("s3://whole", CONFIG)
    store.put("a/b", [b"abc"])

    assert store.keys("") == ["a/b"]


@pytest.mark.parametrize(("mode", "sent"), [("when_supported", True), ("when_required", False)])
def test_checksum_modes(s3_environment, tmp_path, mode, sent):
    """Objects of one part or several come back in both modes; checksums travel in one and not in the other."""
    connection = connect(dataclasses.replace(CONFIG, checksums=mode))
    headers = []
    connection.client.meta.events.register("before-send.s3", lambda request, **_: headers.append(dict(request.headers)))
    store = store_at(s3_environment.fresh_uri(), connection, checksums=mode)
    store.put("small", [b"abc"])
    store.put("large", [LARGE])
    store.get("large", tmp_path / "out")

    assert store.read("small") == b"abc"
    assert (tmp_path / "out").read_bytes() == LARGE
    assert any("X-Amz-Trailer" in each or "x-amz-checksum-crc32" in each for each in headers) == sent


def test_wrong_secret(s3_environment, monkeypatch, tmp_path):
    """A wrong secret is AccessError whatever is asked, never an empty store or a missing key."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-a-secret")
    store = open_store(s3_environment.fresh_uri(), CONFIG)
    for verb in VERBS:
        with pytest.raises(AccessError) as caught:
            verb(store, tmp_path / "out")

        assert "canary" not in str(caught.value)


def test_no_credentials(s3_environment, monkeypatch):
    """Credentials that nobody gave are AccessError."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(AccessError, match="Unable to locate credentials"):
        open_store(s3_environment.fresh_uri(), CONFIG).keys("")


def test_missing_bucket(s3_environment, tmp_path):
    """A bucket that does not exist is NotFoundError, which names it, and not a store without objects."""
    store = open_store("s3://nowhere/run", CONFIG)
    for verb in VERBS:
        with pytest.raises(NotFoundError, match="s3://nowhere"):
            verb(store, tmp_path / "out")


def test_unreachable_endpoint(s3_environment, monkeypatch, no_waiting):
    """An endpoint where nobody listens is StorageError, without the password in its URL."""
    with socket.socket() as taken:  # bound, so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://me:canary@127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(StorageError) as caught:
            open_store("s3://runs/run", CONFIG).keys("")

    assert "canary" not in str(caught.value)


def test_unknown_authority(s3_environment, monkeypatch, no_waiting):
    """A server whose certificate nobody vouches for is StorageError; nothing is sent to it."""
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(StorageError, match="CERTIFICATE_VERIFY_FAILED"):
        open_store("s3://runs/run", CONFIG).keys("")


def test_endpoint_that_is_no_url(s3_environment, monkeypatch):
    """An endpoint that is no URL is ConfigError."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL"):
        open_store("s3://runs/run", CONFIG)


def test_missing_authority(s3_environment, monkeypatch, no_waiting):
    """A CA file that is not there is StorageError."""
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(StorageError, match="No such file"):
        open_store("s3://runs/run", CONFIG).keys("")


def test_missing_token_file(s3_environment, monkeypatch):
    """A web identity token that is not there is StorageError: a pod may get it yet."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/job")
    with pytest.raises(StorageError, match="/nowhere/token"):
        open_store("s3://runs/run", CONFIG).keys("")


def test_bucket_name_that_cannot_be(s3_environment):
    """A bucket name that no bucket can have is ConfigError."""
    with pytest.raises(ConfigError, match="no bucket"):
        open_store("s3://no bucket/run", CONFIG).keys("")


def test_conflict_is_repeated(client, store, no_waiting):
    """A conditional write that met another one is tried again."""
    answer(client, "PutObject", refusal(409, "ConditionalRequestConflict"), refusal(409, "ConditionalRequestConflict"))

    assert store.create("a", b"abc")
    assert store.read("a") == b"abc"


def test_endless_conflict(client, store, no_waiting):
    """A conditional write that meets another one every time is StorageError."""
    answer(client, "PutObject", *[refusal(409, "ConditionalRequestConflict")] * 100)
    with pytest.raises(StorageError):
        store.create("a", b"abc")


def test_store_without_conditional_writes(client, store):
    """A store that does not know If-None-Match is ConfigError."""
    answer(client, "PutObject", refusal(501, "NotImplemented"))
    with pytest.raises(ConfigError, match="lacks conditional writes"):
        store.create("a", b"abc")


def test_store_without_conditional_writes_and_one_writer(connection, client, store):
    """With a person's word that nobody else writes, such a store is looked at before each write, and told once."""
    store = store_at(store.uri, connection, single_writer_unsafe=True)
    asked = []
    client.meta.events.register("provide-client-params.s3.PutObject", lambda params, **_: asked.append(dict(params)))
    answer(client, "PutObject", refusal(501, "NotImplemented"))
    with capture_logs() as logs:
        won = [store.create("log/1", b"first"), store.create("log/1", b"second"), store.create("log/2", b"third")]

    assert won == [True, False, True]
    assert store.read("log/1") == b"first"
    assert ["IfNoneMatch" in each for each in asked] == [True, False, False]
    assert [(line["log_level"], line["event"]) for line in logs] == [("warning", UNSAFE)]


def test_the_probe_asks_for_a_word(connection, client, store):
    """Without that word the probe is ConfigError, which says what to do; with it the store is accepted."""
    answer(client, "PutObject", refusal(501, "NotImplemented"), refusal(501, "NotImplemented"))
    with pytest.raises(ConfigError, match="--single-writer-unsafe"):
        probe(store, "one")

    assert probe(store_at(store.uri, connection, single_writer_unsafe=True), "two", single_writer_unsafe=True)


def test_busy_server(client, store, tmp_path, no_waiting):
    """What a busy server has read and refused is sent again from its beginning."""
    answer(client, "PutObject", *[refusal(503, "SlowDown") for _ in range(3)])
    answer(client, "UploadPart", refusal(503, "SlowDown"), None, refusal(500, "InternalError"))
    store.put("a", [b"abc"])
    store.put("large", [LARGE])
    store.get("large", tmp_path / "out")

    assert store.read("a") == b"abc"
    assert (tmp_path / "out").read_bytes() == LARGE


def test_page_that_is_not_from_s3(client, store):
    """A 404 that does not say NoSuchKey, as a proxy's, is StorageError and never a missing object."""
    answer(client, "GetObject", *[_response(404, b"<html>not here</html>") for _ in range(4)])  # it is asked again
    with pytest.raises(StorageError):
        store.read("a")


@pytest.mark.parametrize("arrived", [0, 1, 5_000_000])
def test_body_that_breaks_off(connection, client, store, tmp_path, arrived):
    """An answer that ends early is continued where it broke."""
    store.put("large", [LARGE])
    etag = client.head_object(Bucket="runs", Key=store.uri.rpartition("/")[2] + "/large")["ETag"]
    broken = _response(206, LARGE[:arrived], **{"Content-Length": str(5 << 20), "ETag": etag})
    answer(client, "GetObject", broken)
    store_at(store.uri, connection, concurrency=1).get("large", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == LARGE


def test_body_that_always_breaks_off(client, store):
    """An answer that ends early every time is StorageError."""
    answer(client, "GetObject", *[_response(200, b"ab", **{"Content-Length": "3", "ETag": '"x"'})] * 100)
    with pytest.raises(StorageError, match="broke off"):
        store.read("a")


def test_object_replaced_while_it_is_read(client, store, tmp_path):
    """Parts of two objects are never put together: one that changes under a download is StorageError."""
    store.put("a", [LARGE])
    client.meta.events.register_last("after-call.s3.HeadObject", lambda **_: store.put("a", [LARGE[::-1]]))
    with pytest.raises(StorageError, match="PreconditionFailed"):
        store.get("a", tmp_path / "out")


def test_failed_upload_leaves_nothing(client, store, no_waiting):
    """When a part cannot be sent, neither the object nor the parts before it stay."""
    answer(client, "UploadPart", None, *(refusal(500, "InternalError") for _ in range(100)))
    with pytest.raises(StorageError):
        store.put("large", [LARGE])

    assert store.keys("") == []
    assert "Uploads" not in client.list_multipart_uploads(Bucket="runs", Prefix=store.uri.rpartition("/")[2])


def test_unknown_encryption(connection):
    """An encryption that S3 does not have is ConfigError before anything is written."""
    with pytest.raises(ConfigError, match=r"storage\.encryption='rot13'"):
        S3ObjectStore(connection, "runs", "run", dataclasses.replace(CONFIG, encryption="rot13"))


@pytest.mark.parametrize("key", ["../other/a", "/a", "a//b", ""])
def test_what_is_no_key(store, key):
    """What could not be a key in a folder is none in a bucket."""
    with pytest.raises(KeyError, match="is not a key"):
        store.read(key)


class Counting:
    """A connection that notes which bytes are asked for."""

    def __init__(self, inner):
        self._inner, self.ranges = inner, []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def ask(self, verb, **what):
        if verb == "get_object":
            self.ranges.append(what["Range"])
        return self._inner.ask(verb, **what)


def stopped_get(store, target, resumable=True):
    """A `get` of LARGE that is stopped when two of its three parts have come."""
    parts = []

    def stop(count):
        parts.append(count)
        if len(parts) == 2:
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        store.get("a", target, stop, resumable)


def test_a_stopped_get_is_gone_on_with(connection, s3_environment, tmp_path):
    """What an earlier `get` has brought is read from the disk; only the rest is asked for, and the hash is right."""
    connection = Counting(connection)
    store = store_at(s3_environment.fresh_uri(), connection, concurrency=1)
    digest = store.put("a", [LARGE])
    stopped_get(store, tmp_path / "out")
    connection.ranges.clear()

    assert store.get("a", tmp_path / "out", resumable=True) == digest
    assert connection.ranges == [f"bytes={10 << 20}-{len(LARGE) - 1}"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == LARGE


def test_a_get_that_nobody_goes_on_with_notes_nothing(connection, s3_environment, tmp_path):
    """A file that ends with its process has no note beside it, and what was stopped is asked for again, whole."""
    connection = Counting(connection)
    store = store_at(s3_environment.fresh_uri(), connection, concurrency=1)
    digest = store.put("a", [LARGE])
    stopped_get(store, tmp_path / "out", resumable=False)
    left = [path.name for path in tmp_path.iterdir()]
    connection.ranges.clear()

    assert left == ["out"]
    assert store.get("a", tmp_path / "out") == digest
    assert len(connection.ranges) == 3


def test_parts_of_another_version_are_not_joined(connection, s3_environment, tmp_path):
    """When the object was replaced meanwhile, nothing of what was there before is left."""
    store = store_at(s3_environment.fresh_uri(), connection, concurrency=1)
    store.put("a", [LARGE])
    stopped_get(store, tmp_path / "out")
    digest = store.put("a", [LARGE[::-1]])

    assert store.get("a", tmp_path / "out", resumable=True) == digest
    assert (tmp_path / "out").read_bytes() == LARGE[::-1]
