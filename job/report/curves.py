"""Figures of what was measured while a run trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from job.infra.progress import short
from job.report import canvas
from job.report.canvas import Picture
from job.report.published import Published
from job.report.reading import RunHistory
from job.report.thinning import MANY, thin, typical

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 40  # evaluations that are still drawn with markers
_HUGE = 300.0  # nats, beyond which a perplexity is not drawn as it is


@dataclass(frozen=True, slots=True)
class Scale:
    """The axis below: epochs where they are known, else tokens.

    Args:
        tokens_per_epoch: None where no epoch is known.
    """

    tokens_per_epoch: float | None

    def __call__(self, tokens: Any) -> np.ndarray:
        """Where tokens lie on it."""
        return np.asarray(tokens, dtype=np.float64) / (self.tokens_per_epoch or 1.0)

    def label(self, axes: "Axes", y: str) -> None:
        """Epochs below and tokens above; only tokens, below, where no epochs are known."""
        if self.tokens_per_epoch is None:
            canvas.in_short(axes, "x")
            canvas.label(axes, "tokens seen", y)
            return
        per_epoch = self.tokens_per_epoch
        canvas.label(axes, "epochs", y)
        top = axes.secondary_xaxis("top", functions=_times(per_epoch))
        top.xaxis.set_major_formatter(lambda value, _: short(value))
        top.set_xlabel("tokens seen", fontsize=9.5, color=canvas.INK)
        top.tick_params(labelsize=9.5, color=canvas.PALE, labelcolor=canvas.INK)
        top.spines["top"].set_color(canvas.PALE)


def loss_picture(history: RunHistory, published: Sequence[Published]) -> Picture | None:
    """Loss over epochs and tokens: each batch pale, evaluations in front, what others published in grey."""
    scale = Scale(history.tokens_per_epoch)
    steps = thin(history.steps["tokens"], history.steps["loss"])
    evaluated = _evaluated(history, "train_loss"), _evaluated(history, "val_loss")
    if not len(steps[0]) and not len(evaluated[0][0]) and not len(evaluated[1][0]):
        return None

    def paint(axes: "Axes") -> None:
        axes.plot(
            scale(steps[0]), steps[1], color=canvas.STEPS, linewidth=0.8, label=_if_any(steps, "train, one batch")
        )
        _paint_published(axes, scale, history, published)
        _paint_evaluated(axes, scale, *evaluated)
        _paint_skipped(axes, scale, history)
        scale.label(axes, "loss (nats per token)")
        canvas.explain(axes, "upper right")

    return canvas.draw("loss", "Loss", _say("Loss", *evaluated), paint)


def perplexity_picture(history: RunHistory, published: Sequence[Published]) -> Picture | None:
    """Perplexity at each evaluation."""
    scale = Scale(history.tokens_per_epoch)
    curves = [
        (x, np.exp(np.minimum(y, _HUGE)))
        for x, y in (_evaluated(history, "train_loss"), _evaluated(history, "val_loss"))
    ]
    values = np.concatenate([y for _, y in curves])
    if not len(values):
        return None

    def paint(axes: "Axes") -> None:
        _paint_published(axes, scale, history, published, math.exp)
        _paint_evaluated(axes, scale, *curves)
        canvas.use_decades(axes, float(values.min()), float(values.max()))
        scale.label(axes, "perplexity")
        canvas.explain(axes, "upper right")

    return canvas.draw("perplexity", "Perplexity", _say("Perplexity", *curves), paint)


def bits_picture(history: RunHistory) -> Picture | None:
    """Bits per byte of the validation split: comparable over tokenizers."""
    points = _evaluated(history, "bits_per_byte")
    if not len(points[0]):
        return None
    scale = Scale(history.tokens_per_epoch)

    def paint(axes: "Axes") -> None:
        _line(axes, scale, points, canvas.VALIDATION, None)
        scale.label(axes, "bits per byte")

    return canvas.draw("bits_per_byte", "Bits per byte", _say("Bits per byte", points), paint)


def step_picture(history: RunHistory, column: str, title: str, y: str, colour: str) -> Picture | None:
    """One value of each logged step."""
    points = thin(history.steps["tokens"], history.steps[column])
    if not len(points[0]):
        return None
    scale = Scale(history.tokens_per_epoch)

    def paint(axes: "Axes") -> None:
        many, marker = len(points[0]) > MANY and column != "learning_rate", "o" if len(points[0]) == 1 else None
        axes.plot(scale(points[0]), points[1], color=canvas.BAND if many else colour, linewidth=0.9, marker=marker)
        if many:
            middle = typical(history.steps["tokens"], history.steps[column])
            axes.plot(scale(middle[0]), middle[1], color=colour, linewidth=1.6)
        positive = points[1][points[1] > 0]
        if column == "gradient_norm" and len(positive):
            canvas.use_decades(axes, float(positive.min()), float(positive.max()))
        else:
            _from_zero(axes, points[1])
        if column == "tokens_per_second":
            _paint_mfu(axes, history)
        scale.label(axes, y)

    return canvas.draw(column, title, _say(title, points), paint)


def overlay_picture(
    name: str, title: str, y: str, runs: Sequence[tuple[str, np.ndarray, np.ndarray]]
) -> Picture | None:
    """The same value of several runs over tokens, a colour each: (label, tokens, values)."""
    known = [(run, *thin(x, values)) for run, x, values in runs]
    if not any(len(x) for _, x, _ in known):
        return None

    def paint(axes: "Axes") -> None:
        for at, (run, x, values) in enumerate(known):
            marker = "o" if len(x) <= FEW else None
            dashes = "-" if at < len(canvas.SERIES) else "--"
            colour = canvas.SERIES[at % len(canvas.SERIES)]
            axes.plot(x, values, dashes, color=colour, linewidth=1.5, marker=marker, markersize=3, label=run)
        canvas.in_short(axes, "x")
        canvas.label(axes, "tokens seen", y)
        canvas.explain(axes)

    said = "; ".join(f"{run} ends at {values[-1]:.4g}" for run, _, values in known if len(values))
    return canvas.draw(name, title, f"{title} of each run: {said}", paint)


def _evaluated(history: RunHistory, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(e.tokens, getattr(e, name)) for e in history.evaluations if getattr(e, name) is not None]
    x, y = (np.array(column, dtype=np.float64) for column in (zip(*found, strict=True) if found else ((), ())))
    return thin(x, y)


def _paint_evaluated(axes: "Axes", scale: Scale, train: Any, validation: Any) -> None:
    _line(axes, scale, train, canvas.TRAIN, "train")
    _line(axes, scale, validation, canvas.VALIDATION, "validation")


def _line(axes: "Axes", scale: Scale, points: Any, colour: str, name: str | None) -> None:
    marker = "o" if len(points[0]) <= FEW else None
    label = _if_any(points, name)
    axes.plot(scale(points[0]), points[1], color=colour, linewidth=1.6, marker=marker, markersize=3.2, label=label)


def _paint_published(
    axes: "Axes", scale: Scale, history: RunHistory, published: Sequence[Published], of: Any = lambda loss: loss
) -> None:
    """What others reached, behind ours."""
    dashes = ["--", ":", "-.", (0, (1, 4))]
    for style, known in zip(dashes, published, strict=False):
        if known.curve and history.tokens_per_step:
            x = scale([step * history.tokens_per_step for step, _, _ in known.curve])
            for losses, way in (([v for _, _, v in known.curve], "-"), ([t for _, t, _ in known.curve], ":")):
                name = f"{known.name}, {'validation' if way == '-' else 'train'}"
                axes.plot(x, [of(loss) for loss in losses], way, color=canvas.PUBLISHED, linewidth=1.6, label=name)
        elif known.val_loss is not None:
            name = f"{known.name}: {of(known.val_loss):.4g}"
            axes.axhline(of(known.val_loss), linestyle=style, color=canvas.PUBLISHED, linewidth=1.4, label=name)


def _paint_skipped(axes: "Axes", scale: Scale, history: RunHistory) -> None:
    """Steps without an update, at the bottom."""
    if not history.tokens_per_step or not (skipped := history.marks.get("step skipped")):
        return
    x = scale(sorted({event["step"] * history.tokens_per_step for event in skipped}))
    bottom = axes.get_xaxis_transform()
    axes.plot(
        x, np.full(len(x), 0.02), "x", color=canvas.BAD, markersize=4, transform=bottom, label="skipped: not finite"
    )


def _paint_mfu(axes: "Axes", history: RunHistory) -> None:
    """The share of the device's peak on the right, where it is known: it goes with the speed."""
    mfu, speed = history.steps["mfu"], history.steps["tokens_per_second"]
    known = np.isfinite(mfu) & np.isfinite(speed) & (mfu > 0)
    if not known.any():
        return
    ratio = float(np.median(mfu[known] / speed[known])) * 100
    right = axes.secondary_yaxis("right", functions=_times(ratio))
    right.set_ylabel("MFU (%)", fontsize=9.5, color=canvas.INK)
    right.spines["right"].set_color(canvas.PALE)
    right.tick_params(labelsize=9.5, color=canvas.PALE, labelcolor=canvas.INK)


def _times(factor: float) -> Any:
    """There and back, for an axis in another unit."""
    return (lambda x: x * factor), (lambda x: x / factor)


def _from_zero(axes: "Axes", values: np.ndarray) -> None:
    axes.set_ylim(0, float(values.max()) * 1.08 or 1.0)
    if values.max() >= 1000:
        canvas.in_short(axes, "y")


def _if_any(points: Any, name: str | None) -> str | None:
    return name if len(points[0]) else None


def _say(title: str, *curves: tuple[np.ndarray, np.ndarray]) -> str:
    """The curves in words."""
    ends = [f"from {y[0]:.4g} to {y[-1]:.4g}, lowest {y.min():.4g}" for _, y in curves if len(y)]
    return f"{title}: " + "; ".join(ends)
