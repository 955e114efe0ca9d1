"""The command that tests a served model: parse, call, print."""

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import structlog

from job.cli_options import config_at, model_options, print_json, weights_option
from job.infra.endings import write_termination
from job.infra.progress import open_progress
from job.infra.signals import StopSignal

log = structlog.get_logger(__name__)

LIMIT = click.FloatRange(min=0)


def _numbers(kind: type) -> Any:
    """A callback for numbers with commas between."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> Any:
        try:
            return tuple(kind(part) for part in value.split(",")) if value else ()
        except ValueError as error:
            raise click.BadParameter(f"{value!r}: expected numbers with commas between, such as 1,8") from error

    return parse


@click.command("serve-test")
@model_options
@weights_option
@click.option("--url", help="Test a server that is there already. With --weights or --run, its answers against them.")
@click.option("--model", "name", help="Name of the model at --url; unset: the first that it lists.")
@click.option("--report-uri", default="serve-test", show_default=True, help="Folder or s3:// address of the report.")
@click.option("--prompts", "prompt_file", metavar="FILE", help="A prompt a line (.jsonl: a JSON string); - for stdin.")
@click.option("--concurrency", "concurrencies", callback=_numbers(int), help="Requests at a time. [1,8]")
@click.option("--rate", "rates", callback=_numbers(float), help="Requests a second: 2,4.5.")
@click.option("--sweep", type=click.IntRange(min=2), help="So many rates, up to what the server can do.")
@click.option("--requests", type=click.IntRange(min=1), default=32, show_default=True, help="Of each load.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of each answer.")
@click.option("--longest-prompt", type=click.IntRange(min=1), default=256, show_default=True, help="In tokens.")
@click.option("--checked", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts for the checks.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of prompts and arrivals.")
@click.option("--ready-seconds", type=float, default=600.0, show_default=True, help="For the server to be ready.")
@click.option("--max-ttft-p99", type=LIMIT, metavar="MS", help="Of every load, in milliseconds; so for the next three.")
@click.option("--max-tpot-p99", type=LIMIT, metavar="MS")
@click.option("--max-itl-p99", type=LIMIT, metavar="MS")
@click.option("--max-e2el-p99", type=LIMIT, metavar="MS")
@click.option("--min-tokens-per-second", type=LIMIT, help="New tokens, of the best load.")
@click.option("--min-requests-per-second", type=LIMIT, help="Of the best load.")
@click.option("--max-failures", type=click.IntRange(min=0), default=0, show_default=True, help="Over all loads.")
@click.option("--max-ready-seconds", type=LIMIT, help="From the start until it is ready.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "auto"]), default="fp32", show_default=True)
@click.argument("serve_flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def serve_test(
    session: Any,
    /,
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    report_uri: str,
    prompt_file: str | None,
    *,
    serve_flags: tuple[str, ...],
    **flags: Any,
) -> None:
    """Serve a model in a process of its own, check its answers, put load on it, and decide.

    Ends with 0 when every check and threshold passed, and with 1 when one did not; either way the report says what was
    found: serve-test.json, and serve-test.html for people. What follows -- is for serve.

    \b
    gpt-job serve-test --weights gpt2:124M --max-ttft-p99 500 --min-tokens-per-second 100
    gpt-job serve-test --run runs/mine --concurrency 1,8,32 --rate 2 -- --max-batch 16 --max-queue 32
    gpt-job serve-test --url http://127.0.0.1:8000 --sweep 5 --report-uri s3://bucket/tests
    """
    config = config_at(run_uri, preset, path, overrides)
    which, weights, url, dtype = (flags.pop(name) for name in ("which", "weights", "url", "dtype"))
    stop = StopSignal(config.runtime.grace_seconds).install()
    from job.generate import read_prompts  # noqa: PLC0415 - torch loads only now
    from job.serve_test import ServeTestFailed, Target  # noqa: PLC0415
    from job.serve_test import serve_test as run  # noqa: PLC0415
    from job.serving.testing.outcome import summary  # noqa: PLC0415
    from job.serving.testing.plan import Plan, Thresholds  # noqa: PLC0415
    from job.serving.testing.text import report_lines  # noqa: PLC0415

    model = ["--weights", weights] if weights else ["--run", config.run_uri, "--checkpoint", which]
    target = Target(
        which=which,
        weights=weights,
        known=bool(not url or weights or run_uri),
        url=url,
        name=flags.pop("name"),
        arguments=[] if url else [*model, *_settings(preset, path, overrides), "--dtype", dtype, *serve_flags],
        dtype=dtype,
    )
    plan = Plan(
        thresholds=Thresholds(**{name: flags.pop(name) for name in (spec.name for spec in fields(Thresholds))}),
        **_given(flags),
    )
    prompts = read_prompts([], prompt_file, sys.stdin) if prompt_file else []
    progress = open_progress(session.log_format)
    try:
        facts = run(config, target, plan, prompts, report_uri, stop, progress)
    finally:
        stop.disarm()
        progress.close()
    if sys.stderr.isatty():
        click.echo("\n".join(report_lines(facts)), err=True)
    print_json(summary(facts, report_uri))
    if facts["status"] != "passed":
        raise ServeTestFailed("; ".join(facts["reasons"]))
    write_termination(0, "serve-test passed", None, None, None, os.environ)
    log.info("ended", code=0, reason="serve-test passed")


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Without those that are left to the plan; with rates alone, no other loads."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if "sweep" in given and {"concurrencies", "rates"} & given.keys():
        raise click.UsageError("--sweep makes loads of its own: no --concurrency or --rate with it")
    return {"concurrencies": (), **given} if "rates" in given else given


def _settings(preset: str | None, path: Path | None, overrides: tuple[str, ...]) -> list[str]:
    """The flags that make the same config again."""
    named = {"--preset": preset, "--config": path and str(path)}
    found = [word for flag, value in named.items() if value for word in (flag, value)]
    return found + [word for assignment in overrides for word in ("--set", assignment)]
