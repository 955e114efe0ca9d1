"""What the job answers over HTTP while it runs: metrics, whether it moves, whether it has begun."""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, Self

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from job.infra.healthcheck import forget_address, tell_address

DOCKER_MARK = "/.dockerenv"
PLAIN = "text/plain; charset=utf-8"

log = structlog.get_logger(__name__)


class Pulse:
    """The moment something last moved: bytes, documents, micro-batches, evaluation batches, parts.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """Something moved. Cheap, and safe from any thread: it stores one number."""
        self._last = self._clock()

    def seconds_since(self) -> float:
        """Seconds since something last moved."""
        return self._clock() - self._last


class HealthServer:
    """Serves `/metrics`, `/healthz` and `/readyz` from daemon threads.

    Args:
        stall_seconds: Without a beat for longer than this, `/healthz` answers 503.
        host: `auto` is every interface in a container and loopback elsewhere.
        port: 0 takes a free one.
    """

    def __init__(
        self, registry: CollectorRegistry, pulse: Pulse, stall_seconds: float, host: str = "auto", port: int = 0
    ) -> None:
        self._registry = registry
        self._pulse = pulse
        self._stall_seconds = stall_seconds
        self._address = (listening_host(host, os.environ), port)
        self._ready = threading.Event()
        self._server: _Server | None = None

    def start(self) -> Self:
        """Begin to answer; where the address cannot be had, that is a warning and the job goes on without."""
        host, port = self._address
        try:
            self._server = _Server(self._address, self._answer)
        except OSError as error:
            log.warning("no metrics endpoint", host=host, port=port, reason=str(error))
            return self
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True).start()
        log.info("metrics endpoint", url=f"http://{host}:{self.port}/metrics")
        tell_address(host, self._server.server_address[1])
        return self

    @property
    def port(self) -> int | None:
        """The port that answers; None when there is none."""
        return self._server.server_address[1] if self._server else None

    def ready(self) -> None:
        """Training has begun."""
        self._ready.set()

    def close(self) -> None:
        """Stop answering and free the port."""
        if self._server:
            forget_address(self._address[0], self._server.server_address[1])
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            still = self._pulse.seconds_since()
            if still > self._stall_seconds:
                return 503, PLAIN, f"nothing has moved for {still:.0f} s (limit {self._stall_seconds:g} s)\n".encode()
            return 200, PLAIN, b"ok\n"
        if path == "/readyz":
            return (200, PLAIN, b"ok\n") if self._ready.is_set() else (503, PLAIN, b"training has not begun\n")
        return 404, PLAIN, b"not found: /metrics, /healthz and /readyz are here\n"


def listening_host(host: str, environ: Mapping[str, str]) -> str:
    """The address to bind for `observe.metrics_host`."""
    if host != "auto":
        return host
    in_container = "GPT_JOB_IMAGE" in environ or "KUBERNETES_SERVICE_HOST" in environ or Path(DOCKER_MARK).exists()
    return "0.0.0.0" if in_container else "127.0.0.1"  # noqa: S104  # a container's own network


class _Server(ThreadingTCPServer):
    """Not HTTPServer, which asks the resolver for the host's name and may wait for it."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], answer: Callable[[str], tuple[int, str, bytes]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answer = answer
        super().__init__(address, _Request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0  # seconds that a client may be silent
    server_version = "gpt-pretrain-job"
    sys_version = ""
    error_content_type = PLAIN
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        try:
            status, content_type, body = self.server.answer(self.path.partition("?")[0])
        except Exception as error:  # a collector's; the client learns that there is one, the log which
            log.warning("no answer", path=self.path, exc_info=error)
            status, content_type, body = 500, PLAIN, b"internal error\n"
        self._send(status, content_type, body)

    do_HEAD = do_GET  # noqa: N815  # the base class's naming

    def _refuse(self) -> None:
        self._send(405, PLAIN, b"only GET and HEAD\n", Allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _send(self, status: int, content_type: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """A scrape every few seconds is not news."""
