"""Loads one after the other on a served model, each after a warm-up, and the figures of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import structlog

from job.infra.progress import Progress
from job.serving.testing.client import ServeClient
from job.serving.testing.figures import Timeline, figures, quantiles
from job.serving.testing.load import Load, run_load
from job.serving.testing.plan import Plan

log = structlog.get_logger(__name__)

WARM_UP = 2  # requests before each load that count nowhere
DRAWN = ("ttft", "itl")  # latencies whose distribution the report draws
REASONS = 3  # kinds of failures that are told


def measure(
    client: ServeClient,
    model: str,
    plan: Plan,
    prompts: Sequence[str],
    advance: Callable[[], None],
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """The figures of each load, as it is done.

    Args:
        advance: Called often; may raise to stop.
    """
    done: list[dict[str, Any]] = []
    for load in plan.loads():
        done.append(_measure(client, model, load, plan, prompts, advance, progress))
        yield done[-1]
    if plan.sweep is None:
        return
    slowest, fastest = (one["request_throughput"] for one in done)
    if not slowest or not fastest:
        log.warning("no sweep: a server that answers nothing has no rate")
        return
    for load in plan.sweep_loads(slowest, fastest):
        yield _measure(client, model, load, plan, prompts, advance, progress)


def _measure(
    client: ServeClient,
    model: str,
    load: Load,
    plan: Plan,
    prompts: Sequence[str],
    advance: Callable[[], None],
    progress: Progress,
) -> dict[str, Any]:
    bodies = [
        {"model": model, "prompt": prompt, "max_tokens": plan.max_tokens, "temperature": 0, "ignore_eos": True}
        for prompt in prompts
    ]
    for body in bodies[:WARM_UP]:
        advance()
        client.timed(0.0, body)
    progress.phase(load.name, load.requests, "requests")

    def send(due: float, body: Mapping[str, Any]) -> Timeline:
        timeline = client.timed(due, body)
        progress.advance(1)
        return timeline

    timelines = run_load(load, bodies, plan.seed, send, advance)
    found = {
        "name": load.name,
        "max_concurrency": load.concurrency,
        "request_rate": load.request_rate,
        "num_prompts": load.requests,
        **figures(timelines),
        "errors": _reasons(timelines),
        **{f"quantiles_{name}_ms": quantiles(name, timelines) for name in DRAWN},
    }
    facts = {name: found[name] for name in ("name", "completed", "failed")}
    log.info("load", **facts, tokens_per_second=round(found["output_throughput"] or 0.0, 2))
    return found


def _reasons(timelines: Sequence[Timeline]) -> list[str]:
    """Why requests failed, the first of each few kinds."""
    return list(dict.fromkeys(one.error for one in timelines if one.error))[:REASONS]
