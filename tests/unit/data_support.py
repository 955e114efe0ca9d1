"""What the tests of `job.data` share: corpora in a line, and a real HTTP server that can be told to misbehave."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from job.config import DataConfig
from job.data.corpus import Corpus, pull
from job.infra.object_store import ObjectStore

SHARED = Path(os.environ.get("GPT_JOB_ASSETS", Path(__file__).parents[3] / "shared" / "data"))


def still(*_: int) -> None:
    """Progress that nobody watches."""


def no_store(uri: str) -> ObjectStore:
    raise AssertionError(f"{uri} was opened")


def config_for(folder: Path, *corpus: str | Path, **settings: object) -> DataConfig:
    """Settings for these entries, with a cache of their own in `folder`."""
    return DataConfig(corpus=tuple(map(str, corpus)), cache_dir=str(folder / "cache"), **settings)


def pulled(config: DataConfig) -> Corpus:
    return pull(config, no_store, still)


def peak_memory() -> int:
    """MiB that this process has used at most. Not getrusage's, in which a child begins with its parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


def published(name: str) -> Path:
    """A public file for tests; the test is skipped, visibly, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not in {SHARED}")
    return path


@dataclass
class Plan:
    """How the server answers for one path."""

    content: bytes = b""
    status: int = 200
    location: str | None = None
    etag: str | None = '"v1"'
    ranges: bool = True
    claims_ranges: bool = False  # says so, and does not give them
    says_length: bool = True
    cut_after: list[int] = field(default_factory=list)  # body bytes of the first, second, ... answer
    headers: dict[str, str] = field(default_factory=dict)
    fail: list[int] = field(default_factory=list)  # statuses of the first answers
    head: bool = True  # whether HEAD is allowed; a presigned address allows GET alone


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plans: dict[str, Plan] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.server.requests.append((f"HEAD {self.path}", dict(self.headers)))
        plan = self.server.plans.get(self.path.partition("?")[0], Plan(status=404))
        self.send_response(plan.status if plan.head else 403)
        self.send_header("Content-Length", str(len(plan.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        plan = self.server.plans.get(self.path.partition("?")[0], Plan(status=404))
        if plan.fail:
            return self._send(plan.fail.pop(0), b"")
        if plan.location is not None:
            return self._send(302, b"", {"Location": plan.location})
        if plan.etag and self.headers.get("If-None-Match") == plan.etag:
            return self._send(304, b"")
        named = {"ETag": plan.etag} if plan.etag else {}
        named |= {"Accept-Ranges": "bytes"} if plan.ranges or plan.claims_ranges else {}
        span = self._span(plan)
        if span is None:
            return self._send(plan.status, plan.content, plan.headers | named, plan)
        if not span:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(plan.content)}"})
        where = {"Content-Range": f"bytes {span[0]}-{span[-1]}/{len(plan.content)}"}
        return self._send(206, plan.content[span.start : span.stop], plan.headers | named | where, plan)

    def _span(self, plan: Plan) -> range | None:
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if not asked or not plan.ranges or (condition and condition != plan.etag):
            return None
        first, _, last = asked.removeprefix("bytes=").partition("-")
        return range(int(first), min(len(plan.content), int(last or len(plan.content)) + 1))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, plan: Plan | None = None) -> None:
        self.send_response(status)
        if plan and not plan.says_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        elif status != 304:
            self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if plan and plan.cut_after:
            body = body[: plan.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Silence."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server on loopback, in a thread."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
