"""The commands that put a model behind HTTP: parse, call."""

import os
from pathlib import Path
from typing import Any

import click
import structlog

from job.cli_options import config_at, model_options, weights_option
from job.errors import Interrupted
from job.infra.endings import write_termination
from job.infra.signals import StopSignal
from job.serving.settings import ServingConfig

log = structlog.get_logger(__name__)

_SECONDS = {
    "header_seconds": "For a request's headers.",
    "body_seconds": "For its body, from there on.",
    "request_seconds": "For its answer, from there on.",
    "write_seconds": "That a client may leave an answer unread.",
    "keep_alive_seconds": "Between two requests of a connection.",
}
_COUNTS = {
    "max_batch": "Continuations computed at a time.",
    "max_queue": "Continuations that may wait; more are refused with 503.",
    "max_choices": "Most n of a request.",
    "max_logprobs": "Most logprobs of a request.",
    "max_body_bytes": "Of a request.",
    "max_header_bytes": "Of a request.",
    "max_connections": "Open at a time.",
}


def _limits(command: Any) -> Any:
    """A flag for each limit, with its default."""
    for names, kind in ((_SECONDS, float), (_COUNTS, int)):
        for name, text in reversed(names.items()):
            default = ServingConfig.__dataclass_fields__[name].default
            flag = "--" + name.replace("_", "-")
            command = click.option(flag, type=kind, default=default, show_default=True, help=text)(command)
    return command


@click.command()
@model_options
@weights_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is every one.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one; the log says which.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Unset: runtime.device.")
@click.option("--model-name", help="What clients call the model; unset: the last part of its address.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "auto"]),
    default="fp32",
    show_default=True,
    help="Of weights: fp32 is the model itself, bf16 is faster where the device has it, auto the faster one.",
)
@click.option("--fixed-width", is_flag=True, help="Answers that company does not change even by rounding; slower.")
@_limits
def serve(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    which: str,
    *,
    weights: str | None,
    device: str | None,
    **options: Any,
) -> None:
    """Answer completions over HTTP as OpenAI's API does, with the model of a run or with GPT-2's.

    /v1/completions, /v1/models, /healthz, /readyz, /metrics, /openapi.json. GPT_JOB_API_KEY, when set, is what clients
    must show. SIGTERM finishes what was begun within runtime.grace_seconds.

    \b
    gpt-job serve --weights gpt2:124M
    gpt-job serve --run runs/quickstart-1a2b3c4d --checkpoint best --port 8080
    """
    chosen = (f"runtime.device={device}",) if device else ()
    config = config_at(run_uri, preset, path, (*overrides, *chosen))
    serving = ServingConfig(**options)
    stop = StopSignal(config.runtime.grace_seconds).install()
    stop.on_leave = _left_in_haste
    from job.serve import serve as run  # noqa: PLC0415 - torch loads only now

    try:
        reason = run(config, which, weights, serving, stop)
    finally:
        stop.disarm()
    write_termination(0, reason, None, None, None, os.environ)
    log.info("ended", code=0, reason=reason)


def _left_in_haste(reason: str) -> None:
    """The watchdog ends the process: say so where it is looked for."""
    said = f"Interrupted: {reason}; what was begun is cut off"
    write_termination(Interrupted.exit_code, said, None, None, None, os.environ)
    log.error("ended", code=Interrupted.exit_code, reason=said)
