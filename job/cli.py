"""Flags and files -> Config -> one call -> exit code. torch loads only when there is work for it."""

import errno
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
import structlog

from job.cli_bench import bench
from job.cli_check import check
from job.cli_checkpoints import checkpoints
from job.cli_config import config
from job.cli_ladder import ladder
from job.cli_options import (
    config_at,
    config_options,
    json_option,
    model_options,
    print_json,
    processes_option,
    resolve,
    single_writer_option,
    weights_option,
)
from job.cli_report import report
from job.cli_serve import serve
from job.cli_serve_test import serve_test
from job.cli_weights import weights as weights_group
from job.config import RuntimeConfig
from job.errors import Interrupted, JobError
from job.infra.endings import write_termination
from job.infra.garbage import leave_garbage_at_exit, only_importing
from job.infra.logs import LogFormat, configure_logging
from job.infra.place import ALONE, Crew, Place, crew_of, place_of
from job.infra.relay import Relay
from job.infra.signals import StopSignal
from job.infra.status import RunStatus
from job.infra.summary import show_summary
from job.infra.volumes import require_kept

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Session:
    """What one invocation knows: how to log, and how far its run is."""

    log_format: LogFormat = "auto"
    status: RunStatus = field(default_factory=RunStatus)
    place: Place = ALONE  # among the processes that train together
    silent: bool = False  # another process says how all of them end


