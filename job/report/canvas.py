"""One style for every figure, drawn once: as SVG that takes its colours from the page, and as PNG on white.

A figure is small on purpose: it fills a phone at its own size, and a desktop shows two beside each other.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from job.infra.progress import duration, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

WIDTH, HEIGHT = 4.9, 3.3  # inches of 72 CSS pixels
DPI = 200

# Names as the page's style sheet has them: the colour on white, and the one on black (Okabe and Ito's, made lighter).
COLOURS = {
    "ink": ("#3d3d3d", "#d6d6d6"),
    "pale": ("#9a9a99", "#6f6f6e"),
    "grid": ("#e6e6e5", "#33373d"),
    "train": ("#0072b2", "#56b4e9"),
    "steps": ("#a9cbe2", "#3f7496"),
    "band": ("#cfd8dc", "#3a444b"),
    "validation": ("#d55e00", "#f08a3c"),
    "published": ("#8c8c8b", "#a3a3a2"),
    "bad": ("#b00020", "#ff6b7a"),
    "green": ("#009e73", "#2fc79c"),
    "pink": ("#cc79a7", "#dd9bbf"),
    "yellow": ("#c9a400", "#f0e442"),
    "violet": ("#6a51a3", "#a693d6"),
    "brown": ("#8c5a2b", "#c89868"),
}
INK, PALE, GRID = (COLOURS[name][0] for name in ("ink", "pale", "grid"))
TRAIN, STEPS, BAND, VALIDATION, PUBLISHED, BAD = (
    COLOURS[name][0] for name in ("train", "steps", "band", "validation", "published", "bad")
)
SERIES = [COLOURS[name][0] for name in ("train", "validation", "green", "pink", "yellow", "violet", "brown")]
_NAMES = {light: name for name, (light, _) in COLOURS.items()}
_FONT = 9.5
_SMALL_FONT = 8.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure, ready to be shown.

    Args:
        name: Of its file, without suffix.
        title: What it shows.
        text: The same for those who do not see it.
    """

    name: str
    title: str
    text: str
    svg: str
    png: bytes


def draw(name: str, title: str, text: str, paint: Callable[["Axes"], None], *, height: float = HEIGHT) -> Picture:
    """The picture that `paint` makes on empty axes."""
    import matplotlib as mpl  # noqa: PLC0415 - slow, and needed only to draw
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context():
        mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": _FONT})
        mpl.rcParams.update({"path.simplify": False, "text.parse_math": False})  # a name may hold a dollar
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        axes = figure.subplots()
        quieten(axes)
        paint(axes)
        return Picture(name=name, title=title, text=text, svg=_svg(figure, text), png=_png(figure, title))


def quieten(axes: "Axes") -> None:
    """Leave only what helps to read a curve."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(labelsize=_FONT, color=PALE, labelcolor=INK)
    axes.tick_params(which="minor", length=0)
    axes.margins(x=0.01)


def label(axes: "Axes", x: str, y: str = "") -> None:
    """Name the axes."""
    axes.set_xlabel(x, fontsize=_FONT, color=INK)
    axes.set_ylabel(y, fontsize=_FONT, color=INK)


def explain(axes: "Axes", where: Literal["best", "upper right"] = "best") -> None:
    """A legend, where there is something to tell apart."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=where, frameon=False, fontsize=_FONT, labelcolor=INK, handlelength=1.4)


def explain_above(axes: "Axes", handles: Sequence["Patch"] | None = None) -> None:
    """The same above the axes, in a row; of these patches, where they are given."""
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        frameon=False,
        fontsize=_SMALL_FONT,
        labelcolor=INK,
        handlelength=1.0,
        borderaxespad=0.2,
    )


def in_short(axes: "Axes", which: str) -> None:
    """Write the numbers of an axis as 512, 45.2k, 384M."""
    (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(lambda value, _: short(value))


def in_time(axes: "Axes", seconds: float) -> None:
    """Write the numbers below as seconds, minutes, hours, where clocks have them round."""
    from matplotlib.ticker import MultipleLocator  # noqa: PLC0415

    units = (1, 60, 3600, 86400)
    steps = [step * unit for unit in units for step in (1, 2, 5, 10, 15, 30) if step * unit < 86400 or unit == 86400]
    axes.xaxis.set_major_locator(MultipleLocator(next((s for s in sorted(steps) if seconds / s <= 5), seconds / 5)))
    axes.xaxis.set_major_formatter(lambda value, _: duration(max(0.0, value)))


def use_decades(axes: "Axes", low: float, high: float) -> None:
    """A logarithmic height, where the values span more than a decade."""
    if low <= 0 or high <= 10 * low:
        return
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 1000 * low else (1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    in_short(axes, "y")


def _lay_out(figure: "Figure") -> None:
    """Make room for all that is written around the axes; `savefig`, asked for it, would draw everything twice."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    ConstrainedLayoutEngine().execute(figure)


def _svg(figure: "Figure", text: str) -> str:
    """Inline SVG: scales with the page, takes its colours and its font."""
    from html import escape  # noqa: PLC0415

    file = io.StringIO()
    _lay_out(figure)
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"#[0-9a-f]{6}", lambda found: _variable(found[0]), svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1)


def _variable(colour: str) -> str:
    return f"var(--{_NAMES[colour]})" if colour in _NAMES else colour


def _png(figure: "Figure", title: str) -> bytes:
    file = io.BytesIO()
    figure.suptitle(title, fontsize=_FONT + 1.5, color=INK, x=0.01, ha="left")
    _lay_out(figure)
    figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
    return file.getvalue()
