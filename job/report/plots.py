"""Pictures of a run, drawn from its event log alone."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from job.infra.progress import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Event = dict[str, Any]
Points = tuple[list[float], list[float]]  # epochs (tokens where there are none), and values

TRAIN, VALIDATION, STEPS = "#0072b2", "#d55e00", "#a9cbe2"
INK, PALE = "#444444", "#9a9a9a"
FEW = 40  # evaluations that are still drawn with markers
DPI = 144


def read_events(path: Path) -> list[Event]:
    """The events of `events.jsonl`, in order; what is not a whole JSON object is left out."""
    events = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # cut: its process was killed while it wrote
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def plot_losses(events: list[Event], target: Path) -> bool:
    """Draw loss and perplexity over epochs and tokens into the PNG `target`; False when nothing was evaluated."""
    tokens_per_epoch = _tokens_per_epoch(events)
    unit = tokens_per_epoch or 1.0
    train, validation, steps = (
        _curve(events, kind, value, unit)
        for kind, value in (("evaluated", "train_loss"), ("evaluated", "val_loss"), ("step", "loss"))
    )
    if not train[0] and not validation[0]:
        return False
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow, and needed only to draw

    figure = Figure(figsize=(9, 7.5), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(upper, steps, train, validation, _best(events))
    _draw_perplexities(lower, train, validation)
    for axes in (upper, lower):
        _quieten(axes)
    _label_x(upper, lower, tokens_per_epoch)
    figure.align_ylabels()
    _save(figure, target)
    return True


def _curve(events: list[Event], kind: str, value: str, unit: float) -> Points:
    """`value` over tokens / `unit` of one kind of event; of two for the same tokens the later holds."""
    points = {
        event["tokens"] / unit: event[value]
        for event in events
        if event.get("event") == kind and _finite(event.get("tokens")) and _finite(event.get(value))
    }
    ordered = sorted(points.items())
    return [x for x, _ in ordered], [y for _, y in ordered]


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tokens_per_epoch(events: list[Event]) -> float | None:
    """From the last event that tells both; None when none does."""
    for event in reversed(events):
        tokens, epoch = event.get("tokens"), event.get("epoch")
        if _finite(tokens) and _finite(epoch) and tokens > 0 and epoch > 0:
            return float(tokens / epoch)
    return None


def _best(events: list[Event]) -> str:
    """Legend text for the lowest validation loss."""
    evaluated = [event for event in events if event.get("event") == "evaluated" and _finite(event.get("val_loss"))]
    if not evaluated:
        return "validation"
    best = min(evaluated, key=lambda event: float(event["val_loss"]))
    return f"validation, best {best['val_loss']:.3f} at step {best.get('step', '?')}"


def _draw_losses(axes: "Axes", steps: Points, train: Points, validation: Points, best: str) -> None:
    axes.plot(*steps, color=STEPS, linewidth=0.8, label="train, one batch" if steps[0] else None)
    _draw_evaluated(axes, train, validation, best)
    axes.set_ylabel("loss (nats per token)", fontsize=11, color=INK)
    axes.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=0.9, fontsize=10, labelcolor=INK)


def _draw_perplexities(axes: "Axes", train: Points, validation: Points) -> None:
    curves = [([*x], [math.exp(min(y, 300.0)) for y in losses]) for x, losses in (train, validation)]  # no overflow
    _draw_evaluated(axes, curves[0], curves[1], "validation")
    values = [*curves[0][1], *curves[1][1]]
    if max(values) > 10 * min(values):
        _use_decades(axes, ticks=(1,) if max(values) > 1000 * min(values) else (1, 2, 5))
    axes.set_ylabel("perplexity", fontsize=11, color=INK)


def _draw_evaluated(axes: "Axes", train: Points, validation: Points, validation_label: str) -> None:
    marker = "o" if max(len(train[0]), len(validation[0])) <= FEW else None
    axes.plot(*train, color=TRAIN, linewidth=1.8, marker=marker, markersize=4, label="train" if train[0] else None)
    axes.plot(*validation, color=VALIDATION, linewidth=1.8, marker=marker, markersize=4, label=validation_label)


def _use_decades(axes: "Axes", *, ticks: tuple[int, ...]) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=ticks))
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_minor_formatter("")


def _quieten(axes: "Axes") -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(labelsize=10, color=PALE, labelcolor=INK)
    axes.tick_params(which="minor", length=0)
    axes.margins(x=0.01)


def _label_x(upper: "Axes", lower: "Axes", tokens_per_epoch: float | None) -> None:
    """Epochs below and tokens above; only tokens, below, where no epochs are known."""

    def in_tokens(value: float, _: object) -> str:
        return short(value)

    if tokens_per_epoch is None:
        lower.xaxis.set_major_formatter(in_tokens)
        lower.set_xlabel("tokens seen", fontsize=11, color=INK)
        return

    def to_tokens(epochs: Any) -> Any:
        return epochs * tokens_per_epoch

    def to_epochs(tokens: Any) -> Any:
        return tokens / tokens_per_epoch

    lower.set_xlabel("epochs", fontsize=11, color=INK)
    top = upper.secondary_xaxis("top", functions=(to_tokens, to_epochs))
    top.xaxis.set_major_formatter(in_tokens)
    top.set_xlabel("tokens seen", fontsize=11, color=INK, labelpad=8)
    top.tick_params(labelsize=10, color=PALE, labelcolor=INK)
    top.spines["top"].set_color(PALE)


def _save(figure: "Figure", target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    figure.savefig(partial, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.2)
    partial.replace(target)
