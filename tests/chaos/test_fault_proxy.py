"""The fault proxy does what its plan says, and nothing to what the plan leaves alone."""

import contextlib
import random
import time
from dataclasses import replace

import pytest

from job.config import StorageConfig
from job.errors import AccessError, StorageError
from job.infra.storage import open_store
from tests.chaos.weather import Hurried
from tests.contract.object_store_contract import ObjectStoreContract
from tests.fault_plans import (
    BUSY,
    FORBIDDEN,
    RESET_AFTER,
    RESET_BEFORE,
    TRUNCATE,
    WRONG,
    First,
    Rule,
    Weather,
    asks,
    commits,
    every_kind,
    refuse,
    slow,
    stall,
)
from tests.fault_proxy import FaultProxy

CONFIG = StorageConfig(addressing_style="path", part_size=5 << 20, timeouts=(5.0, 20.0))
SOON = replace(CONFIG, timeouts=(5.0, 2.0))  # notices a stall after a second
LARGE = random.Random(0).randbytes(11 << 20)  # three parts
ANY = asks("PUT", "GET", "HEAD", "POST", "DELETE", "LIST")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Retries follow each other at once."""
    monkeypatch.setattr("botocore.endpoint.time", Hurried())


@pytest.fixture
def proxy(s3_server, s3_environment, monkeypatch):
    with FaultProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(proxy, s3_server):
    return open_store(s3_server.fresh_uri(), CONFIG)


@pytest.mark.slow
class TestThroughTheProxy(ObjectStoreContract):
    @pytest.fixture
    def store(self, store):
        return store


def test_a_calm_proxy_asks_once(store, proxy, tmp_path):
    """Without faults every request reaches the server, is answered and is asked once: parts, trailers, 100-continue."""
    store.put("large", [LARGE])
    store.get("large", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == LARGE
    assert [entry.request.operation for entry in proxy.log].count("PUT") == 3
    assert {entry.status for entry in proxy.log} <= {200, 204, 206}


@pytest.mark.parametrize("fault", [BUSY, RESET_BEFORE, TRUNCATE, stall()], ids=lambda fault: fault.kind)
def test_a_write_that_never_happened(proxy, s3_server, fault):
    """The request does not reach the server; what repeats it finds nothing there."""
    store = open_store(s3_server.fresh_uri(), SOON if fault.way == "stall" else CONFIG)
    proxy.plan = First(fault, commits)

    assert store.create("log/1", b"abc")
    assert [entry.status for entry in proxy.entries(commits)] == [0, 200]
    assert store.read("log/1") == b"abc"


def test_an_answer_that_is_lost(store, proxy):
    """The server does it and the client does not hear: what repeats it finds it done."""
    proxy.plan = First(RESET_AFTER, commits)

    assert not store.create("log/1", b"abc")
    assert [entry.status for entry in proxy.entries(commits)] == [200, 412]


def test_a_cut_answer(store, proxy, tmp_path):
    """The client gets the first half of a body, and asks for the rest."""
    store.put("a", [LARGE[:1000]])
    proxy.plan = First(TRUNCATE, asks("GET"))
    store.get("a", tmp_path / "out")

    assert [entry.request.headers["range"] for entry in proxy.entries(asks("GET"))] == ["bytes=0-999", "bytes=500-999"]
    assert (tmp_path / "out").read_bytes() == LARGE[:1000]


def test_a_bent_answer(store, proxy):
    """The client gets a body of the right length in which one bit is wrong."""
    store.put("a", [bytes(1000)])
    proxy.plan = First(WRONG, asks("GET"))

    assert sum(store.read("a")) == 1
    assert sum(store.read("a")) == 0


def test_a_refusal_has_its_reason(store, proxy):
    """What the proxy answers in the server's place is S3's error, after one try."""
    proxy.plan = Rule(FORBIDDEN, ANY)
    with pytest.raises(AccessError, match="AccessDenied"):
        store.put("a", [b"abc"])

    assert proxy.counts == {"403 AccessDenied": 1}


def test_a_short_stall(store, proxy):
    """Nothing moves for a while, then the request is carried out."""
    proxy.plan = First(stall(0.2), asks("PUT"))
    started = time.monotonic()
    store.put("a", [b"abc"])

    assert time.monotonic() - started >= 0.2
    assert [entry.status for entry in proxy.entries(asks("PUT"))] == [200]


def test_a_slow_body(store, proxy):
    """A body moves at the given rate, and arrives."""
    store.put("a", [LARGE[:100_000]])
    proxy.plan = Rule(slow(200_000), asks("GET"))
    started = time.monotonic()

    assert store.read("a") == LARGE[:100_000]
    assert time.monotonic() - started >= 0.4


def test_a_door_that_is_closed(store, proxy):
    """After the door was closed no connection is made."""
    proxy.close_door()
    with pytest.raises(StorageError, match="Could not connect"):
        store.read("a")


def test_weather_is_the_same_again(proxy, s3_server):
    """The same seed does the same to another run, whatever its random names."""

    def visit():
        proxy.log.clear()
        proxy.plan = Weather(7, 0.5, every_kind(stalled=0.1))
        store = open_store(s3_server.fresh_uri(), CONFIG)
        for number in range(8):
            with contextlib.suppress(StorageError, KeyError):
                store.create(f"log/{number}", b"abc")
                store.read(f"log/{number}")
        return [(entry.request.same, entry.fault.kind) for entry in proxy.log]

    assert visit() == visit()
    assert len(proxy.counts) > 3


def test_a_refusal_of_a_page(store, proxy):
    """A page that is not from S3 can stand in an answer's place."""
    proxy.plan = Rule(refuse(404, ""), asks("GET"))
    with pytest.raises(StorageError, match="HTTP 404"):
        store.read("a")


def test_bodies_of_every_kind_in_bad_weather(store, proxy, tmp_path):
    """Objects of several parts come back whole through faults at one request in five."""
    proxy.plan = Weather(3, 0.2, {f: weight for f, weight in every_kind(0.6, 40e6).items() if f != WRONG})
    for number in range(3):
        store.put(f"large{number}", [LARGE])
        store.get(f"large{number}", tmp_path / "out")

        assert (tmp_path / "out").read_bytes() == LARGE
