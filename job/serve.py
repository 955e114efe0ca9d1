"""The `serve` command: a model behind HTTP, until it is told to stop."""

import os
import re
import time
from collections.abc import Mapping
from functools import partial

import structlog
import torch
from prometheus_client import CollectorRegistry

from job.config import Config
from job.data.cache import Advance
from job.errors import ConfigError, Interrupted
from job.infra.health import Pulse
from job.infra.healthcheck import forget_address, tell_address
from job.infra.signals import StopSignal
from job.model.batching import Batch
from job.model.decoder import Decoder
from job.model.projection import fastest_dtype
from job.serving.app import Pages, build_app
from job.serving.engine import Engine, ServedModel
from job.serving.metrics import ServingMetrics
from job.serving.server import Server, listen
from job.serving.settings import ServingConfig
from job.training.loading import load_run
from job.training.pretrained import load_weights

API_KEY = "GPT_JOB_API_KEY"
LOOPBACK = re.compile(r"127\.|::1$|localhost$")

log = structlog.get_logger(__name__)


def serve(config: Config, which: str, weights: str | None, serving: ServingConfig, stop: StopSignal) -> str:
    """Answer requests until a stop signal, and finish those that were begun; what asked to stop.

    Args:
        config: Where the run is, how to reach it and on which device to put the model.
        which: The run's checkpoint.
        weights: Weights instead of a run.
        stop: Installed; its grace is the time to finish in.

    Raises:
        ConfigError: The address cannot be had, or the key is empty.
        NotFoundError, DataError, AccessError, StorageError: There is no such model, or it cannot be loaded.
        Interrupted: The grace was too short for what was begun.
    """
    key = _key(os.environ, serving.host)
    started, name = time.monotonic(), serving.model_name or _name(weights or config.run_uri)
    metrics, pulse = ServingMetrics(CollectorRegistry()), Pulse()
    listener = listen(serving.host, serving.port)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def advance(*_: int) -> None:
        pulse.beat()
        stop.check()

    engine = Engine(
        partial(_load, config, which, weights, serving, advance),
        serving.max_batch,
        serving.max_queue,
        metrics,
        pulse,
    )
    pages = Pages(
        engine=engine,
        name=name,
        created=int(time.time()),
        metrics=metrics,
        pulse=pulse,
        stall_seconds=config.observe.stall_seconds,
    )
    server = Server(build_app(pages, serving, key), serving)

    def changed() -> None:
        if engine.error is not None:
            server.drain(1)
        elif engine.state == "ready":
            log.info("serving", url=url, model=name, seconds=round(time.monotonic() - started, 3))

    def asked_to_stop(reason: str) -> None:
        engine.drain()
        log.warning(
            "finishing what was begun; once more leaves at once", reason=reason, continuations=engine.outstanding
        )
        server.drain(max(0.0, 0.9 * stop.remaining() - 0.5))  # the rest is for saying how it ended

    engine.on_change, stop.on_request = changed, asked_to_stop
    log.info("listening", url=url, model=name)
    engine.start()
    tell_address(host, port)
    try:
        with listener:
            if not stop.requested:
                server.run([listener])
    finally:
        forget_address(host, port)
    cut = metrics.count("interrupted")
    engine.close(seconds=5.0)
    if engine.error is not None and not (stop.requested and isinstance(engine.error, Interrupted)):
        raise engine.error
    if cut:
        raise Interrupted(f"{stop.reason}; the grace was too short, {cut} requests were cut off")
    return stop.reason


def _load(config: Config, which: str, weights: str | None, serving: ServingConfig, advance: Advance) -> ServedModel:
    """The model and the room for its answers; in the engine's thread."""
    loaded = load_weights(config, weights, advance) if weights else load_run(config, which)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(serving.dtype) or fastest_dtype(loaded.device)
    decoder = Decoder(loaded.model, dtype)
    batch = Batch(decoder, serving.max_batch, loaded.tokenizer.vocab_size, serving.fixed_width)
    log.info(
        "model ready",
        dtype=str(dtype).removeprefix("torch."),
        device=str(loaded.device),
        context=decoder.context_length,
        slots=serving.max_batch,
        cache_bytes=batch.bytes,
    )
    return ServedModel(batch, loaded.tokenizer, loaded.device)


def _key(environ: Mapping[str, str], host: str) -> str | None:
    """What clients must show. Raises ConfigError when it is empty: that would be nobody's intention."""
    key = environ.get(API_KEY)
    if key is not None and not key.strip():
        raise ConfigError(f"{API_KEY} is set and empty; give it a value, or unset it to serve without a key")
    if key is None and not LOOPBACK.match(host):
        log.warning(f"anybody who reaches this address can use the model; {API_KEY} sets a key", host=host)
    return key


def _name(uri: str) -> str:
    """What clients call the model: a released one's name, or the end of an address."""
    return uri.rstrip("/").rpartition("/")[2] or uri
