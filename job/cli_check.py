"""The command that looks before anything is billed: parse, ask, print, end with the code of the worst finding."""

import shutil
import sys
import textwrap
from pathlib import Path

import click

from job.checks.finding import Finding, exit_code
from job.cli_options import config_options, json_option, print_json, processes_option, resolve, single_writer_option
from job.config_file import ResolvedConfig
from job.errors import ConfigError, JobError

_KINDS: list[type[JobError]] = [JobError, *JobError.__subclasses__()]
_CLASSES = {kind.exit_code: kind for kind in _KINDS}
_COLUMNS, _LEAST = 32, 40  # characters: before what is said, and for it however narrow the terminal is
_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command()
@config_options
@single_writer_option
@processes_option
@json_option
def check(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    single_writer_unsafe: bool,
    processes: str | None,
    as_json: bool,
) -> None:
    """Look, in seconds and without a download, whether the run that the config describes can succeed here.

    Settings, driver, shared memory, corpus, tokenizer, device, gradients, memory, disk, the time of a step and of the
    whole run, and every right on storage. All that is wrong is said, each with what to do; the exit code is that of
    the worst finding, as train would end with it.

    \b
    gpt-job check --preset gpt2-124m --set run_uri=s3://bucket/run
    gpt-job check --preset gpt2-1558m --processes 8 --set runtime.parallel=fsdp
    gpt-job check --config run.toml --json
    """
    from job.check import check as run  # noqa: PLC0415 - numpy loads only now, and torch after the first answers

    found: list[Finding] = []
    for finding in run(_resolved(preset, path, overrides), single_writer_unsafe, processes):
        found.append(finding)
        if not as_json:
            _show(finding)
    code = exit_code(found)
    if as_json:
        levels = {finding.level for finding in found}
        worst = next((level for level in ("error", "warning") if level in levels), "ok")
        print_json({"status": worst, "code": code, "findings": [finding.plain() for finding in found]})
    if code:
        errors_found = [f"{finding.about}: {finding.said}" for finding in found if finding.level == "error"]
        raise _CLASSES[code]("; ".join(errors_found))


def _resolved(preset: str | None, path: Path | None, overrides: tuple[str, ...]) -> ResolvedConfig | ConfigError:
    try:
        return resolve(preset, path, overrides)
    except ConfigError as error:
        return error


def _show(finding: Finding) -> None:
    """A finding in columns; on a terminal lines are broken where its words end."""
    click.secho(f"{finding.level:<8}", fg=_STYLES[finding.level], nl=False)
    first, *more = _lines(finding.said) or [""]
    click.echo(f"{finding.about:<23} {first}")
    for line in more:
        click.echo(f"{'':<32}{line}")
    for at, line in enumerate(_lines(finding.advice, 3)):
        click.echo(f"{'':<32}{'   ' if at else '-> '}{line}")


def _lines(text: str, less: int = 0) -> list[str]:
    """The text in lines that fit beside the first columns; whole where nobody looks."""
    width = shutil.get_terminal_size().columns - _COLUMNS - less if sys.stdout.isatty() else sys.maxsize
    return textwrap.wrap(text, max(_LEAST, width), break_long_words=False, break_on_hyphens=False)
