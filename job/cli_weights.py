"""The commands that bring weights in and out: parse, call, print."""

import os
from pathlib import Path
from typing import Any

import click

from job.cli_options import config_at, json_option, model_options, print_json, run_options, single_writer_option
from job.infra.signals import StopSignal
from job.infra.volumes import require_kept


@click.group()
def weights() -> None:
    """Weights in and out: released ones, and those of a run."""


@weights.command("import")
@run_options
@click.option("--weights", "uri", required=True, help="gpt2:124M (355M, 774M, 1558M), a folder, https:// or s3://.")
@single_writer_option
@json_option
def import_weights(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    uri: str,
    single_writer_unsafe: bool,
    as_json: bool,
) -> None:
    """Begin a run with weights that exist; train continues it, and its first training fixes the corpus.

    \b
    gpt-job weights import --weights gpt2:124M --run runs/mine
    gpt-job train --set run_uri=runs/mine --set data.corpus=my.txt
    """
    config = config_at(run_uri, preset, path, overrides)
    require_kept(config.run_uri, os.environ)
    stop = StopSignal(config.runtime.grace_seconds).install()
    from job.weights import import_weights as run  # noqa: PLC0415 - torch loads only now

    _print(run(config, uri, stop.advance, single_writer_unsafe), as_json)


@weights.command("export")
@model_options
@click.option("--to", required=True, help="Folder or s3:// address for the files.")
@json_option
def export_weights(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    which: str,
    to: str,
    as_json: bool,
) -> None:
    """Write a run's model as Hugging Face's transformers read it, with its tokenizer and a model card.

    \b
    gpt-job weights export --run runs/mine --checkpoint best --to exported
    """
    config = config_at(run_uri, preset, path, overrides)
    from job.weights import export_weights as run  # noqa: PLC0415 - torch loads only now

    _print(run(config, which, to), as_json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name:<12}{value:,}" if isinstance(value, int) else f"{name:<12}{value}")
