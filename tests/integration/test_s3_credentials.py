"""Credentials that end or change while the job runs: looked up again, once for all threads, and nothing is lost."""

import random
import threading
import time
from datetime import timedelta

import pytest
from botocore import credentials

from job.config import StorageConfig
from job.errors import AccessError, StorageError
from job.infra.storage import open_store
from tests.local_s3 import LocalSts, Plan

CONFIG = StorageConfig(addressing_style="path", part_size=5 << 20, concurrency=4)
LARGE = random.Random(0).randbytes((40 << 20) + 1)  # nine parts


@pytest.fixture
def server(server, monkeypatch):
    """The server checks who asks, and boto3's variables hold no credentials."""
    for name in server.environ:
        if "KEY" in name:
            monkeypatch.delenv(name)
    return server


def write_keys(path, access_key):
    """Replace the credentials file as a secret manager does: at once."""
    fresh = path.with_suffix(".new")
    fresh.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = secret\n")
    fresh.rename(path)


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A shared credentials file with the first key."""
    path = tmp_path / "credentials"
    write_keys(path, "first")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    return path


def expire_after(count, operation, then=lambda: None):
    """A rule that lets the first key pass until `count` requests of `operation` were made, then only later ones."""
    lock, left = threading.Lock(), [count]

    def valid(server):
        def check(access_key):
            with lock:
                if left[0] > 0 and server.requests[-1].operation == operation:
                    left[0] -= 1
                    if not left[0]:
                        then()
                return left[0] > 0 or access_key != "first"

        return check

    return valid


@pytest.mark.parametrize(
    "refusal",
    [(400, "ExpiredToken"), (400, "InvalidToken"), (403, "InvalidAccessKeyId"), (403, "AccessDenied"), (401, "Nobody")],
)
def test_a_rotated_file(server, keys, tmp_path, refusal):
    """When the key of before is refused, in whatever words, the file is read again and the request repeated."""
    store = open_store("s3://runs/run", CONFIG)
    store.put("a", [b"abc"])
    write_keys(keys, "second")
    server.plan = Plan(valid=lambda access_key: access_key == "second", refusal=refusal)

    assert store.read("a") == b"abc"
    assert store.size("a") == 3
    assert store.create("log/1", b"first")
    assert {request.access_key for request in server.requests[2:]} == {"second"}


def test_a_rotated_file_is_noticed_by_head(server, keys):
    """An answer to HEAD has no body that says ExpiredToken; the key is renewed all the same."""
    store = open_store("s3://runs/run", CONFIG)
    store.put("a", [b"abc"])
    write_keys(keys, "second")
    server.plan = Plan(valid=lambda access_key: access_key == "second")

    assert store.size("a") == 3


def test_a_file_that_did_not_change(server, keys, tmp_path):
    """Refused keys that are still in the file are AccessError, expired ones StorageError; nothing is asked twice."""
    store = open_store("s3://runs/run", CONFIG)
    server.plan = Plan(valid=lambda access_key: False, refusal=(403, "AccessDenied"))
    with pytest.raises(AccessError):
        store.read("a")
    server.plan = Plan(valid=lambda access_key: False)
    with pytest.raises(StorageError, match="ExpiredToken"):
        store.read("a")

    assert len(server.requests) == 2


def test_keys_that_are_always_refused(server, keys):
    """A file that changes with every look does not keep a request going for ever."""
    numbers = iter(range(1000))

    def refuse(access_key):
        write_keys(keys, f"key-{next(numbers)}")
        return False

    server.plan = Plan(valid=refuse)
    with pytest.raises(StorageError, match="ExpiredToken"):
        open_store("s3://runs/run", CONFIG).read("a")

    assert len(server.requests) == 3


def test_a_file_that_is_gone(server, keys):
    """Where the file vanished, the refusal itself is what is told."""
    store = open_store("s3://runs/run", CONFIG)
    keys.unlink()
    server.plan = Plan(valid=lambda access_key: False)
    with pytest.raises(StorageError, match="ExpiredToken"):
        store.read("a")


def test_rotation_in_the_middle_of_an_upload(server, keys):
    """Parts that were refused are sent again with the new key; those before stay."""
    store = open_store("s3://runs/run", CONFIG)
    server.plan = Plan(valid=expire_after(3, "UploadPart", lambda: write_keys(keys, "second"))(server))
    store.put("large", [LARGE])

    assert server.objects["/runs/run/large"] == LARGE
    assert server.counted()["CreateMultipartUpload"] == 1
    assert {request.access_key for request in server.requests} == {"first", "second"}


def test_rotation_in_the_middle_of_a_download(server, keys, tmp_path):
    """Ranges that were refused are asked for again with the new key."""
    server.objects["/runs/run/large"] = LARGE
    store = open_store("s3://runs/run", CONFIG)
    server.plan = Plan(valid=expire_after(3, "GetObject", lambda: write_keys(keys, "second"))(server))
    store.get("large", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == LARGE


@pytest.fixture
def identity(tmp_path, monkeypatch):
    """A web identity: a token file, and a role to be had for it from the server that is returned, made on demand."""
    token, started = tmp_path / "token", []
    token.write_text("token-1")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/job")

    def start(lifetime):
        sts = LocalSts(lifetime)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        started.append(sts.__enter__())
        return sts, token

    yield start
    for sts in started:
        sts.__exit__()


def test_a_role_is_taken_on_once(server, identity, tmp_path):
    """Many requests in several threads ask for one set of credentials."""
    sts, _ = identity(3600)
    store = open_store("s3://runs/run", CONFIG)
    store.put("large", [LARGE])
    store.get("large", tmp_path / "out")

    assert sts.tokens == ["token-1"]
    assert {request.access_key for request in server.requests} == {"key-1"}


def test_a_rotated_token_file_in_the_middle_of_an_upload(server, identity):
    """Several parts are told ExpiredToken at once: one refresh, with the token that is in the file by now."""
    sts, token = identity(3600)
    server.plan = Plan(valid=lambda key: key != "key-1" or server.counted()["UploadPart"] < 3)
    store = open_store("s3://runs/run", CONFIG)
    store.put("a", [b"abc"])
    token.write_text("token-2")
    store.put("large", [LARGE])

    assert sts.tokens == ["token-1", "token-2"]
    assert server.objects["/runs/run/large"] == LARGE


def test_many_expiries(server, identity):
    """Thirty times the store says ExpiredToken: every write succeeds, with one refresh for each expiry."""
    sts, _ = identity(3600)
    used = []

    def valid(access_key):
        used.append(access_key)
        return used.count(access_key) <= 3

    server.plan = Plan(valid=valid)
    store = open_store("s3://runs/run", CONFIG)
    for number in range(90):
        store.put(f"a/{number}", [b"abc"])

    assert len(server.objects) == 90
    assert len(sts.tokens) == 30


def test_a_refusal_is_no_expiry(server, identity):
    """Who may not do something is not given another role for it."""
    sts, _ = identity(3600)
    server.plan = Plan(valid=lambda access_key: False, refusal=(403, "AccessDenied"))
    with pytest.raises(AccessError):
        open_store("s3://runs/run", CONFIG).delete("a")

    assert len(sts.tokens) == 1


def test_short_lived_credentials(server, identity):
    """Credentials that live for seconds are renewed shortly before their end, not for every request."""
    sts, _ = identity(4)
    store, until = open_store("s3://runs/run", CONFIG), time.monotonic() + 6
    while time.monotonic() < until:
        store.put("a", [b"abc"])

    assert 2 <= len(sts.tokens) <= 4
    assert server.counted()["PutObject"] > 20


@pytest.fixture
def later(monkeypatch):
    """Lets so many seconds pass for botocore's credentials."""
    now, gone = credentials._local_now, [0.0]
    monkeypatch.setattr(credentials, "_local_now", lambda: now() + timedelta(seconds=gone[0]))

    def left(found):
        return (found._expiry_time - credentials._local_now()).total_seconds()

    monkeypatch.setattr(credentials.RefreshableCredentials, "_seconds_remaining", left)

    def pass_by(seconds):
        gone[0] += seconds

    return pass_by


def test_a_token_service_that_is_away(server, identity, later):
    """Credentials that cannot be renewed are used to their end; only then the store is out of reach."""
    sts, _ = identity(3600)
    store = open_store("s3://runs/run", CONFIG)
    store.put("a", [b"abc"])
    sts.__exit__()
    later(3200)

    assert store.size("a") == 3
    later(400)
    with pytest.raises(StorageError):
        store.size("a")
