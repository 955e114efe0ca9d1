"""The commands that look after a run's checkpoints: parse, call, print. None of them loads torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from job.cli_options import config_at, json_option, print_json, run_options, single_writer_option
from job.errors import DataError, JobError


@click.group()
def checkpoints() -> None:
    """Look after the checkpoints of a run."""


def _print(report: Any, lines: Iterable[str], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for line in lines:
        click.echo(line)


@checkpoints.command("list")
@run_options
@json_option
def list_checkpoints(
    preset: str | None, path: Path | None, overrides: tuple[str, ...], run_uri: str | None, as_json: bool
) -> None:
    """Checkpoints that can be continued from, oldest first.

    \b
    gpt-job checkpoints list --run s3://bucket/run
    """
    config = config_at(run_uri, preset, path, overrides)
    from job.checkpoints.listing import list_checkpoints as run  # noqa: PLC0415 - boto3 loads only now
    from job.checkpoints.text import list_lines  # noqa: PLC0415

    rows = run(config)
    _print(rows, list_lines(rows), as_json)


@checkpoints.command()
@run_options
@click.option("--checkpoint", "which", metavar="best|last|STEP", help="Read back only this one; unset: all that stand.")
@json_option
def verify(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    which: str | None,
    as_json: bool,
) -> None:
    """Read a run back and compare every hash: its log, its checkpoints and their events.

    Ends with 65 when something is damaged, after all of it has been printed: what, where, expected, got. Writes
    nothing and disturbs nobody, so it may run beside a job that trains.

    \b
    gpt-job checkpoints verify --run s3://bucket/run
    gpt-job checkpoints verify --run runs/quickstart-1a2b3c4d --checkpoint last
    """
    config = config_at(run_uri, preset, path, overrides)
    from job.checkpoints.text import damages, verify_lines  # noqa: PLC0415 - boto3 loads only now
    from job.checkpoints.verify import verify_run  # noqa: PLC0415

    report = verify_run(config, which)
    _print(report, verify_lines(report), as_json)
    if found := damages(report):
        raise DataError(f"{config.run_uri} is damaged in {len(found)} places, the first is {found[0]}")


@checkpoints.command()
@run_options
@click.option("--keep-last", type=click.IntRange(min=2), help="Newest ones to keep; unset: as the run's settings say.")
@click.option("--keep-every", type=click.IntRange(min=0), help="Keep each whose step is a multiple; 0: none for that.")
@click.option("--keep-best/--no-keep-best", default=None, help="Keep the one with the lowest validation loss.")
@click.option("--dry-run", is_flag=True, help="Only say what would go; writes nothing.")
@single_writer_option
@json_option
def prune(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    dry_run: bool,
    single_writer_unsafe: bool,
    as_json: bool,
    **keep: Any,
) -> None:
    """Remove the checkpoints that need not be kept, once two of the others have been read back in full.

    Without --dry-run this takes the run over, as a new start of the job would: a job that is training on it loses at
    its next save and ends with 73. Start that again afterwards; it continues from its newest checkpoint.

    \b
    gpt-job checkpoints prune --run s3://bucket/run --keep-last 2 --dry-run
    """
    config = config_at(run_uri, preset, path, overrides)
    from job.checkpoints.prune import Wanted, prune_run  # noqa: PLC0415 - boto3 loads only now
    from job.checkpoints.text import prune_lines  # noqa: PLC0415

    report = prune_run(config, Wanted(**keep), dry_run, single_writer_unsafe)
    _print(report, prune_lines(report), as_json)


@checkpoints.command()
@run_options
@click.option("--with-run", help="The run of the second one; unset: the same run.")
@click.option("--exit-code", is_flag=True, help="End with 1 when they differ, as git diff does.")
@click.argument("first", required=False, metavar="[FIRST]")
@click.argument("second", required=False, metavar="[SECOND]")
@json_option
def diff(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    *,
    with_run: str | None,
    exit_code: bool,
    first: str | None,
    second: str | None,
    as_json: bool,
) -> None:
    """Which tensors and fields differ between two checkpoints of a run, or of two runs, and since which step.

    FIRST and SECOND are best, last or a step. In one run, SECOND is last unless it is named; in two runs, FIRST is
    last and SECOND the same as FIRST. Says EQUAL when training goes on from both alike: the same tensors bit for bit,
    tokenizer, state and chain of steps.

    \b
    gpt-job checkpoints diff --run runs/a 500 1000
    gpt-job checkpoints diff --run runs/a --with-run runs/b
    gpt-job checkpoints diff --run runs/a --with-run runs/b best 2000 --json
    """
    if first is None and with_run is None:
        raise click.UsageError(
            "name a checkpoint (best, last or a step) to compare with the last, or another --with-run"
        )
    one = config_at(run_uri, preset, path, overrides)
    two = config_at(with_run or run_uri, preset, path, overrides)
    from job.checkpoints.diff import diff_checkpoints  # noqa: PLC0415 - numpy loads only now
    from job.checkpoints.text import diff_lines  # noqa: PLC0415

    which = first or "last"
    report = diff_checkpoints(one, which, two, second or (which if with_run else "last"))
    _print(report, diff_lines(report), as_json)
    if exit_code and not report["equal"]:
        raise JobError("the checkpoints differ")
