"""Transfers that stand still are noticed in time, tried again within bounds, and leave no thread behind."""

import random
import socket
import threading
import time
from dataclasses import replace

import pytest

from job.config import StorageConfig
from job.errors import StorageError
from job.infra.storage import open_store
from job.infra.watchdog import TRIES, Watchdog
from tests.local_s3 import Plan, Stall

STALL = 0.5  # seconds
GUARD = 15  # seconds for the rest of the work on a busy machine; botocore's own time-outs take twice as long
CONFIG = StorageConfig(
    addressing_style="path", part_size=5 << 20, concurrency=2, timeouts=(30, 30), stall_seconds=STALL
)
PATIENT = replace(CONFIG, stall_seconds=2 * STALL)  # where nothing is to be taken for a stall
LARGE = random.Random(0).randbytes((20 << 20) + 1)  # five parts, each more than what the kernel buffers


@pytest.fixture
def server(server):
    """The server has the large object."""
    server.objects["/runs/run/large"] = LARGE
    return server


@pytest.fixture
def no_pauses(monkeypatch):
    """botocore's pauses between attempts are short, so that only stalls take time."""
    sleep = time.sleep
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: sleep(min(seconds, 0.01)))


VERBS = {
    "put": lambda store, target: store.put("new", [b"abc" * 10_000_000]),
    "get": lambda store, target: store.get("large", target),
    "read": lambda store, target: store.read("large"),
    "digest": lambda store, target: store.digest("large"),
    "size": lambda store, target: store.size("large"),
    "delete": lambda store, target: store.delete("large"),
}
STALLS = [
    ("put", Stall("UploadPart", "unread")),
    ("put", Stall("UploadPart", "unanswered")),
    ("put", Stall("CreateMultipartUpload", "unanswered")),
    ("get", Stall("GetObject", "unanswered")),
    ("get", Stall("GetObject", "halfway")),
    ("digest", Stall("GetObject", "halfway")),
    ("read", Stall("GetObject", "halfway")),
    ("size", Stall("HeadObject", "unanswered")),
    ("delete", Stall("DeleteObject", "unanswered")),
]


def named(case):
    return case if isinstance(case, str) else f"{case.operation} {case.when}"


@pytest.mark.parametrize(("verb", "stall"), STALLS, ids=named)
def test_a_part_that_stood_still_is_tried_again(server, no_pauses, tmp_path, verb, stall):
    """One stall costs little more than the patience, and the operation succeeds."""
    server.plan = Plan([Stall(stall.operation, stall.when, count=1)])
    started = time.monotonic()
    VERBS[verb](open_store("s3://runs/run", CONFIG), tmp_path / "out")

    assert STALL <= time.monotonic() - started < STALL + GUARD


@pytest.mark.parametrize(("verb", "stall"), STALLS[::2], ids=named)
def test_a_store_that_stands_still_for_good(server, no_pauses, tmp_path, verb, stall):
    """A part is given up after some stalls in a row: StorageError, in bounded time, and no thread is left."""
    server.plan = Plan([stall])
    started = time.monotonic()
    with pytest.raises(StorageError, match=f"stood still {TRIES} times"):
        VERBS[verb](open_store("s3://runs/run", CONFIG), tmp_path / "out")

    assert time.monotonic() - started < TRIES * STALL + GUARD
    assert {thread.name.split("_")[0] for thread in own_threads()} <= {"watchdog"}
    assert_watchdogs_end()


def test_a_silent_connection_is_cut_in_time():
    """A connection is cut after the patience, and before twice as long."""
    patience, cut = 2.0, []

    def hang_on(peer):
        while peer.recv(1 << 20):
            pass
        cut.append(time.monotonic())

    with (
        Watchdog(patience, lambda: None).watching() as watch,
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as connection,
    ):
        peer = threading.Thread(target=hang_on, args=(listening.accept()[0],))
        peer.start()
        watch.attach(connection)
        sent = time.monotonic()
        connection.sendall(b"request")
        peer.join(3 * patience)

    assert patience <= cut[0] - sent < 2 * patience
    assert watch.stalls == 1


def test_nothing_begins_after_a_failure(server, no_pauses):
    """When a part is given up, only those that were under way have been tried, and the upload is aborted."""
    server.plan = Plan([Stall("UploadPart", "unread")])
    with pytest.raises(StorageError):
        open_store("s3://runs/run", CONFIG).put("new", [LARGE])

    assert {request.query["partNumber"] for request in server.requests if request.operation == "UploadPart"} == {
        "1",
        "2",
    }
    assert server.uploads == {}


def own_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(("part", "sha256", "watchdog"))]


def assert_watchdogs_end():
    for thread in own_threads():
        thread.join(2)

    assert own_threads() == []


def test_no_thread_outlives_a_transfer(server, tmp_path):
    """After a transfer that went well nothing keeps running."""
    open_store("s3://runs/run", CONFIG).get("large", tmp_path / "out")

    assert_watchdogs_end()


def test_slow_is_not_stalled(server, tmp_path):
    """A byte now and then is progress: a download that takes longer than the patience is left alone."""
    server.objects["/runs/run/slow"] = b"0123456789"
    server.plan = Plan(drip=PATIENT.stall_seconds / 5)
    started = time.monotonic()
    digest = open_store("s3://runs/run", PATIENT).get("slow", tmp_path / "out")
    took = time.monotonic() - started
    server.plan = Plan()

    assert took > 1.5 * PATIENT.stall_seconds
    assert (tmp_path / "out").read_bytes() == b"0123456789"
    assert digest == open_store("s3://runs/run", CONFIG).digest("slow")
    assert server.counted()["GetObject"] == 2


def test_a_slow_reader_is_not_stalled(server, tmp_path):
    """Time that passes between two requests, on our side, is no stall of the server's."""
    store = open_store("s3://runs/run", PATIENT)
    store.get("large", tmp_path / "out")
    time.sleep(1.5 * PATIENT.stall_seconds)
    store.get("large", tmp_path / "out")

    assert server.counted()["GetObject"] == 10


def test_movement_is_told(server, tmp_path):
    """Uploads and downloads tell that bytes move, a dripping one too, so that health follows them."""
    told = []
    server.objects["/runs/run/slow"] = b"0123456789"
    store = open_store("s3://runs/run", CONFIG, lambda: told.append(None))
    store.put("new", [LARGE])
    sent = len(told)
    store.get("large", tmp_path / "out")
    received = len(told) - sent
    server.plan = Plan(drip=STALL / 4)
    store.read("slow")
    dripped = len(told) - received - sent

    assert sent >= 5
    assert received >= 5
    assert dripped >= 3  # once for the answer's head, and while its body came
