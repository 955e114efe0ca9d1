"""A client of OpenAI's completions interface, as plain as a test needs it: what was sent, what came back, and when."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from urllib3 import BaseHTTPResponse, HTTPHeaderDict, PoolManager, Timeout
from urllib3.exceptions import HTTPError

from job.errors import JobError
from job.serving.testing.figures import Timeline
from job.serving.testing.sse import EventStream

COMPLETIONS = "/v1/completions"
DONE = "[DONE]"
CONNECT_SECONDS = 5.0
PIECE = 1 << 16  # bytes read at once


class AnswerError(JobError):
    """The server gave no answer, or not the one that its interface promises."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> dict[str, Any]:
        """The content as a JSON object. AnswerError when it is none."""
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"status {self.status}: not JSON: {self.content[:200]!r}") from error
        if not isinstance(found, dict):
            raise AnswerError(f"status {self.status}: no JSON object: {self.content[:200]!r}")
        return found


class ServeClient:
    """Talks to one server; any number of threads may use it at once.

    Args:
        url: Of the server, without /v1.
        api_key: Sent as a bearer token when there is one.
        connections: Most that are kept open for reuse.
        seconds: Longest silence of the server that is borne.
    """

    def __init__(self, url: str, api_key: str | None = None, connections: int = 8, seconds: float = 120.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Retried, a request would be counted once and done twice.
        self._pool = PoolManager(
            maxsize=connections, retries=False, timeout=Timeout(connect=CONNECT_SECONDS, read=seconds)
        )

    def request(
        self, method: str, path: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Any request, as it is. AnswerError when no answer comes."""
        with self._errors(), self._open(method, path, content, headers) as answer:
            return Answer(answer.status, HTTPHeaderDict(answer.headers), answer.data)

    def complete(self, **body: Any) -> dict[str, Any]:
        """The completion of a request. AnswerError when it is refused."""
        answer = self.request("POST", COMPLETIONS, _encoded(body))
        if answer.status != 200:
            raise AnswerError(_refusal(answer.status, answer.content))
        return answer.json()

    def stream(self, **body: Any) -> Iterator[dict[str, Any]]:
        """The same, chunk by chunk. AnswerError when it is refused, cut or without its end."""
        with self._errors(), self._open("POST", COMPLETIONS, _encoded({**body, "stream": True}), None) as answer:
            if answer.status != 200:
                raise AnswerError(_refusal(answer.status, answer.data))
            events = EventStream()
            while piece := answer.read1(PIECE):
                for data in events.add(piece):
                    if data == DONE:
                        answer.drain_conn()
                        return
                    yield _chunk(data)
        raise AnswerError(f"the stream ended without {DONE}")

    def timed(self, due: float, body: Mapping[str, Any]) -> Timeline:
        """What streaming a completion is like; never raises for what the server does."""
        started = time.perf_counter()
        chunks: list[float] = []
        usage: dict[str, Any] = {}
        error = ""
        try:
            for chunk in self.stream(**body, stream_options={"include_usage": True}):
                if chunk.get("choices"):
                    chunks.append(time.perf_counter())
                usage = chunk.get("usage") or usage
            if not chunks or not usage:
                error = "an answer without " + ("a token" if usage else "its usage")
        except AnswerError as failure:
            error = str(failure)
        return Timeline(
            due=due,
            started=started,
            chunks=tuple(chunks),
            ended=time.perf_counter(),
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            completion_tokens=int(usage.get("completion_tokens", 0)),
            error=error,
        )

    @contextmanager
    def _open(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str] | None
    ) -> Iterator[BaseHTTPResponse]:
        own = self._headers | ({"Content-Type": "application/json"} if content is not None else {})
        answer = self._pool.request(
            method, self.url + path, body=content, headers={**own, **(headers or {})}, preload_content=False
        )
        try:
            yield answer
        except BaseException:
            answer.close()  # not all of it was read: this connection cannot be used again
            raise
        finally:
            answer.release_conn()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (HTTPError, OSError) as error:
            raise AnswerError(f"{self.url}: {type(error).__name__}: {error}") from error


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _chunk(data: str) -> dict[str, Any]:
    found = Answer(200, {}, data.encode()).json()
    if "error" in found:
        raise AnswerError(f"the stream broke off: {json.dumps(found['error'])[:300]}")
    return found


def _refusal(status: int, content: bytes) -> str:
    """Status and message of an error in OpenAI's shape, or the start of whatever came."""
    try:
        return f"status {status}: {json.loads(content)['error']['message']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"status {status}: {content[:200].decode(errors='replace')}"
