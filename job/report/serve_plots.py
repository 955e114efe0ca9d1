"""Figures of a load test: tokens a second of each load, and how long its requests waited."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from job.report import canvas
from job.report.canvas import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Load = Mapping[str, Any]
MOST = len(canvas.SERIES)  # loads that are drawn as lines
_WAITS = {
    "ttft": ("Time to first token", "milliseconds to the first token"),
    "itl": ("Between tokens", "milliseconds between tokens"),
}


def draw_loads(loads: Sequence[Load]) -> list[Picture]:
    """Every figure of the loads that has something to show."""
    pictures = [_throughput(loads), *(_within(loads, name) for name in _WAITS)]
    return [picture for picture in pictures if picture]


def _throughput(loads: Sequence[Load]) -> Picture | None:
    """Tokens a second that each load reached."""
    drawn = [load for load in loads if load["output_throughput"]]
    if not drawn:
        return None
    values = [load["output_throughput"] for load in drawn]

    def paint(axes: "Axes") -> None:
        bars = axes.barh(range(len(drawn)), values, color=canvas.TRAIN, height=0.62)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4, color=canvas.INK)
        axes.set_yticks(range(len(drawn)), [load["name"] for load in drawn])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.grid(visible=False, axis="y")
        canvas.in_short(axes, "x")
        canvas.label(axes, "new tokens a second")

    said = "; ".join(f"{load['name']} {value:,.0f}" for load, value in zip(drawn, values, strict=True))
    return canvas.draw(
        "throughput", "Throughput", f"New tokens a second: {said}", paint, height=0.9 + 0.36 * len(drawn)
    )


def _within(loads: Sequence[Load], name: str) -> Picture | None:
    """Which share of what is measured came within a time."""
    quantiles = f"quantiles_{name}_ms"
    drawn = [load for load in loads if load[quantiles]][:MOST]
    if not drawn:
        return None
    title, below = _WAITS[name]

    def paint(axes: "Axes") -> None:
        from matplotlib.ticker import LogLocator  # noqa: PLC0415

        for load, colour in zip(drawn, canvas.SERIES, strict=False):
            positive = [max(value, 1e-3) for value in load[quantiles]]  # a logarithm has no zero
            axes.plot(positive, range(101), color=colour, linewidth=1.6, label=load["name"])
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_ylim(0, 100)
        canvas.label(axes, below, "% within")
        canvas.explain(axes)

    text = f"{title}, the median: " + "; ".join(f"{load['name']} {load[quantiles][50]:.3g} ms" for load in drawn)
    return canvas.draw(f"within_{name}", title, text, paint)
