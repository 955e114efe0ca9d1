"""Where a run's time went: the share of it that trained, and what each interruption cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from job.report.reading import Attempt, RunHistory

_KILLED = "killed, or its machine was lost: it noted no end"
_OPEN = "no end noted: it still runs, or was killed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """The time between two attempts and after it, in seconds.

    Args:
        away: From the last that is known of the one to the start of the next. After a kill, the work that came after
            the last checkpoint is in it: it left no trace.
        startup: Of the next one, until it trained again.
        redone_steps: Steps that were done and had to be done again; None when nobody knows.
        redone: Seconds that they take.
    """

    away: float
    startup: float
    redone_steps: int | None
    redone: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.away + self.startup + self.redone


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds of a whole run.

    Args:
        wall: From the first start to the last event, time between attempts included.
        training: Spent in steps that count.
        phases: Spent in what else the events tell of.
        stalled: For which training waited while a checkpoint was copied.
    """

    wall: float
    training: float
    phases: dict[str, float]
    stalled: float
    interruptions: Sequence[Interruption]

    @property
    def goodput(self) -> float | None:
        """Share of the time that was spent in steps that count."""
        return min(1.0, self.training / self.wall) if self.wall > 0 and self.training > 0 else None


def measure_costs(history: RunHistory) -> Costs:
    """Where the time of a run went, from its events alone."""
    training, per_step = _training(history)
    attempts = history.attempts
    pairs = pairwise(attempts)
    interruptions = [_interruption(before, after, per_step) for before, after in pairs]
    phases: dict[str, float] = {}
    for span in (span for attempt in attempts for span in attempt.spans):
        if span.phase != "saving":  # beside training; what training waits is told apart
            phases[span.phase] = phases.get(span.phase, 0.0) + span.end - span.start
    return Costs(
        wall=sum(attempt.seconds for attempt in attempts) + sum(lost.away for lost in interruptions),
        training=training,
        phases=phases,
        stalled=sum(save.seconds.get("snapshot", 0.0) for save in history.saves),
        interruptions=interruptions,
    )


def _training(history: RunHistory) -> tuple[float, float]:
    """Seconds in steps that count, by the speeds that a steady clock measured, and the median seconds of one."""
    tokens, speeds = history.steps["tokens"], history.steps["tokens_per_second"]
    known = np.isfinite(tokens) & np.isfinite(speeds) & (speeds > 0)
    if not known.any():
        return 0.0, 0.0
    taken = np.diff(tokens[known], prepend=0.0)
    seconds = float(np.sum(taken / speeds[known]))
    return seconds, float((history.tokens_per_step or 0.0) / np.median(speeds[known]))


def _interruption(before: Attempt, after: Attempt, per_step: float) -> Interruption:
    redone = max(0, before.last_step - after.first_step) if before.code is not None else None
    return Interruption(
        away=max(0.0, after.began - before.last_seen),
        startup=after.startup,
        redone_steps=redone,
        redone=(redone or 0) * per_step,
    )


def ending_of(attempt: Attempt, is_last: bool) -> str:
    """How an attempt ended, in words."""
    if attempt.code is None:
        return _OPEN if is_last else _KILLED
    return "complete" if attempt.code == 0 else attempt.reason or f"ended with {attempt.code}"
