"""Pictures of a load test as SVG that takes its colours from the page around it: light, dark, any width."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Load = Mapping[str, Any]

# Stand-ins that no drawing has by chance -> the page's own colours.
INK, PALE = "#010203", "#010204"
SERIES = tuple(f"#0102{number:02x}" for number in range(16, 24))
COLOURS = {INK: "var(--ink)", PALE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}
MOST = len(SERIES)  # loads that are drawn as lines


def plot_latencies(loads: Sequence[Load]) -> str:
    """Which share of requests had their first token, and of gaps between tokens, within a time; empty without any."""
    drawn = [load for load in loads if load["quantiles_ttft_ms"]][:MOST]
    if not drawn:
        return ""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    figure = _figure(6.4, 6.4 + 0.2 * len(drawn))
    upper, lower = figure.subplots(2, 1)
    for axes, name, label in ((upper, "ttft", "time to first token (ms)"), (lower, "itl", "between tokens (ms)")):
        for number, load in enumerate(drawn):
            if values := load[f"quantiles_{name}_ms"]:
                positive = [max(value, 1e-3) for value in values]  # a logarithm has no zero
                axes.plot(positive, range(101), color=SERIES[number], linewidth=1.8, label=load["name"])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(label, color=INK)
        axes.set_ylabel("% within", color=INK)
        axes.set_ylim(0, 100)
        _quieten(axes)
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)
    return _svg(figure, "Share of requests with their first token, and of gaps between tokens, within a time")


def plot_throughput(loads: Sequence[Load]) -> str:
    """Tokens a second that each load reached; empty without loads."""
    drawn = [load for load in loads if load["output_throughput"]]
    if not drawn:
        return ""
    figure = _figure(6.4, 1.1 + 0.42 * len(drawn))
    axes = figure.subplots()
    names, values = [load["name"] for load in drawn], [load["output_throughput"] for load in drawn]
    bars = axes.barh(range(len(drawn)), values, color=SERIES[0], height=0.62)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4, color=INK)
    axes.set_yticks(range(len(drawn)), names)
    axes.invert_yaxis()
    axes.set_xlabel("new tokens a second", color=INK)
    axes.margins(x=0.12)
    _quieten(axes)
    axes.grid(visible=False, axis="y")
    return _svg(figure, "New tokens a second under each load")


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and needed only to draw

    return Figure(figsize=(width, height), layout="constrained")


def _quieten(axes: "Axes") -> None:
    axes.set_facecolor("none")
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(which="both", color=PALE, labelcolor=INK)
    axes.tick_params(which="minor", length=0)
    axes.xaxis.set_minor_formatter("")


def _svg(figure: "Figure", described: str) -> str:
    """The figure as an element of a page: text as text, colours as the page's, no fixed size."""
    from matplotlib import rc_context  # noqa: PLC0415

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": described}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg [^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    for stand_in, colour in COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{described}" ', 1)
