"""The command that climbs Baby GPT's road: parse, call, print."""

import os
from pathlib import Path
from typing import Any

import click

from job.cli_options import config_options, json_option, print_json, resolve
from job.infra.signals import StopSignal


@click.command()
@config_options
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Models of each rung.")
@click.option("--processes", type=click.IntRange(min=1), help="Models trained at a time; unset: one a core.")
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Unset: runs/ladder-<settings>.")
@json_option
@click.pass_obj
def ladder(
    session: Any,
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    seeds: int,
    processes: int | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """From a bigram to a GPT, one part at a time: what each is for, and what it does to the loss.

    Every rung is trained with the config's optimizer, batches and steps (baby-cpu's, if nothing else is named). The
    last is scaled up: twice the layers and heads, four times the width and the context, 15 of 100 steps; on a GPU
    it is Baby GPT's GPU column. What was trained stays in the folder: a ladder that was stopped goes on.

    \b
    gpt-job ladder
    gpt-job ladder --set data.corpus=my.txt --set training.max_steps=2000 --seeds 1
    """
    named = preset or path or os.environ.get("GPT_JOB_PRESET") or os.environ.get("GPT_JOB_CONFIG")
    config = resolve(preset if named else "baby-cpu", path, overrides).config
    stop = StopSignal(config.runtime.grace_seconds).install()
    from job.infra.progress import open_progress  # noqa: PLC0415 - rich is for those who wait
    from job.ladder import ladder as run  # noqa: PLC0415 - torch loads only now

    progress = open_progress(session.log_format)
    try:
        summary, where = run(config, seeds, processes, folder, stop.check, progress)
    finally:
        progress.close()
    if as_json:
        print_json({**summary.plain(), "folder": str(where)})
        return
    for line in summary.lines():
        click.echo(line)
    click.echo(f"\nthe page: {where / 'ladder.html'}")
