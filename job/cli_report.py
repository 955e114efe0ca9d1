"""The command that draws a run: parse, call, print."""

from pathlib import Path

import click

from job.cli_options import config_at, json_option, print_json, run_options


@click.command()
@run_options
@click.option("--compare", multiple=True, metavar="RUN", help="Show this run beside it; more runs may follow.")
@click.option("--tensorboard", is_flag=True, help="Write event files for TensorBoard too.")
@click.option("--to", metavar="URI", help="Folder or s3:// address for the files; unset: report/ in the run.")
@click.argument("more", nargs=-1, metavar="[RUN ...]")
@json_option
def report(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    compare: tuple[str, ...],
    tensorboard: bool,
    *,
    to: str | None,
    more: tuple[str, ...],
    as_json: bool,
) -> None:
    """Draw a run's page and pictures from its event log alone: while it trains, after it, after a crash.

    --run also takes an events.jsonl that was brought from elsewhere.

    \b
    gpt-job report --run runs/quickstart-1a2b3c4d
    gpt-job report --compare runs/one runs/two s3://bucket/three
    """
    if more and not compare:
        raise click.UsageError(f"{more[0]}: say --run {more[0]}, or --compare RUN RUN ... for several")
    runs = (*compare, *more)
    if run_uri is None and runs:
        run_uri, *rest = runs
        runs = tuple(rest)
    config = config_at(run_uri, preset, path, overrides)
    from job.report.command import report as run  # noqa: PLC0415 - numpy and matplotlib load only now

    facts = run(config.run_uri, runs, config.storage, to, tensorboard=tensorboard)
    if as_json:
        print_json(facts)
        return
    for note in facts["notes"]:
        click.echo(f"note: {note}", err=True)
    click.echo(facts["report"])