class JobGroup(click.Group):
    """Ends the process with the exit code of the error that a command raised, and says why in every place."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            configure_logging()
            self._refuse(ctx, error)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            self._refuse(ctx, error)
        except JobError as error:
            self._end(ctx, error.exit_code, f"{type(error).__name__}: {error}")
        except MemoryError as error:
            self._end(ctx, 1, f"out of memory: {error}")
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            is_torchs = type(error).__name__ == "OutOfMemoryError"  # torch is not imported here
            if is_torchs or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
                self._end(ctx, 1, f"out of memory: {error}")
            log.exception("bug")
            self._end(ctx, 1, f"bug: {type(error).__name__}: {error}")

    def _refuse(self, ctx: click.Context, error: click.UsageError) -> NoReturn:
        """Say what click says, and end; a group that was asked for nothing shows its help, which needs no more."""
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
            raise error
        error.show()
        self._end(ctx, error.exit_code, f"usage: {error.format_message()}")

    def _end(self, ctx: click.Context, code: int, reason: str) -> NoReturn:
        session = ctx.find_object(Session) or Session()
        if not session.silent:
            _write_ending(session.status, code, reason)
            log.error("ended", code=code, reason=reason)
        ctx.exit(code)


def _write_ending(status: RunStatus, code: int, reason: str) -> None:
    write_termination(code, reason, status.step, status.val_loss, status.checkpoint, os.environ)


SPLITS = ["train", "validation", "test"]


@click.group(cls=JobGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--log-format", type=click.Choice(["auto", "console", "json"]), default="auto", show_default=True)
@click.option("--verbose", "-v", is_flag=True, help="Log every logged step and what storage does.")
@click.version_option(package_name="gpt-pretrain-job")
@click.pass_context
def main(ctx: click.Context, log_format: LogFormat, verbose: bool) -> None:
    """Pretrain GPT language models: a batch job that continues, bit for bit, where it was stopped.

    \b
    gpt-job train                          a small GPT on the text that Python carries
    gpt-job generate --prompt "The "       what it learned
    """
    configure_logging(log_format, "debug" if verbose else "info")
    leave_garbage_at_exit()
    ctx.obj = Session(log_format)


@main.command()
@config_options
@click.option("--restart-from-scratch", is_flag=True, help="Leave the run's checkpoints behind and begin at step 0.")
@single_writer_option
@processes_option
@click.option("--ephemeral", is_flag=True, help="In the image: keep the run in the container, to be gone with it.")
@click.pass_context
def train(
    ctx: click.Context,
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    restart_from_scratch: bool,
    single_writer_unsafe: bool,
    processes: str | None,
    ephemeral: bool,
) -> None:
    """Train, or continue, the run that the config describes.

    \b
    gpt-job train --preset baby-cpu --set data.corpus=my.txt
    gpt-job train --config run.toml --set run_uri=s3://bucket/run
    gpt-job train --preset gpt2-124m --processes gpu
    """
    session: Session = ctx.obj
    if crew := crew_of(processes, os.environ):
        _launch(ctx, crew, resolve(preset, path, overrides).config.runtime)
        return
    place, status = place_of(os.environ), session.status
    session.place = place
    with _summary(session, place, _flags(preset, path, overrides, processes)):
        resolved = resolve(preset, path, overrides)
        if not ephemeral:
            require_kept(resolved.config.run_uri, os.environ)
        stop = StopSignal(resolved.config.runtime.grace_seconds).install()
        stop.on_request = partial(_asked_to_stop, status)
        stop.on_leave = partial(_left_in_haste, session)
        with only_importing():
            from job.infra.progress import open_progress  # noqa: PLC0415 - rich is for those who train
            from job.infra.together import join  # noqa: PLC0415 - torch loads only now
            from job.pretrain import pretrain  # noqa: PLC0415

        progress = open_progress(session.log_format if place.rank == 0 else "json")
        options = {"restart_from_scratch": restart_from_scratch, "single_writer_unsafe": single_writer_unsafe}
        try:
            stop.check()
            with join(place, stop, resolved.config.runtime.join_seconds, partial(_ended_by_another, session)) as ranks:
                pretrain(resolved, stop, progress, status, ranks=ranks, **options)
        finally:
            stop.disarm()
            progress.close()
    if place.rank == 0:
        _write_ending(status, 0, status.status)
        log.info("ended", code=0, reason=status.status)


@contextmanager
def _summary(session: Session, place: Place, flags: str) -> Iterator[None]:
    """Where the run stands, as a table for people and as the last line on stdout, however the block ends.

    Rank 0 alone speaks; another rank is heard when what ended all of them happened to it.
    """
    if place.world_size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a rank that has gone is reported by us
    if place.rank > 0:
        configure_logging(session.log_format, "error")
        structlog.contextvars.bind_contextvars(rank=place.rank)
    try:
        yield
    except Interrupted:
        session.status.status = "interrupted"
        session.silent = place.rank > 0
        raise
    except JobError as error:
        session.silent = place.rank > 0 and getattr(error, "adopted", False)
        raise
    finally:
        if place.rank == 0:
            show_summary(session.status, flags, main.commands, session.log_format)
            print_json(session.status.plain())


def _launch(ctx: click.Context, crew: Crew, runtime: RuntimeConfig) -> None:
    """Train in processes of their own, and end as they do."""
    with Relay() as relay:
        from job.infra.launch import launch  # noqa: PLC0415 - torch loads only now

        ended = launch(crew, sys.orig_argv[1:], runtime, relay)
    status: RunStatus = ctx.obj.status
    status.step, status.val_loss = ended.said.get("step") or 0, ended.said.get("val_loss")
    status.checkpoint = ended.said.get("checkpoint")
    _write_ending(status, ended.code, ended.reason)
    if ended.code:  # else the first rank has said so
        log.error("ended", code=ended.code, reason=ended.reason)
    ctx.exit(ended.code)


def _flags(preset: str | None, path: Path | None, overrides: tuple[str, ...], processes: str | None) -> str:
    """What was asked for, as it is typed again."""
    asked = [("--preset", preset), ("--config", path), *(("--set", value) for value in overrides)]
    asked.append(("--processes", processes))
    return shlex.join(str(word) for flag, value in asked if value for word in (flag, value))


def _asked_to_stop(status: RunStatus, reason: str) -> None:
    log.warning(
        "stopping at the next step boundary and saving; once more leaves at once",
        reason=reason,
        leaving_at_once_means=status.standing(),
    )


def _ended_by_another(session: Session, error: JobError) -> None:
    """This rank hangs because another has ended: say so where it is looked for, before it is ended too."""
    if session.place.rank > 0:
        return
    reason = f"{type(error).__name__}: {error}"
    _write_ending(session.status, error.exit_code, reason)
    log.error("ended", code=error.exit_code, reason=reason)
    print_json(session.status.plain())


def _left_in_haste(session: Session, reason: str) -> None:
    """The watchdog ends the process: say so where it is looked for."""
    if session.place.rank > 0:
        return
    status = copy(session.status)  # training goes on beside this
    said = f"Interrupted: {reason}; left at step {status.step}; {status.standing()}; start again to continue"
    _write_ending(status, Interrupted.exit_code, said)
    log.error("ended", code=Interrupted.exit_code, reason=said)
    status.status = "interrupted"
    print_json(status.plain())


@main.command()
@config_options
@json_option
@click.pass_obj
def prepare(session: Session, preset: str | None, path: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Only pull the corpus and tokenize it, once for all jobs that share the cache.

    \b
    gpt-job prepare --preset verdict
    gpt-job prepare --set data.corpus=s3://bucket/crawl/ --set data.cache_uri=s3://bucket/cache
    """
    config = resolve(preset, path, overrides).config
    stop = StopSignal(config.runtime.grace_seconds).install()
    from job.infra.progress import open_progress  # noqa: PLC0415 - rich is for those who wait
    from job.prepare import prepare as run  # noqa: PLC0415 - tiktoken and numpy load only now

    progress = open_progress(session.log_format)
    try:
        facts = run(config, stop.advance, progress)
    finally:
        progress.close()
    if as_json:
        print_json(facts)
        return
    for split, counts in facts.pop("splits").items():
        click.echo(f"{split:<12}" + "  ".join(f"{value:,} {name}" for name, value in counts.items()))
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):<20}{'unknown' if value is None else f'{value:,}'}")


