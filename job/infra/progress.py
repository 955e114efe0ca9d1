"""What a person sees on a terminal while the job works: one line with a bar; nothing elsewhere."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from job.infra.logs import LogFormat

_SOON = 0.1  # seconds, within which a count alone is not news
LEAST_BAR = 10  # columns; where there is no room for it, facts are left out


class Progress(Protocol):
    """How far the job is. Counts are in the unit that the phase was begun with."""

    def phase(self, name: str, total: float | None = None, unit: str = "") -> None:
        """Show `name` from now on. An unfinished phase entered again with the same total goes on."""

    def advance(self, count: float, more: float = 0) -> None:
        """So many more are done, and the total turns out to be `more` than was known."""

    def update(
        self,
        completed: float,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """So many are done in all; the facts are shown beside the bar until they change."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_progress(fmt: LogFormat = "auto") -> Progress:
    """A bar when people read stderr (a terminal, and logs in their format), else silence."""
    if fmt != "json" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return TerminalProgress(Console(stderr=True))
    return SilentProgress()


class SilentProgress:
    """Shows nothing; log lines and metrics tell the story."""

    def phase(self, name: str, total: float | None = None, unit: str = "") -> None:
        pass

    def advance(self, count: float, more: float = 0) -> None:
        pass

    def update(
        self,
        completed: float,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Pace:
    """How fast a phase goes in this attempt; what an earlier one did counts as done, not as fast.

    Args:
        started: When the phase began, in clock seconds.
    """

    started: float
    origin: tuple[float, float] | None = None  # clock seconds, and what was done by then

    def eta(self, completed: float, total: float | None, now: float) -> float | None:
        """Seconds to go; None while nobody can know."""
        speed = self.speed(completed, now)
        return (total - completed) / speed if total is not None and speed else None

    def speed(self, completed: float, now: float) -> float:
        """Units per second, 0 while unknown."""
        if self.origin is None or now <= self.origin[0]:
            return 0.0
        return max(0.0, (completed - self.origin[1]) / (now - self.origin[0]))


class TerminalProgress:
    """One live line at the bottom of the terminal; log lines scroll above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current: Task | None = None
        self._adding = threading.Lock()  # files are pulled by several threads
        self._drawn = -math.inf  # when something was last told
        self._bars = Bars(
            TextColumn("{task.description}", style="bold", table_column=Column(no_wrap=True, min_width=10)),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green", pulse_style="cyan"),
            _Facts(console, clock),
            console=console,
            expand=True,
            transient=True,  # what came of a phase stands in the lines above
            redirect_stdout=False,  # stdout carries results
            refresh_per_second=4,
        )

    def phase(self, name: str, total: float | None = None, unit: str = "") -> None:
        self._bars.start()
        task = self._task(name)
        if task is None or task.finished or task.total is None or task.total != total:
            task = self._begin(name, total, unit)
        for other in self._bars.tasks:
            self._bars.update(other.id, visible=other is task)
        self._current = task

    def advance(self, count: float, more: float = 0) -> None:
        if task := self._current:
            with self._adding:
                if more:
                    self._bars.update(task.id, total=(task.total or 0) + more)
                pace: Pace = task.fields["pace"]
                pace.origin = pace.origin or (pace.started, task.completed)
            self._bars.advance(task.id, count)

    def update(
        self,
        completed: float,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        if task := self._current:
            now, pace = self._clock(), task.fields["pace"]
            if loss is None and not more and now - self._drawn < _SOON:
                return
            self._drawn = now
            pace.origin = pace.origin or (now, completed)
            facts: dict[str, Any] = {}
            if loss is not None:
                facts["loss"] = f"loss {loss:.3f}"
            if tokens_per_second is not None:
                facts["speed"] = f"{short(tokens_per_second):>5} tok/s"
            if more:
                facts["more"] = "  ".join(f"{name} {value}" for name, value in more.items())
            self._bars.update(task.id, completed=completed, **facts)

    def close(self) -> None:
        self._bars.stop()

    def _task(self, name: str) -> Task | None:
        return next((task for task in self._bars.tasks if task.description == name), None)

    def _begin(self, name: str, total: float | None, unit: str) -> Task:
        if old := self._task(name):
            self._bars.remove_task(old.id)
        self._bars.add_task(name, total=total, visible=False, unit=unit, pace=Pace(self._clock()))
        return self._bars.tasks[-1]


class _Facts(ProgressColumn):
    """Count, loss, speed, time gone and time to go; the least important left out where the terminal is narrow."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._console, self._clock = console, clock

    def render(self, task: Task) -> Text:
        now, pace, unit = self._clock(), task.fields["pace"], task.fields["unit"]
        eta = pace.eta(task.completed, task.total, now)
        facts = {
            "count": count(task.completed, task.total, unit) if task.total is not None or unit else None,
            "loss": task.fields.get("loss"),
            "speed": task.fields.get("speed"),
            "more": task.fields.get("more"),
            "gone": duration(now - pace.started).rjust(5),
            "eta": f"eta {duration(eta) if eta is not None else '?':6}" if task.total is not None else None,
        }
        room = self._console.width - max(10, len(task.description)) - LEAST_BAR - 2
        for name in ("more", "gone", "speed", "loss", "eta"):
            if sum(len(text) + 2 for text in facts.values() if text) > room:
                facts[name] = None
        styles = {"loss": "bold", "gone": "dim", "eta": "cyan"}
        return Text("  ").join(Text(text, style=styles.get(name, "")) for name, text in facts.items() if text)


def count(completed: float, total: float | None, unit: str) -> str:
    """`1250/5000` for steps, `12.3M/1.2G bytes` for what comes in millions, as wide at the start as at the end."""
    if unit == "steps":
        whole = "" if total is None else f"/{total:.0f}"
        return f"{completed:.0f}".rjust(max(0, len(whole) - 1)) + whole
    whole = "" if total is None else f"/{short(total)}"
    return f"{short(completed):>5}{whole} {unit}".rstrip()


def short(number: float) -> str:
    """Three digits and a letter: 512, 45.2k, 384M, 1.2B."""
    rounded = float(f"{number:.3g}")
    for power, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= power:
            return f"{rounded / power:.3g}{letter}"
    return f"{rounded:.3g}"


def duration(seconds: float) -> str:
    """Two units at most: 42s, 3m36s, 1h02m, 3d04h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
