"""uvicorn in the job's harness: its own sockets, deadlines and signals, and a drain at the end."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from job.errors import ConfigError
from job.serving.protocol import GuardedProtocol
from job.serving.settings import ServingConfig


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; port 0 takes a free one. Raises ConfigError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay of 40 ms off only where it is.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error
    return listener


class Server(uvicorn.Server):
    """uvicorn with our protocol; whoever holds it says when to end."""

    def __init__(self, app: ASGIApp, limits: ServingConfig) -> None:
        protocol: Any = partial(GuardedProtocol, limits)
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # the application logs its bugs; clients' are no news
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level=logging.CRITICAL,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]
                h11_max_incomplete_event_size=limits.max_header_bytes,
            )
        )

    def drain(self, seconds: float) -> None:
        """Take no more connections, let what was begun end within so many seconds, and end. From any thread."""
        self.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to StopSignal."""
        yield
