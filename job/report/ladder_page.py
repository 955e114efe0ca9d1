"""The ladder's page: one file with table, picture, what each rung is for, what it did, and what its model writes."""

from collections.abc import Mapping
from typing import Any

from job.report.canvas import Picture
from job.report.ladder_table import Row, Summary
from job.report.rendering import render


def write_page(summary: Summary, picture: Picture) -> bytes:
    """The page as HTML that needs no other file."""
    return render(
        "ladder.html.j2",
        title="From a bigram to a GPT",
        text=_text(summary.about),
        seeds=len(summary.about["seeds"]),
        picture=picture,
        rungs=[_rung(row, said) for row, said in zip(summary.rows, summary.happened(), strict=True)],
    )


def _rung(row: Row, said: str) -> dict[str, Any]:
    return {
        "id": row.name.replace(" ", "-"),
        "row": row,
        "said": said,
        "losses": ", ".join(f"{loss:.3f}" for loss in row.val_losses),
        "trained": f"{row.steps:,} steps in {sum(row.seconds) / len(row.seconds):.0f} s on {row.device}",
        "sample": row.sample.strip(),
    }


def _text(about: Mapping[str, Any]) -> str:
    tokens = ", ".join(f"{count:,} {name}" for name, count in about["tokens"].items() if count)
    corpus = ", ".join(about["corpus"])
    return f"Text: {corpus}; {about['vocabulary']:,} kinds of tokens; {tokens}."
