"""A run's event log, read into plain values; everything that the report shows follows from them.

Any log is read as far as it makes sense: of a job that runs, that was killed, whose last line is cut. What had to be
left out, or looks wrong, is said in `oddities`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np

from job.errors import DataError

Event = dict[str, Any]
COLUMNS = ("step", "tokens", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu")
_LEAP = 60.0  # seconds by which a clock may differ from the time that has passed before it is called wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Losses measured at a step; None is what was not measured, or was not finite."""

    step: int
    tokens: float
    train_loss: float | None
    val_loss: float | None
    bits_per_byte: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The model's own text at a step."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Save:
    """A committed checkpoint: how many bytes, and the seconds of each stage."""

    step: int
    bytes: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """What an attempt did, from `start` to `end` in seconds since it began."""

    phase: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One start of the job.

    Args:
        began: Unix time.
        last_seen: Unix time of the last thing known of it.
        seconds: Between the two, by a steady clock where there was one.
        first_step: Where it started from.
        last_step: The last step known of it.
        code: Exit code; None while it runs, and for good when it was killed.
        spans: Phases that its events tell of, in order of their end.
    """

    number: int
    began: float
    last_seen: float
    seconds: float
    first_step: int
    last_step: int
    code: int | None
    reason: str
    startup: float
    spans: Sequence[Span]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHistory:
    """All that an event log says.

    Args:
        steps: Columns of the logged steps, by name; NaN where a value is missing.
        tokens_per_epoch: None while no epoch is known.
        facts: What the last attempt said of itself: config, code, corpus, machine.
        marks: Steps at which something other than training happened, by the event's name.
        oddities: What a reader should know of the log, a sentence each.
        time: Unix time of the last event.
    """

    steps: Mapping[str, np.ndarray]
    evaluations: Sequence[Evaluation]
    samples: Sequence[Sample]
    saves: Sequence[Save]
    attempts: Sequence[Attempt]
    tokens_per_epoch: float | None
    tokens_per_step: float | None
    facts: Mapping[str, Any]
    marks: Mapping[str, Sequence[Event]]
    test_loss: float | None
    oddities: Sequence[str]
    time: float
    events: int

    @property
    def step(self) -> int:
        """The last step known."""
        return max((attempt.last_step for attempt in self.attempts[-1:]), default=0)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest validation loss; without a validation split, the lowest training loss."""
        judged = [(e.val_loss, e) for e in self.evaluations if e.val_loss is not None]
        judged = judged or [(e.train_loss, e) for e in self.evaluations if e.train_loss is not None]
        return min(judged, key=lambda pair: pair[0], default=(0.0, None))[1]


def read_events(content: bytes, where: str) -> tuple[list[Event], list[str]]:
    """The events of a log in the order of their attempts, and what had to be left out.

    Raises:
        DataError: Nothing in it is an event of a run.
    """
    events, foreign = [], 0
    lines = content.splitlines()
    for line in lines:
        event = _event(line)
        if event is None:
            foreign += bool(line.strip())
        else:
            events.append(event)
    if not events:
        got = "an empty file" if not content.strip() else f"{len(lines)} lines, none of which is one"
        raise DataError(
            f"{where}: expected a run's events, a JSON object a line with event, step, attempt and number; got {got}"
        )
    cut = bool(lines) and not content.endswith(b"\n") and _event(lines[-1]) is None
    oddities = ["the last line of the event log is cut: its process ended while it wrote"] if cut else []
    if foreign > cut:
        oddities.append(f"{counted(foreign - cut, 'line')} of the event log left out: no events of a run")
    return sorted(events, key=lambda event: (event["attempt"], event["number"])), oddities


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
        whole = [event[name] for name in ("step", "attempt", "number")]
        sound = isinstance(event["event"], str) and all(type(number) is int for number in whole)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return event if sound else None


def read_history(content: bytes, where: str) -> RunHistory:
    """The run that an event log tells of. DataError when it tells of none."""
    events, oddities = read_events(content, where)
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event["event"], []).append(event)
    started = kinds.get("run started", [])
    attempts, leaps = _attempts(events)
    tested = kinds.get("tested", [])
    measured = [*kinds.get("evaluated", []), *kinds.get("step", [])]
    return RunHistory(
        steps=_columns(kinds.get("step", [])),
        evaluations=_evaluations(kinds.get("evaluated", [])),
        samples=_samples(kinds.get("sampled", [])),
        saves=[_save(event) for event in kinds.get("checkpoint saved", [])],
        attempts=attempts,
        tokens_per_epoch=_tokens_per(measured, "epoch"),
        tokens_per_step=_tokens_per(measured, "step"),
        facts=started[-1] if started else {},
        marks={name: found for name, found in kinds.items() if name not in ("step", "evaluated", "sampled")},
        test_loss=_number(tested[-1].get("loss")) if tested else None,
        oddities=[*oddities, *leaps, *_losses_missing(kinds)],
        time=_number(events[-1].get("time")) or 0.0,
        events=len(events),
    )


def _columns(events: Sequence[Event]) -> dict[str, np.ndarray]:
    """Of two events of one step the later holds."""
    rows = {event["step"]: [_or_nan(event.get(name)) for name in COLUMNS] for event in events}
    table = np.array([rows[step] for step in sorted(rows)], dtype=np.float64).reshape(-1, len(COLUMNS))
    return {name: table[:, at] for at, name in enumerate(COLUMNS)}


