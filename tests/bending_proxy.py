"""A proxy that bends what a real completions server answers: one fault, everything else as it came."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Self

from urllib3 import PoolManager

Body = dict[str, Any]


def same(content: Any, *_: Any) -> Any:
    return content


@dataclass(frozen=True, kw_only=True)
class Bend:
    """What is changed.

    Args:
        asked: Of a request's JSON; its second argument is how many requests are under way.
        answered: Of the JSON of a whole completion; its second argument is the request.
        streamed: Of the list of a stream's chunks; the same.
        refused: Status and content of what is no 200.
    """

    asked: Callable[[Body, int], Body] = same
    answered: Callable[[Body, Body], Body] = same
    streamed: Callable[[list[Body], Body], list[Body]] = same
    refused: Callable[[tuple[int, bytes]], tuple[int, bytes]] = same


class BendingProxy:
    """Listens on a port of its own, in front of `upstream`, for as long as the block lasts."""

    def __init__(self, upstream: str, bend: Bend) -> None:
        self.upstream, self.bend = upstream, bend
        self.pool, self.under_way, self.lock = PoolManager(maxsize=32, retries=False), 0, Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.pass_on(self, None)

            def do_POST(self) -> None:
                proxy.pass_on(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def pass_on(self, handler: BaseHTTPRequestHandler, content: bytes | None) -> None:
        """Ask the server, and answer with what is made of its answer."""
        with self.lock:
            self.under_way += 1
            at_once = self.under_way
        try:
            body = _object(content)
            if body is not None:
                body = self.bend.asked(body, at_once)
                content = json.dumps(body).encode()
            headers = {
                name: handler.headers[name] for name in ("Content-Type", "Authorization") if handler.headers[name]
            }
            url = self.upstream + handler.path
            answer = self.pool.request(handler.command, url, body=content, headers=headers)
            status, said = self._bent(answer.status, answer.data, body or {})
        finally:
            with self.lock:
                self.under_way -= 1
        handler.send_response(status)
        handler.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        handler.send_header("Content-Length", str(len(said)))
        handler.end_headers()
        handler.wfile.write(said)

    def _bent(self, status: int, content: bytes, body: Body) -> tuple[int, bytes]:
        if status != 200:
            return self.bend.refused((status, content))
        if content.startswith(b"data: "):
            events = [event.removeprefix("data: ") for event in content.decode().split("\n\n") if event]
            chunks = self.bend.streamed([json.loads(event) for event in events if event != "[DONE]"], body)
            return status, b"".join(
                b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks
            ) + b"data: [DONE]\n\n"
        answer = _object(content)
        bent = self.bend.answered(answer, body) if answer and "choices" in answer else None
        return status, content if bent is None else json.dumps(bent).encode()


def _object(content: bytes | None) -> Body | None:
    try:
        found = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
