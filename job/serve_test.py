"""The `serve-test` command: a model served, its answers checked, load put on it, and a report that decides."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from job.config import Config
from job.data.weight_files import released_size
from job.errors import JobError
from job.infra.metrics import push_registry
from job.infra.progress import Progress
from job.infra.signals import StopSignal
from job.infra.storage import open_store
from job.model.projection import fastest_dtype
from job.serving.testing.answers import Check
from job.serving.testing.checking import check_answers
from job.serving.testing.client import ServeClient
from job.serving.testing.golden import GOLDEN
from job.serving.testing.load import MOST_AT_ONCE
from job.serving.testing.measuring import measure
from job.serving.testing.outcome import LOG_KEY, Outcome
from job.serving.testing.outcome_metrics import outcome_registry
from job.serving.testing.plan import Plan
from job.serving.testing.process import ServerProcess, wait_until_ready
from job.serving.testing.prompts import sample
from job.serving.testing.reference import Reference, free_memory, with_model, without_model
from job.training.pretrained import load_for_use

log = structlog.get_logger(__name__)

API_KEY = "GPT_JOB_API_KEY"
ENDS = "the server stays up, and ends when it is asked"


class ServeTestFailed(JobError):
    """The served model answers wrong, too slowly or not at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is tested.

    Args:
        which: Checkpoint of the config's run.
        weights: Weights instead of the run.
        known: Whether the run or weights say what the server should answer.
        url: A server that is there already; nothing is started then.
        name: Of the model on that server; unset: the first that it lists.
        arguments: Of `serve`, beside host and port.
        dtype: Of the server's weights, and so of the model that it is held to.
    """

    which: str = "last"
    weights: str | None = None
    known: bool = True
    url: str | None = None
    name: str | None = None
    arguments: Sequence[str] = ()
    dtype: str = "fp32"


def serve_test(
    config: Config,
    target: Target,
    plan: Plan,
    prompts: Sequence[str],
    report_uri: str,
    stop: StopSignal,
    progress: Progress,
) -> dict[str, Any]:
    """Test the target and leave the report at `report_uri`; the report.

    Raises:
        JobError: There is nothing to test: no model, or a server that does not start (then with its exit code and
            last lines). What comes of a test is in the report, and not raised.
    """
    named = target.weights or (config.run_uri if target.known else None)
    outcome = Outcome(
        open_store(report_uri, config.storage),
        {"from": named, "checkpoint": None if target.weights else target.which, "dtype": target.dtype},
        {"url": target.url, "arguments": list(target.arguments)},
    )
    try:
        progress.phase("loading")
        reference = _reference(config, target, plan, prompts, stop) if target.known else None
        progress.phase("starting")
        with _server(target, plan, stop, outcome) as (server, client):
            card = _card(client, target.name)
            reference = reference or _prompts(plan, prompts, card, client)
            outcome.facts["model"] |= {"id": card["id"], "parameters": reference.parameters}
            _test(outcome, target, card["id"], reference, client, stop, progress)
            if server:
                outcome.checks.append(_end(server, outcome))
        outcome.conclude(reference.plan)
    except JobError as error:
        outcome.break_off(error)
        raise
    if url := config.observe.pushgateway_url:
        push_registry(outcome_registry(outcome.facts), url, {"job": "gpt-serve-test"})
    return outcome.facts


def _reference(config: Config, target: Target, plan: Plan, prompts: Sequence[str], stop: StopSignal) -> Reference:
    """What to ask, and what the model answers; the model is let go again."""
    loaded = load_for_use(config, target.which, target.weights)
    named = {"fp32": torch.float32, "bf16": torch.bfloat16}
    dtype = named.get(target.dtype) or fastest_dtype(loaded.device)
    return with_model(plan, prompts, loaded.model, loaded.tokenizer, dtype, stop.check)


@contextmanager
def _server(
    target: Target, plan: Plan, stop: StopSignal, outcome: Outcome
) -> Iterator[tuple[ServerProcess | None, ServeClient]]:
    """A server of the target's own, or the one that is there, when it is ready; and a client of it."""
    key, facts = os.environ.get(API_KEY), outcome.facts["server"]
    if target.url:
        client = ServeClient(target.url, key, MOST_AT_ONCE)
        wait_until_ready(client, None, plan.ready_seconds, stop.check)
        yield None, client
        return
    free_memory()
    with tempfile.TemporaryDirectory(prefix="serve-test-") as folder:
        said, started = Path(folder) / LOG_KEY, time.monotonic()
        with ServerProcess(target.arguments, said) as server:
            stop.on_request = server.kill  # nobody waits for its answers any more
            try:
                facts["url"] = server.wait_for_url(plan.ready_seconds, stop.check)
                client = ServeClient(facts["url"], key, MOST_AT_ONCE)
                wait_until_ready(client, server, plan.ready_seconds, stop.check)
                facts["ready_seconds"] = round(time.monotonic() - started, 3)
                yield server, client
            finally:
                server.kill()
                outcome.keep_log(said.read_bytes())


def _card(client: ServeClient, name: str | None) -> dict[str, Any]:
    """What the server says of the model of that name, or of the first. JobError when it has none."""
    listed: Any = client.request("GET", "/v1/models").json().get("data")
    try:
        return next({**card, "id": str(card["id"])} for card in listed if name in (None, card["id"]))
    except (LookupError, TypeError, StopIteration) as error:
        raise JobError(f"{client.url}/v1/models: expected {name or 'a model'}, got {listed!r:.200}") from error


def _prompts(plan: Plan, given: Sequence[str], card: Mapping[str, Any], client: ServeClient) -> Reference:
    """What to ask a model of which only the server knows anything."""
    context_length = card.get("max_model_len")
    text = sample()[: max(1, (context_length or 1024) - 1)]  # fits, as a token has at least a character
    used = client.complete(model=card["id"], prompt=text, max_tokens=1).get("usage")
    tokens = used.get("prompt_tokens") if isinstance(used, dict) else None
    if not isinstance(tokens, int) or tokens < 1:
        raise JobError(f"{client.url}: an answer's usage should say prompt_tokens, got {used!r:.200}")
    return without_model(plan, given, context_length, len(text) / tokens)


def _test(
    outcome: Outcome,
    target: Target,
    model: str,
    reference: Reference,
    client: ServeClient,
    stop: StopSignal,
    progress: Progress,
) -> None:
    """Check the answers, and measure."""
    golden = GOLDEN.get((target.weights and released_size(target.weights)) or "", ())
    with_key = bool(os.environ.get(API_KEY))
    outcome.checks += check_answers(client, model, reference, golden, with_key, stop.check, progress)
    for load in measure(client, model, reference.plan, reference.prompts, stop.check, progress):
        outcome.loads.append(load)


def _end(server: ServerProcess, outcome: Outcome) -> Check:
    """Ask the server to end; 0 is the only right way."""
    outcome.facts["server"]["peak_memory_bytes"] = server.peak_memory()
    alive = server.alive
    code = server.stop()
    outcome.facts["server"]["exit_code"] = code
    said = "" if code == 0 else f"; it said last:\n{server.tail()}"
    return Check(ENDS, alive and code == 0, f"ended with {code}{'' if alive else ', by itself'}{said}")
