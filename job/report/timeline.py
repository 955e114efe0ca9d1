"""Figures of what a run did when: its attempts and their phases, and what saving took."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from job.infra.progress import duration
from job.report import canvas
from job.report.canvas import COLOURS, Picture
from job.report.costs import Costs
from job.report.reading import Attempt, RunHistory, Save, Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 240  # parts of the time that are told apart
ROWS = 24  # attempts that the timeline shows, the last ones
BARS = 60  # checkpoints that are drawn, each the slowest of its neighbours
_PHASES = {
    "starting up": COLOURS["violet"][0],
    "training": COLOURS["steps"][0],
    "evaluating": COLOURS["validation"][0],
    "sampling": COLOURS["pink"][0],
    "saving (beside training)": COLOURS["green"][0],
}
_STAGES = {
    "snapshot": ("snapshot (training waits)", COLOURS["validation"][0]),
    "serialize": ("serialize", COLOURS["yellow"][0]),
    "upload": ("upload", COLOURS["train"][0]),
    "verify": ("verify", COLOURS["green"][0]),
    "commit": ("commit", COLOURS["pink"][0]),
}


def timeline_picture(history: RunHistory, costs: Costs) -> Picture | None:
    """A row for each attempt: what it did when, and how it ended."""
    if not history.attempts:
        return None
    starts = _starts(history.attempts, costs)
    shown = list(zip(history.attempts, starts, strict=True))[-ROWS:]
    first = shown[0][1]
    whole = max(start + attempt.seconds for attempt, start in shown) - first or 1.0

    def paint(axes: "Axes") -> None:
        for row, (attempt, start) in enumerate(shown):
            _paint_attempt(axes, row, attempt, start - first, whole)
            if ended := _ended(attempt, row == len(shown) - 1):
                _paint_end(axes, row, start - first + attempt.seconds, whole, ended)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(-0.01 * whole, 1.01 * whole)
        axes.set_yticks(range(len(shown)), [str(attempt.number) for attempt, _ in shown])
        axes.grid(visible=False, axis="y")
        canvas.in_time(axes, whole)
        since = "since the first start" if first == 0 else "since the first start shown"
        canvas.label(axes, f"time {since}", "attempt")
        _explain_phases(axes, shown)

    rows = len(shown)
    said = f"{len(history.attempts)} attempts" if len(history.attempts) > 1 else "one attempt"
    text = f"Timeline: {said} over {duration(costs.wall)}"
    return canvas.draw("timeline", "Timeline", text, paint, height=1.75 + 0.3 * rows)


def checkpoints_picture(history: RunHistory) -> Picture | None:
    """What each stage of saving took, a bar for each checkpoint."""
    saves = _slowest(history.saves)
    if not saves:
        return None

    def paint(axes: "Axes") -> None:
        bottom = np.zeros(len(saves))
        for stage, (name, colour) in _STAGES.items():
            heights = np.array([save.seconds.get(stage, 0.0) for save in saves])
            if heights.any():
                axes.bar(range(len(saves)), heights, bottom=bottom, color=colour, width=0.8, label=name)
            bottom += heights
        at = range(0, len(saves), -(-len(saves) // 5))
        axes.set_xticks(at, [f"{saves[i].step:,}" for i in at])
        axes.set_ylim(0, float(bottom.max()) * 1.35 or 1.0)
        axes.grid(visible=False, axis="x")
        canvas.label(axes, "checkpoint of step", "seconds")
        axes.legend(loc="upper center", frameon=False, fontsize=8.5, labelcolor=canvas.INK, ncols=3, handlelength=1.0)

    slowest = max(save.seconds.get("total", 0.0) for save in saves)
    text = f"Checkpoints: {len(history.saves)} saved, the slowest in {slowest:.2g} seconds"
    return canvas.draw("checkpoints", "Checkpoints", text, paint)


def _starts(attempts: Sequence[Attempt], costs: Costs) -> list[float]:
    """When each attempt began, in seconds since the first; never before the one before it ended."""
    starts, now = [], 0.0
    for attempt, lost in zip(attempts, [*costs.interruptions, None], strict=True):
        starts.append(now)
        now += attempt.seconds + (lost.away if lost else 0.0)
    return starts


def _paint_attempt(axes: "Axes", row: int, attempt: Attempt, start: float, whole: float) -> None:
    bins = max(1, round(_BINS * attempt.seconds / whole))
    edges = start + np.linspace(0.0, max(attempt.seconds, whole / _BINS), bins + 1)
    foot = np.full(bins, row - 0.3)
    for name in ("starting up", "evaluating", "sampling"):
        foot = foot + 0.6 * _paint_shares(axes, edges, foot, 0.6, _shares(attempt, name, bins), name)
    axes.stairs(np.full(bins, row + 0.3), edges, baseline=foot, fill=True, color=_PHASES["training"], linewidth=0)
    saving = touched(attempt, "saving", bins)
    _paint_shares(axes, edges, np.full(bins, row + 0.33), 0.1, saving, "saving (beside training)")


def _ended(attempt: Attempt, is_last: bool) -> str:
    """What to write where an attempt ended; nothing where it was complete, or may still run."""
    if attempt.code is None:
        return "" if is_last else "killed"
    return f"exit {attempt.code}" if attempt.code else ""


def _paint_end(axes: "Axes", row: int, end: float, whole: float, said: str) -> None:
    """A mark at the end of a row, and what it means."""
    axes.plot([end], [row], marker="|", markersize=14, markeredgewidth=2, color=canvas.BAD)
    axes.annotate(
        said,
        (end, row),
        xytext=(4, 0) if end < 0.8 * whole else (-4, 9),
        textcoords="offset points",
        ha="left" if end < 0.8 * whole else "right",
        va="center",
        fontsize=8.5,
        color=canvas.BAD,
    )


def _explain_phases(axes: "Axes", shown: Sequence[tuple[Attempt, float]]) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    there = {_kind(span) for attempt, _ in shown for span in attempt.spans}
    known = {"training"} | {"saving (beside training)" if kind == "saving" else kind for kind in there}
    patches = [Patch(color=colour, label=name) for name, colour in _PHASES.items() if name in known]
    canvas.explain_above(axes, patches)


def _paint_shares(
    axes: "Axes", edges: np.ndarray, foot: np.ndarray, height: float, shares: np.ndarray, name: str
) -> np.ndarray:
    """A phase as a part of the row's height, as large as its share of each bin; returns the shares."""
    axes.stairs(foot + height * shares, edges, baseline=foot, fill=True, color=_PHASES[name], linewidth=0)
    return shares


