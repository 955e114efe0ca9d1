"""The commands that say what can be set and what is set: parse, print."""

from pathlib import Path

import click

from job.cli_options import config_options, json_option, print_json, resolve
from job.config import plain
from job.config_file import render_toml
from job.config_table import settings, table_lines


@click.group()
def config() -> None:
    """Look at the settings of a run."""


@config.command("show")
@config_options
@json_option
def show_config(preset: str | None, path: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """The resolved config as TOML, each value with where it came from.

    \b
    gpt-job config show --preset verdict --set training.epochs=3
    """
    resolved = resolve(preset, path, overrides)
    if as_json:
        print_json({"config": plain(resolved.config), "sources": dict(resolved.sources)})
        return
    click.echo(render_toml(resolved), nl=False)


@config.command("table")
@json_option
def table(as_json: bool) -> None:
    """Every setting as a Markdown table: what it takes, its default without a preset, and what it means.

    \b
    gpt-job config table --json
    """
    if as_json:
        print_json([setting.plain() for setting in settings()])
        return
    click.echo("\n".join(table_lines()))
