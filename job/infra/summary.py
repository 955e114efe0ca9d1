"""What a person sees when a run has ended: what came out, and what to do next. Nothing where nobody watches."""

import math
import os
import shlex
import sys
from collections.abc import Collection

from job.config import TrainingConfig
from job.infra.logs import LogFormat
from job.infra.progress import duration, short
from job.infra.status import RunStatus

NEXT = {
    "generate": ("see what it writes", "generate --run {run} --prompt {prompt} --temperature 0.8 --top-k 50"),
    "serve": ("serve it over HTTP", "serve --run {run}"),
    "evaluate": ("measure it on whole splits", "evaluate --run {run} --checkpoint best"),
    "report": ("draw it again", "report --run {run}"),
}
_PROMPT = "The "
_LONG = 40  # characters of a prompt to be typed


def show_summary(status: RunStatus, flags: str, commands: Collection[str], fmt: LogFormat = "auto") -> None:
    """A table on stderr, if that is a terminal.

    Args:
        flags: What `train` was started with, to say how to continue.
        commands: Those that there are.
    """
    if fmt == "json" or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or not status.run_uri:
        return
    from rich.console import Console  # noqa: PLC0415 - only for people
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _outcome(status).items():
        table.add_row(name, escape(value))
    console = Console(stderr=True, highlight=False)
    console.print()
    console.print(table)
    console.print("\n[bold]Next[/bold]")
    for what, line in next_steps(status, flags, commands):
        console.print(f"  [dim]# {what}[/dim]\n  [cyan]{escape(line)}[/cyan]", soft_wrap=True)  # to be copied
    console.print()


def longer(training: TrainingConfig) -> tuple[str, ...]:
    """Settings with which a run of this length would be twice as long."""
    steps = () if training.max_steps is None else (f"training.max_steps={2 * training.max_steps}",)
    epochs = () if training.epochs is None else (f"training.epochs={2 * training.epochs:g}",)
    return () if training.max_seconds else (*steps, *epochs)


def _with(flags: str, settings: Collection[str]) -> str:
    """The flags with these settings, instead of what they say of the same."""
    names = tuple(setting.partition("=")[0] + "=" for setting in settings)
    words = shlex.split(flags)
    kept = [pair for pair in zip(words[::2], words[1::2], strict=True) if not pair[1].startswith(names)]
    return shlex.join(word for pair in (*kept, *(("--set", setting) for setting in settings)) for word in pair)


def _outcome(status: RunStatus) -> dict[str, str]:
    losses = {"train loss": status.train_loss, "validation loss": status.val_loss}
    shown = {name: f"{loss:.4f}" for name, loss in losses.items() if loss is not None}
    if status.val_loss is not None:
        shown["validation loss"] += f"  (perplexity {math.exp(min(status.val_loss, 300.0)):.2f})"
    return {
        "run": f"{status.run_uri}  ({status.status})",
        "step": f"{status.step:,}  ({short(status.tokens)} tokens, {duration(status.seconds)} of training)",
        **shown,
        **({"checkpoint": status.checkpoint} if status.checkpoint else {}),
        **({"report": status.report} if status.report else {}),
    }


def next_steps(status: RunStatus, flags: str, commands: Collection[str]) -> list[tuple[str, str]]:
    """What can be done now, and the command that does it."""
    run = shlex.quote(status.run_uri)
    steps = []
    if not status.status.endswith("complete"):
        steps.append(("continue it", f"gpt-job train {flags}".rstrip()))
    elif status.longer:
        steps.append(("train it twice as long, on from here", f"gpt-job train {_with(flags, status.longer)}"))
    known = [name for name in NEXT if name in commands and (status.checkpoint or name == "report")]
    prompt = shlex.quote(next((line[:_LONG] for line in status.prompt.splitlines() if line.strip()), _PROMPT))
    return steps + [(NEXT[name][0], f"gpt-job {NEXT[name][1].format(run=run, prompt=prompt)}") for name in known]