def _shares(attempt: Attempt, name: str, bins: int) -> np.ndarray:
    """The share of each of `bins` equal parts of an attempt that a phase took."""
    spans = [span for span in attempt.spans if _kind(span) == name]
    starts, ends = np.array([span.start for span in spans]), np.array([span.end for span in spans])
    edges = np.linspace(0.0, attempt.seconds or 1.0, bins + 1)
    spent = np.array(
        [np.clip(edge - starts, 0.0, None).sum() - np.clip(edge - ends, 0.0, None).sum() for edge in edges]
    )
    return np.clip(np.diff(spent) / np.diff(edges), 0.0, 1.0)


def touched(attempt: Attempt, name: str, bins: int) -> np.ndarray:
    """1 for each of `bins` equal parts of an attempt in which a phase was seen, however short; else 0."""
    touched, width = np.zeros(bins), (attempt.seconds or 1.0) / bins
    for span in attempt.spans:
        if _kind(span) == name:
            touched[min(bins - 1, int(span.start / width)) : int(span.end / width) + 1] = 1.0
    return touched


def _kind(span: Span) -> str:
    return span.phase if span.phase in ("evaluating", "sampling", "saving") else "starting up"


def _slowest(saves: Sequence[Save]) -> list[Save]:
    """At most BARS saves, in order, each the slowest of its neighbours."""
    groups = np.array_split(np.arange(len(saves)), min(BARS, len(saves))) if saves else []
    return [max((saves[i] for i in group), key=lambda save: save.seconds.get("total", 0.0)) for group in groups]
