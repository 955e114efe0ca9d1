"""The ladder as a picture: every seed's loss, rung by rung."""

import io
import math
from typing import TYPE_CHECKING

from job.report.canvas import DPI, INK, PALE, TRAIN, VALIDATION
from job.report.ladder_table import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROOM = 0.08  # of the width, left of the points: for what is written there


def plot_ladder(summary: Summary) -> bytes:
    """A PNG: rungs from top to bottom, validation loss of each seed, their mean, and the mean on the training text."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow, and needed only to draw

    figure = Figure(figsize=(9, 0.55 + 0.46 * len(summary.rows)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    finite = [row for row in summary.rows if math.isfinite(row.val_loss)]
    axes.plot(
        [row.val_loss for row in finite],
        [summary.rows.index(row) for row in finite],
        color=VALIDATION,
        linewidth=1.2,
        alpha=0.45,
        zorder=1,
    )
    for place, row in enumerate(summary.rows):
        _draw(axes, place, row)
    _label(axes, summary)
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.2)
    return target.getvalue()


def _draw(axes: "Axes", place: int, row: Row) -> None:
    if not math.isfinite(row.val_loss):
        axes.text(0.5, place, "diverged", transform=axes.get_yaxis_transform(), color=PALE, fontsize=9, va="center")
        return
    first = place == 0
    axes.plot(
        row.train_loss, place, "o", color=TRAIN, markersize=5, markerfacecolor="white", label="train" if first else None
    )
    axes.plot(
        row.val_losses,
        [place] * len(row.val_losses),
        "|",
        color=VALIDATION,
        markersize=11,
        label="validation, each seed" if first and len(row.val_losses) > 1 else None,
    )
    axes.plot(row.val_loss, place, "o", color=VALIDATION, markersize=6, label="validation" if first else None)
    axes.annotate(
        f"{row.val_loss:.3f}",
        (min(row.train_loss, *row.val_losses), place),
        xytext=(-10, 0),
        textcoords="offset points",
        fontsize=9,
        color=VALIDATION,
        horizontalalignment="right",
        verticalalignment="center",
    )


def _label(axes: "Axes", summary: Summary) -> None:
    axes.set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    axes.set_ylim(len(summary.rows) - 0.4, -0.6)
    left, right = axes.get_xlim()
    axes.set_xlim(left - _ROOM * (right - left), right)
    axes.set_xlabel("loss (nats per token)", fontsize=11, color=INK)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.tick_params(labelsize=10, color=PALE, labelcolor=INK)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper left", facecolor="white", edgecolor="none", framealpha=0.9, fontsize=10, labelcolor=INK)
