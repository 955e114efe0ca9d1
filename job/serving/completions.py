"""/v1/completions: a request becomes continuations, and their pieces an answer, whole or as a stream."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from job.model.batching import Continuation, Prompt
from job.serving.answer import Answer, Piece, logprobs_of
from job.serving.engine import Engine, ServedModel
from job.serving.metrics import Outcome, ServingMetrics
from job.serving.refusal import Refusal, unavailable
from job.serving.request import CompletionRequest, complete, read_body
from job.serving.settings import ServingConfig
from job.training.randomness import generator_for

_OUTCOMES: Mapping[int, Outcome] = {500: "failed", 503: "busy"}  # of refusals, by status
INLINE_BYTES = 4096  # of a body; longer ones are tokenized beside the event loop


class Completions:
    """Answers requests for completions with the engine."""

    def __init__(self, engine: Engine, name: str, limits: ServingConfig, metrics: ServingMetrics) -> None:
        self._engine, self._name, self._limits, self._metrics = engine, name, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count how it ended."""
        started = time.perf_counter()
        outcome: Outcome = "failed"
        try:
            outcome = await self._serve(Request(scope, receive), send, started)
        except ClientDisconnect:
            outcome = "disconnected"
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        except Refusal as refusal:
            outcome = "deadline" if refusal.code == "deadline" else _OUTCOMES.get(refusal.status, "refused")
            raise
        finally:
            self._metrics.ended(outcome)
            if outcome == "completed":
                self._metrics.request_seconds.observe(time.perf_counter() - started)

    async def _serve(self, request: Request, send: Send, started: float) -> Outcome:
        """Take a request in and answer it; what it holds is freed however that ends."""
        content = await _content(request, self._limits)
        body = read_body(content, self._limits, self._name)
        model = self._engine.require_room()
        if len(content) <= INLINE_BYTES:
            asked = complete(body, model.tokenizer, model.context_length)
        else:
            asked = await asyncio.to_thread(complete, body, model.tokenizer, model.context_length)
        exchange = _Exchange(asked, model, self._name, self._metrics, started)
        exchange.begin(self._engine)
        try:
            return await self._answer(exchange, request.receive, send)
        except Refusal as refusal:
            if not exchange.begun:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(1):  # the client may be the one that does not read
                    await exchange.break_off(refusal, send)
            return "deadline" if refusal.code == "deadline" else "failed"
        finally:
            exchange.end(self._engine)

    async def _answer(self, exchange: "_Exchange", receive: Receive, send: Send) -> Outcome:
        """Send the answer, unless the client leaves before. Raises Refusal when time is up."""
        seconds = self._limits.request_seconds
        answering = asyncio.create_task(exchange.stream(send) if exchange.asked.stream else exchange.send(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answering, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
                return "completed"
            if gone.done():
                return "disconnected"
        finally:
            await _cancel(answering, gone)
        raise unavailable(f"the answer took longer than {seconds:g} s; ask for fewer tokens", "deadline", 1)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, asked: CompletionRequest, model: ServedModel, name: str, metrics: ServingMetrics, started: float
    ) -> None:
        self.asked, self.begun = asked, False
        self._model, self._metrics, self._started = model, metrics, started
        self._facts = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self._inbox: asyncio.Queue[Sequence[Piece] | None] = asyncio.Queue()
        self._prompt_tokens = sum(map(len, asked.prompts))
        self._completion_tokens = [0] * (len(asked.prompts) * asked.n)

    def begin(self, engine: Engine) -> None:
        """Hand the continuations to the engine. Raises Refusal when there is no room."""
        loop = asyncio.get_running_loop()

        def deliver(pieces: Sequence[Piece] | None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(self._inbox.put_nowait, pieces)

        self._ticket = engine.submit(self._answers(), deliver)
        self._metrics.tokens.labels("prompt").inc(self._prompt_tokens)

    def end(self, engine: Engine) -> None:
        """Free what is still held."""
        if self._ticket.open:
            engine.cancel(self._ticket)
        self._metrics.tokens.labels("completion").inc(sum(self._completion_tokens))

    async def send(self, send: Send) -> None:
        """The whole answer at once."""
        texts = [""] * len(self._completion_tokens)
        placed: list[list[Any]] = [[] for _ in texts]
        reasons: list[str | None] = [None] * len(texts)
        async for pieces in self._pieces():
            for piece in pieces:
                texts[piece.choice] += piece.text
                placed[piece.choice] += piece.placed
                reasons[piece.choice] = piece.finish_reason
        choices = [self._choice(index, text, placed[index], reasons[index]) for index, text in enumerate(texts)]
        content = _json({**self._facts, "choices": choices, "usage": self._usage()})
        self.begun = True
        await send(_head(200, b"application/json", len(content)))
        await send({"type": "http.response.body", "body": content})

    async def stream(self, send: Send) -> None:
        """The answer as events, one or more for each step that adds to it."""
        usage: dict[str, Any] = {"usage": None} if self.asked.include_usage else {}
        async for pieces in self._pieces():
            if self.asked.running_usage:
                usage = {"usage": self._usage()}
            events = [
                {**self._facts, "choices": [self._choice(piece.choice, *piece[1:4])], **usage}
                for piece in pieces
                if piece.text or piece.placed or piece.finish_reason
            ]
            if events:
                await self._emit(send, events)
        if self.asked.include_usage:
            await self._emit(send, [{**self._facts, "choices": [], "usage": self._usage()}])
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def break_off(self, refusal: Refusal, send: Send) -> None:
        """End a stream that cannot be completed; what is no stream ends with its connection."""
        if not self.asked.stream:
            return
        await self._emit(send, [refusal.plain()])
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _emit(self, send: Send, events: Sequence[Any]) -> None:
        if not self.begun:
            self.begun = True
            await send(_head(200, b"text/event-stream; charset=utf-8"))
        content = b"".join(b"data: " + _json(event) + b"\n\n" for event in events)
        await send({"type": "http.response.body", "body": content, "more_body": True})

    async def _pieces(self) -> AsyncIterator[Sequence[Piece]]:
        """What the engine delivers, to the end of the last choice."""
        missing = len(self._completion_tokens)
        first = True
        while missing:
            pieces = await self._inbox.get()
            if pieces is None:
                raise Refusal(500, "the server has failed", code="failed")
            for piece in pieces:
                self._completion_tokens[piece.choice] = piece.tokens
                missing -= piece.finish_reason is not None
            if first:
                first = False
                self._metrics.first_token_seconds.observe(time.perf_counter() - self._started)
            yield pieces

    def _answers(self) -> list[Answer]:
        """A continuation for each choice, those of one prompt together."""
        asked, tokenizer = self.asked, self._model.tokenizer
        answers: list[Answer] = []
        for tokens, text in zip(asked.prompts, asked.texts, strict=True):
            prompt = Prompt(tokens, asked.logprobs if asked.echo else None)
            for _ in range(asked.n):
                index = len(answers)
                continuation = Continuation(
                    prompt=prompt,
                    max_new_tokens=asked.max_tokens,
                    sampling=asked.sampling,
                    generator=generator_for(self._model.device, asked.seed, "generate", index),  # as `generate` draws
                    stop_token=None if asked.ignore_end else tokenizer.end_of_text,
                    scores=asked.logprobs,
                )
                answers.append(Answer(index, continuation, tokenizer, asked.stops, text))
        return answers

    def _choice(self, index: int, text: str, placed: Sequence[Any], reason: str | None) -> dict[str, Any]:
        logprobs = None if self.asked.logprobs is None else logprobs_of(placed, self._model.tokenizer)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _usage(self) -> dict[str, int]:
        completion = sum(self._completion_tokens)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }


async def _content(request: Request, limits: ServingConfig) -> bytes:
    """The whole body. Raises Refusal when it is too large or too slow, ClientDisconnect when it does not come."""
    too_large = Refusal(413, f"the body is larger than {limits.max_body_bytes} bytes", code="too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 18 or int(length) > limits.max_body_bytes:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limits.max_body_bytes:
                    raise too_large
    except TimeoutError as error:
        message = f"the body took longer than {limits.body_seconds:g} s"
        raise Refusal(408, message, code="timeout", headers={"Connection": "close"}) from error
    return bytes(content)


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


async def _cancel(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _head(status: int, content_type: bytes, length: int | None = None) -> Message:
    headers = [(b"content-type", content_type), (b"cache-control", b"no-store")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
