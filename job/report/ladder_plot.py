"""The ladder as a picture: every seed's loss, rung by rung."""

import math
from typing import TYPE_CHECKING

from job.report import canvas
from job.report.canvas import PALE, TRAIN, VALIDATION, Picture
from job.report.ladder_table import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROOM = 0.13  # of the width, left of the points: for what is written there


def plot_ladder(summary: Summary) -> Picture:
    """Rungs from top to bottom: validation loss of each seed, their mean, and the mean on the training text."""

    def paint(axes: "Axes") -> None:
        finite = [row for row in summary.rows if math.isfinite(row.val_loss)]
        places = [summary.rows.index(row) for row in finite]
        axes.plot([row.val_loss for row in finite], places, color=VALIDATION, linewidth=1.2, alpha=0.45, zorder=1)
        for place, row in enumerate(summary.rows):
            _draw(axes, place, row)
        _label(axes, summary)

    said = "; ".join(f"{row.name} {row.val_loss:.3f}" for row in summary.rows)
    height = 0.9 + 0.3 * len(summary.rows)
    return canvas.draw("ladder", "Loss of every rung", f"Validation loss: {said}", paint, height=height)


def _draw(axes: "Axes", place: int, row: Row) -> None:
    if not math.isfinite(row.val_loss):
        axes.text(0.5, place, "diverged", transform=axes.get_yaxis_transform(), color=PALE, fontsize=9, va="center")
        return
    first, seeds = place == 0, len(row.val_losses)
    label = "train" if first else None
    axes.plot(row.train_loss, place, "o", color=TRAIN, markersize=4.5, markerfacecolor="none", label=label)
    label = "validation, each seed" if first and seeds > 1 else None
    axes.plot(row.val_losses, [place] * seeds, "|", color=VALIDATION, markersize=10, label=label)
    axes.plot(row.val_loss, place, "o", color=VALIDATION, markersize=5, label="validation" if first else None)
    axes.annotate(
        f"{row.val_loss:.3f}",
        (min(row.train_loss, *row.val_losses), place),
        xytext=(-8, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=VALIDATION,
        horizontalalignment="right",
        verticalalignment="center",
    )


def _label(axes: "Axes", summary: Summary) -> None:
    axes.set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    axes.set_ylim(len(summary.rows) - 0.4, -0.6)
    left, right = axes.get_xlim()
    axes.set_xlim(left - _ROOM * (right - left), right)
    canvas.label(axes, "loss (nats per token)")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    canvas.explain_above(axes)