@main.command()
@model_options
@weights_option
@click.option("--split", "splits", multiple=True, type=click.Choice(SPLITS), help="Repeatable.")
@click.option("--corpus", help="Measure on another text (file, folder or address) instead of the run's own.")
@click.option("--window", type=click.IntRange(min=1), help="Tokens read at once; unset: the model's context.")
@click.option("--stride", type=click.IntRange(min=1), help="Score each token once, in windows this far apart.")
@click.option("--batches", type=click.IntRange(min=1), help="Batches of the run's size to measure; unset: all.")
@json_option
def evaluate(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    which: str,
    as_json: bool,
    **what: Any,
) -> None:
    """Loss, perplexity and bits per byte of a run on its splits or another text.

    Windows lie beside each other, as in training. With --stride N they overlap: each token is scored once, after at
    least window - N others, which is how perplexities are published.

    \b
    gpt-job evaluate --run runs/quickstart-1a2b3c4d --checkpoint best --split validation
    gpt-job evaluate --corpus my.txt --stride 128
    gpt-job evaluate --weights gpt2:124M --preset verdict --window 256
    """
    config = config_at(run_uri, preset, path, overrides)
    stop = StopSignal(config.runtime.grace_seconds).install()
    from job.evaluate import evaluate as run  # noqa: PLC0415 - torch loads only now

    losses = run(config, which, stop.advance, **what)
    if as_json:
        print_json(losses)
        return
    for split, facts in losses.items():
        click.echo(f"{split:<12}" + "  ".join(f"{name} {_short(value)}" for name, value in facts.items()))


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


@main.command()
@model_options
@weights_option
@click.option("--prompt", "texts", multiple=True, help="Text to continue, or - for all of stdin; repeatable.")
@click.option("--prompts", "prompt_file", metavar="FILE", help="A prompt a line (.jsonl: a JSON string); - for stdin.")
@click.option("--max-new-tokens", type=click.IntRange(min=0), default=100, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most probable token.")
@click.option("--top-k", type=int, help="Draw among the k most probable tokens.")
@click.option("--top-p", type=float, help="Draw among the fewest tokens that together have this probability.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: say less twice.")
@click.option("--beams", type=click.IntRange(min=1), default=1, show_default=True, help="More than 1: beam search.")
@click.option("--length-penalty", type=float, default=1.0, show_default=True, help="Of beams; above 0: longer ones.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="Ends a continuation before it; repeatable.")
@click.option("--stop-at-end-of-text", is_flag=True, help="End a continuation where the model ends the text.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts at the same time.")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "auto"]),
    default="fp32",
    show_default=True,
    help="Of weights: fp32 is the model itself, bf16 is about twice as fast on a CPU that has it, auto the faster one.",
)
@json_option
def generate(
    preset: str | None,
    path: Path | None,
    overrides: tuple[str, ...],
    run_uri: str | None,
    which: str,
    texts: tuple[str, ...],
    prompt_file: str | None,
    *,
    as_json: bool,
    weights: str | None,
    **options: Any,
) -> None:
    """Continue prompts with the model of a run, or with GPT-2's.

    A prompt longer than the context keeps its end; past the context the window slides. An empty prompt begins a new
    text where the tokenizer has an end-of-text token.

    \b
    gpt-job generate --prompt "Every effort moves you" --temperature 0.8 --top-k 50
    gpt-job generate --prompts questions.txt --beams 4 --stop "." --json
    """
    config = config_at(run_uri, preset, path, overrides)
    from job.generate import Decoding, read_prompts  # noqa: PLC0415 - torch loads only now
    from job.generate import generate as run  # noqa: PLC0415

    prompts = read_prompts(texts, prompt_file, sys.stdin)
    run(config, which, prompts, Decoding(**options), as_json, sys.stdout, weights)


main.add_command(bench)
main.add_command(checkpoints)
main.add_command(weights_group)
main.add_command(report)
main.add_command(serve)
main.add_command(serve_test)
main.add_command(ladder)
main.add_command(check)
main.add_command(config)