def _evaluations(events: Sequence[Event]) -> list[Evaluation]:
    found = {
        event["step"]: Evaluation(
            step=event["step"],
            tokens=_or_nan(event.get("tokens")),
            train_loss=_number(event.get("train_loss")),
            val_loss=_number(event.get("val_loss")),
            bits_per_byte=_number(event.get("bits_per_byte")),
        )
        for event in events
    }
    return [found[step] for step in sorted(found)]


def _samples(events: Sequence[Event]) -> list[Sample]:
    found = {
        event["step"]: Sample(step=event["step"], prompt=_text(event.get("prompt")), text=_text(event.get("text")))
        for event in events
    }
    return [found[step] for step in sorted(found)]


def _save(event: Event) -> Save:
    stages = event.get("seconds")
    seconds = {name: value for name, value in stages.items() if finite(value)} if isinstance(stages, dict) else {}
    return Save(step=event["step"], bytes=int(_number(event.get("bytes")) or 0), seconds=seconds)


def _tokens_per(events: Sequence[Event], unit: str) -> float | None:
    """From the last event that tells both; None when none does."""
    for event in reversed(events):
        tokens, count = event.get("tokens"), event.get(unit)
        if finite(tokens) and finite(count) and tokens > 0 and count > 0:
            return float(tokens / count)
    return None


def _losses_missing(kinds: Mapping[str, Sequence[Event]]) -> list[str]:
    said = []
    if skipped := len(kinds.get("step skipped", [])):
        said.append(f"{counted(skipped, 'step')} skipped: loss or gradients were not finite")
    bare = [event["step"] for event in kinds.get("evaluated", []) if not any(map(finite, _losses(event)))]
    if bare:
        said.append(f"{counted(len(bare), 'evaluation')} without a finite loss, the first at step {bare[0]:,}")
    return said


def _losses(event: Event) -> tuple[Any, Any]:
    return event.get("train_loss"), event.get("val_loss")


def _attempts(events: Sequence[Event]) -> tuple[list[Attempt], list[str]]:
    groups: dict[int, list[Event]] = {}
    for event in events:
        groups.setdefault(event["attempt"], []).append(event)
    told = [group for group in groups.values() if any(event["event"] == "run started" for event in group)]
    attempts, leaps = [], 0
    for number, group in enumerate(told, 1):
        attempt, leapt = _attempt(number, group)
        attempts.append(attempt)
        leaps += leapt
    backwards = sum(after.began < before.last_seen for before, after in pairwise(attempts))
    said = []
    if leaps:
        said.append(f"the clock jumped within {counted(leaps, 'attempt')}; durations are those of a steady clock")
    if backwards:
        said.append(f"{counted(backwards, 'attempt')} began before the last word of the one before: clocks disagree")
    return attempts, said


def _attempt(number: int, events: Sequence[Event]) -> tuple[Attempt, bool]:
    """One start of the job, and whether its clock disagrees with the time that passed."""
    started = next(event for event in events if event["event"] == "run started")
    ended = next((event for event in reversed(events) if event["event"] == "run ended"), None)
    phases = started.get("startup")
    startup = {name: value for name, value in phases.items() if finite(value)} if isinstance(phases, dict) else {}
    before = sum(startup.values())
    moments = _moments(events)
    zero = moments[events.index(started)]
    clocks = [_or_nan(event.get("time")) for event in events]
    wall = np.asarray(clocks) - clocks[0]
    drift = np.abs(wall - np.asarray(moments))
    spans, at = [], 0.0
    for name, seconds in startup.items():
        spans.append(Span(phase=name, start=at, end=at + seconds))
        at += seconds
    spans += [
        span for event, moment in zip(events, moments, strict=True) for span in _spans(event, moment - zero + before)
    ]
    return Attempt(
        number=number,
        began=(_number(started.get("time")) or 0.0) - before,
        last_seen=float(np.nanmax(clocks, initial=0.0)) if np.isfinite(clocks).any() else 0.0,
        seconds=before + max(moments) - zero,
        first_step=started["step"],
        last_step=max(event["step"] for event in events),
        code=ended.get("code") if ended else None,
        reason=_text(ended.get("reason")) if ended else "",
        startup=before,
        spans=spans,
    ), bool(np.nanmax(drift, initial=0.0) > _LEAP)


def _moments(events: Sequence[Event]) -> list[float]:
    """Seconds of each event since the first of its attempt: by a steady clock where it was noted, else by the dates."""
    if all(finite(event.get("uptime")) for event in events):
        return [event["uptime"] - events[0]["uptime"] for event in events]
    moments, last, now = [], None, 0.0
    for event in events:
        clock = _number(event.get("time"))
        if clock is not None:
            now += max(0.0, clock - last) if last is not None else 0.0
            last = clock
        moments.append(now)
    return moments


def _spans(event: Event, moment: float) -> list[Span]:
    """The phase that an event ends."""
    if event["event"] == "checkpoint saved" and isinstance(event.get("seconds"), dict):
        seconds = _number(event["seconds"].get("total"))
    else:
        seconds = _number(event.get("seconds"))
    phase = {"evaluated": "evaluating", "sampled": "sampling", "checkpoint saved": "saving"}.get(event["event"])
    if phase is None or seconds is None:
        return []
    return [Span(phase=phase, start=max(0.0, moment - seconds), end=moment)]


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: object) -> float | None:
    return value if finite(value) else None


def _or_nan(value: object) -> float:
    return value if finite(value) else math.nan


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
