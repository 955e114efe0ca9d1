"""The ladder's page: one file with table, picture, what each rung is for, what it did, and what its model writes."""

import base64
from html import escape
from typing import Any

from job.report.ladder_table import Row, Summary

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --pale: #666; --line: #ddd; --ground: #fff; --sample: #f5f5f3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --pale: #999; --line: #444; --ground: #1b1b1b; --sample: #262626 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .2rem }
p { margin: .3rem 0 } .pale { color: var(--pale) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600 } .number { text-align: right }
img { width: 100%; height: auto; border-radius: 6px; margin: 1.5rem 0 }
pre { background: var(--sample); padding: .7rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem; margin: .5rem 0 }
a { color: inherit }
"""


def write_page(summary: Summary, picture: bytes) -> str:
    """The page as HTML that needs no other file."""
    about = summary.about
    seeds = len(about["seeds"])
    image = base64.b64encode(picture).decode()
    rungs = "\n".join(_rung(row, said) for row, said in zip(summary.rows, summary.happened(), strict=True))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The ladder</title>
<style>{_STYLE}</style>
<h1>From a bigram to a GPT</h1>
<p>Every rung has all that the rungs before it have, and one thing more. All are trained alike, each with
{seeds} seed{"" if seeds == 1 else "s"}; losses are nats per token, measured at the end and without dropout.
Not every rung lowers the loss, and not every one is meant to.</p>
<p class="pale">{_text(about)}</p>
<div class="scroll">
<table>
<tr><th>rung<th>new<th class="number">parameters<th class="number">train<th class="number">validation<th>than before
{_lines(summary)}
</table>
</div>
<img alt="Loss of every rung" src="data:image/png;base64,{image}">
{rungs}
</html>
"""


def _lines(summary: Summary) -> str:
    said = ["", *summary.happened()[1:]]
    return "\n".join(
        f'<tr><td><a href="#{_id(row)}">{escape(row.name)}</a><td>{escape(row.new)}'
        f'<td class="number">{row.parameters:,}<td class="number">{row.train_loss:.3f}'
        f'<td class="number">{row.val_loss:.3f} ± {row.spread:.3f}<td>{change}'
        for row, change in zip(summary.rows, said, strict=True)
    )


def _rung(row: Row, said: str) -> str:
    losses = ", ".join(f"{loss:.3f}" for loss in row.val_losses)
    trained = f"{row.steps:,} steps in {sum(row.seconds) / len(row.seconds):.0f} s on {escape(row.device)}"
    sample = f"<pre>{escape(row.sample.strip())}</pre>" if row.sample.strip() else ""
    return f"""<h2 id="{_id(row)}">{escape(row.name)}: {escape(row.new)}</h2>
<p>{escape(row.purpose)}</p>
<p class="pale">Validation {losses}: {escape(said)}. {row.parameters:,} parameters; {trained}.</p>
{sample}"""


def _text(about: dict[str, Any] | Any) -> str:
    tokens = ", ".join(f"{count:,} {name}" for name, count in about["tokens"].items() if count)
    corpus = ", ".join(about["corpus"])
    return escape(f"Text: {corpus}; {about['vocabulary']:,} kinds of tokens; {tokens}.")


def _id(row: Row) -> str:
    return row.name.replace(" ", "-")
