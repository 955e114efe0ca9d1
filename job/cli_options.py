"""Flags that several commands take, what they mean, and how a command prints JSON."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from job.config import Config
from job.config_file import ResolvedConfig, load_config, preset_names

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
weights_option = click.option(
    "--weights", metavar="URI", help="Weights instead of a run: gpt2:124M, a folder, https:// or s3://."
)
single_writer_option = click.option(
    "--single-writer-unsafe", is_flag=True, help="Use a store without conditional writes: nobody else writes."
)
processes_option = click.option(
    "--processes", metavar="N|gpu", help="Train with N processes, or one for each GPU of this machine."
)
_RUN = click.option("--run", "run_uri", help="Folder or s3:// address of a run; unset: the config's own.")


def config_options(command: Command) -> Command:
    """--preset, --config and --set."""
    for option in (
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."),
        click.option("--config", "path", type=click.Path(path_type=Path), help="TOML file. [env: GPT_JOB_CONFIG]"),
        click.option("--preset", help=f"One of: {', '.join(preset_names())}. [env: GPT_JOB_PRESET]"),
    ):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """--run beside those that say how to reach it."""
    return config_options(_RUN(command))


def model_options(command: Command) -> Command:
    """--run and --checkpoint."""
    which = click.option("--checkpoint", "which", default="last", show_default=True, metavar="best|last|STEP")
    return run_options(which(command))


def resolve(preset: str | None, path: Path | None, overrides: tuple[str, ...]) -> ResolvedConfig:
    """The config that the flags, a file and the environment make."""
    return load_config(preset, path, overrides, os.environ)


def config_at(run_uri: str | None, preset: str | None, path: Path | None, overrides: tuple[str, ...]) -> Config:
    """The config that says where a run is and how to reach it."""
    assignments = (*overrides, f"run_uri={run_uri}") if run_uri else overrides
    return resolve(preset, path, assignments).config


def print_json(value: Any) -> None:
    """Print one line of JSON; a number that JSON lacks, infinite or none, is null."""
    click.echo(json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None)))
