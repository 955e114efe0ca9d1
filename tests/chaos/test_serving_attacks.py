"""S-05: clients that are slow, large, deep, broken or gone, beside one that is good."""

import json
import os
import random
import socket
import statistics
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from tests.chaos import evidence
from tests.chaos.cases import SEED
from tests.serving_support import posted, serving, until

GOOD = {"prompt": "Hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
CONNECTIONS = 200
BYTES = 50 << 20  # that memory may grow by


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed(running, count):
    """Seconds that each of some good requests takes; each is answered."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        assert running.post(GOOD).status_code == 200
        seconds.append(time.perf_counter() - started)
    return seconds


def p99(seconds):
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


class Drip:
    """Connections that send one byte of their request now and then, and begin again when they are let go."""

    def __init__(self, address, count):
        self._address, self._stop, self.let_go = address, threading.Event(), 0
        starts = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ", posted(b"x" * 200)[:-200])
        self._open = [(self._connect(), starts[number % 2]) for number in range(count)]
        for connection, start in self._open:
            connection.sendall(start)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        for connection, _ in self._open:
            connection.close()

    def _connect(self):
        return socket.create_connection(self._address, timeout=60)

    def _run(self):
        while not self._stop.wait(0.2):
            for place, (connection, start) in enumerate(self._open):
                try:
                    connection.sendall(b"a")
                    connection.setblocking(False)
                    if not connection.recv(4096):
                        raise ConnectionResetError
                except BlockingIOError:
                    connection.settimeout(60)
                except OSError:
                    self.let_go += 1
                    connection.close()
                    fresh = self._connect()
                    fresh.sendall(start)
                    self._open[place] = (fresh, start)


def test_a_good_client_beside_200_slow_ones():
    """While 200 connections send a byte now and then, a good client's answers come nearly as fast as before."""
    with serving(header_seconds=1.0, body_seconds=1.0) as running:
        timed(running, 5)
        before = timed(running, 40)
        memory = resident()
        with Drip(running.address, CONNECTIONS) as slow:
            assert until(lambda: len(running.server.server_state.connections) > CONNECTIONS)
            beside = timed(running, 40)
            assert until(lambda: slow.let_go > CONNECTIONS)
        outcomes = running.outcomes()

        assert p99(beside) < 2 * p99(before) + 3
        assert resident() - memory < BYTES
        assert set(outcomes) <= {"completed", "refused", "disconnected"}
        assert until(lambda: len(running.server.server_state.connections) <= 1)
        evidence.case("S-05", cases=CONNECTIONS, seed=SEED, p99_before=p99(before), p99_beside=p99(beside))


def test_more_connections_than_allowed():
    """A connection too many is answered with 503 and closed; when others end there is room again."""
    with serving(max_connections=5) as running:
        others = [socket.create_connection(running.address) for _ in range(5)]
        assert until(lambda: len(running.server.server_state.connections) == 5)
        answer = running.send(b"")
        for other in others:
            other.close()

        assert answer.startswith(b"HTTP/1.1 503")
        assert until(lambda: not running.server.server_state.connections)
        assert running.post(GOOD).status_code == 200


def ask_for_ever(connection):
    """Send requests and read no answer."""
    while True:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


def test_a_client_that_does_not_read():
    """An answer that is not read is given up after its time, and so is a client that asks and asks and never reads."""
    with serving(write_seconds=0.5) as running:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(running.address)
            connection.settimeout(60)
            with pytest.raises(ConnectionError):
                ask_for_ever(connection)
        assert until(lambda: not running.server.server_state.connections)


def test_a_body_that_nobody_wants():
    """Of a gigabyte that is refused a part is passed over, so that the refusal is heard, and then the client is cut."""
    memory = resident()
    with serving() as running, socket.create_connection(running.address, timeout=10) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
        sent = 0
        try:
            while sent < 1 << 30:
                sent += connection.send(bytes(1 << 16))
        except OSError:
            pass

        assert sent < 1 << 25
        assert resident() - memory < BYTES


def test_gone_while_more_was_sent():
    """A client that sends the start of another request and goes is noticed as soon as one that just goes."""
    with serving(step_seconds=0.04) as running:
        with socket.create_connection(running.address) as connection:
            body = json.dumps({**GOOD, "max_tokens": 200}).encode()
            connection.sendall(posted(body) + b"GET /hea")
            assert until(lambda: running.engine.outstanding == 1)
        assert until(lambda: running.engine.outstanding == 0, seconds=6)
        assert until(lambda: running.outcomes() == {"disconnected": 1})


def broken(chance):
    """A request of some kind, right or wrong, to be sent in pieces of some sizes."""
    values = [
        None,
        True,
        -1,
        0,
        1,
        3,
        1.5,
        10**9,
        1e308,
        "",
        "x",
        "\u20ac" * 50,
        [],
        ["a"],
        [1, 2],
        [[3], [4]],
        {},
        {"a": []},
    ]
    names = ["prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "stop", "seed", "logprobs", "echo", "stream"]
    names += ["stream_options", "model", "best_of", "suffix", "user", "logit_bias", "other"]
    body = {**GOOD, **{name: chance.choice(values) for name in chance.sample(names, chance.randrange(5))}}
    content = bytearray(json.dumps(body).encode())
    kind = chance.randrange(8)
    if kind == 0:
        content = content[: chance.randrange(len(content) + 1)]
    elif kind == 1:
        content = bytearray(chance.choice([b"[", b'{"a":', b"\xff", b"9", b" "]) * chance.randrange(100_000))
    elif kind == 2:
        for _ in range(chance.randrange(1, 6)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    request = bytearray(posted(bytes(content)))
    if kind == 3:
        for _ in range(chance.randrange(1, 6)):
            request[chance.randrange(len(request))] = chance.randrange(256)
    if kind == 4:
        request += posted(bytes(content)) * chance.randrange(4)
    return bytes(request), chance.random() < 0.3


def fuzz(running, chance, seconds):
    """Send broken requests for a while -> how often which status came."""
    statuses, end = {}, time.monotonic() + seconds
    while time.monotonic() < end:
        request, leaves = broken(chance)
        with socket.create_connection(running.address, timeout=60) as connection:
            try:
                at = 0
                while at < len(request):
                    size = chance.choice([1 << 16, 1 << 16, 1 << 16, chance.randrange(1, 200)])
                    connection.sendall(request[at : at + size])
                    at += size
                if leaves:
                    continue
                connection.settimeout(0.05)
                answer = connection.recv(1 << 16)
                status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "none"
            except OSError:
                status = "none"
            statuses[status] = statuses.get(status, 0) + 1
    return statuses


def fuzz_side_by_side(running, seconds, clients, seed=SEED):
    """Several broken clients at a time, and a good one in between -> statuses of each."""
    found = []
    work = [partial(fuzz, running, random.Random(seed + number), seconds) for number in range(clients)]
    threads = [threading.Thread(target=lambda one=one: found.append(one())) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def run_fuzz(seconds, clients, before=0.0):
    """Broken clients, after as many for `before` seconds -> statuses; the server has to be well after it."""
    with serving(header_seconds=1.0, body_seconds=1.0, write_seconds=2.0) as running:
        timed(running, 20)
        if before:
            fuzz_side_by_side(running, before, clients, SEED + clients)
        memory = resident()
        found = fuzz_side_by_side(running, seconds, clients)
        assert running.engine.state == "ready"
        assert until(lambda: running.engine.outstanding == 0)
        assert "failed" not in running.outcomes()
        assert timed(running, 1)
        assert resident() - memory < BYTES
    total = {status: sum(part.get(status, 0) for part in found) for status in set().union(*found)}
    assert set(total) <= {"200", "400", "404", "405", "408", "413", "503", "none"}, total
    assert total["200"] > 0
    assert total["400"] > 0
    return total


def test_broken_requests():
    """Bent, cut, deep, doubled and random requests are answered with 200, 4xx or 503, and none harms the server."""
    total = run_fuzz(seconds=4.0, clients=4)
    evidence.case("S-05", cases=sum(total.values()), seed=SEED)


@pytest.mark.slow
def test_broken_requests_for_ten_minutes():
    """The same for ten minutes, in which memory grows no more once buffers and threads have had theirs."""
    total = run_fuzz(seconds=600.0, clients=8, before=30.0)
    evidence.case("S-05", cases=sum(total.values()), seed=SEED)


@pytest.mark.slow
def test_memory_is_flat_over_2000_requests():
    """After the first hundred, 2,000 requests of all kinds leave memory where it was, within a hundredth."""
    with serving() as running:

        def some(count):
            for number in range(count):
                more = {"n": number % 4 + 1, "stream": number % 3 == 0, "echo": number % 5 == 0}
                running.post({**GOOD, "prompt": "x" * (number % 150 + 1), "logprobs": number % 4, **more})

        some(200)
        before = resident()
        some(2000)
        grown = resident() - before

    print(f"\nmemory after 200 requests {before:,} bytes, 2,000 later {grown:+,}")
    assert grown < before / 100
