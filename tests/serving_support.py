"""A real server in a thread of the test's own process, on a small model whose tokens are bytes."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import httpx2 as httpx
import torch
from openai import OpenAI
from prometheus_client import CollectorRegistry

from job.config import ModelConfig
from job.data.alphabets import ByteTokenizer
from job.infra.health import Pulse
from job.model.batching import Batch
from job.model.decoder import Decoder
from job.model.generation import generate
from job.model.gpt import GPT
from job.model.rows import CachedRows
from job.serving.app import Pages, build_app
from job.serving.engine import Engine, ServedModel
from job.serving.metrics import ServingMetrics
from job.serving.server import Server, listen
from job.serving.settings import ServingConfig

NAME, CONTEXT = "small", 256
TOKENIZER = ByteTokenizer()


def small_model(**settings: Any) -> GPT:
    """A model with random numbers, whose best logits are mostly apart."""
    torch.manual_seed(3)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": CONTEXT, **settings}
    model = GPT(ModelConfig(**shape), TOKENIZER.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


class SlowDecoder:
    """A decoder that takes its time for every step, so that a test can meet it on the way."""

    def __init__(self, inner: Decoder, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds

    def step(self, *what: Any) -> torch.Tensor:
        """A step, later."""
        time.sleep(self._seconds)
        return self._inner.step(*what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    server: Server
    engine: Engine
    metrics: ServingMetrics
    model: GPT
    http: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def client(self, **settings: Any) -> OpenAI:
        """OpenAI's own client."""
        return OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "http_client": self.http, **settings}
        )

    def post(self, body: Any, **settings: Any) -> httpx.Response:
        """What is answered to a JSON body, or to bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(f"{self.url}/v1/completions", content=content, **settings)

    def get(self, path: str, **settings: Any) -> httpx.Response:
        """What is answered at a path."""
        return self.http.get(self.url + path, **settings)

    def send(self, content: bytes, seconds: float = 30.0) -> bytes:
        """What comes back, to the end of the connection, when these bytes are sent."""
        with socket.create_connection(self.address, timeout=seconds) as connection:
            connection.sendall(content)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def outcomes(self) -> Mapping[str, int]:
        """How many requests ended how; those that are none are left out."""
        samples = next(iter(self.metrics.requests.collect())).samples
        found = {sample.labels["outcome"]: int(sample.value) for sample in samples if sample.name.endswith("_total")}
        return {name: count for name, count in found.items() if count}

    def greedy(self, prompt: str, count: int) -> str:
        """What `generate` continues a prompt with."""
        rows = CachedRows(Decoder(self.model), 1)
        return TOKENIZER.decode(list(generate(rows, TOKENIZER.encode(prompt).tolist(), count, stop_token=256)))


def posted(body: bytes, *headers: str) -> bytes:
    """The bytes of a request for completions."""
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def until(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it comes to hold in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def serving(key: str | None = None, step_seconds: float = 0.0, **settings: Any) -> Iterator[Running]:
    """A server with these settings, until the block ends."""
    limits = ServingConfig(**{"port": 0, **settings})
    model = small_model()
    decoder: Any = SlowDecoder(Decoder(model), step_seconds) if step_seconds else Decoder(model)

    def load() -> ServedModel:
        torch.set_num_threads(1)
        batch = Batch(decoder, limits.max_batch, TOKENIZER.vocab_size, limits.fixed_width)
        return ServedModel(batch, TOKENIZER, torch.device("cpu"))

    metrics, pulse = ServingMetrics(CollectorRegistry()), Pulse()
    engine = Engine(load, limits.max_batch, limits.max_queue, metrics, pulse)
    pages = Pages(engine=engine, name=NAME, created=1, metrics=metrics, pulse=pulse, stall_seconds=60.0)
    server = Server(build_app(pages, limits, key), limits)
    listener = listen(limits.host, limits.port)
    thread = Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    engine.start()
    thread.start()
    try:
        assert until(lambda: server.started and engine.state == "ready")
        pool = httpx.Limits(keepalive_expiry=2.0)  # an idle connection ends on this side first
        with httpx.Client(trust_env=False, timeout=60, limits=pool) as http:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Running(url, server, engine, metrics, model, http)
    finally:
        server.drain(0.1)
        thread.join(30)
        engine.close(30)
        listener.close()
