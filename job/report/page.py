"""The page of a run: one file, without scripts, that shows everything its event log tells."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from job.infra.progress import duration, short
from job.report.canvas import COLOURS, TRAIN, Picture
from job.report.copies import make_all
from job.report.costs import Costs, ending_of, measure_costs
from job.report.curves import bits_picture, loss_picture, perplexity_picture, step_picture
from job.report.published import Published, find_published
from job.report.reading import RunHistory, counted, read_history
from job.report.rendering import render
from job.report.timeline import checkpoints_picture, timeline_picture

ROWS = 120  # evaluations in the table; of more, evenly chosen ones
SAMPLES = 24  # likewise
_LONG = 3000  # characters of a sample that are shown
_ENVIRONMENT = ("device", "precision", "threads", "machine", "code", "numerics")


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its event log tells it.

    Args:
        name: What to call it.
        uri: Where it is kept.
    """

    name: str
    uri: str
    history: RunHistory
    costs: Costs
    published: Sequence[Published]


def read_run(content: bytes, uri: str, where: str) -> Run:
    """The run whose `events.jsonl` this is. DataError when it is none."""
    history = read_history(content, where)
    facts = history.facts
    published = find_published(_mapping(facts, "config"), _mapping(facts, "corpus"))
    name = uri.rstrip("/").rpartition("/")[2] or uri
    return Run(name, uri, history, measure_costs(history), published)


def draw_pictures(run: Run, processes: int = 1) -> list[Picture]:
    """Every figure of a run that has something to show, drawn by so many processes that are copies of this one."""
    history = run.history
    pictures: list[Callable[[], Picture | None]] = [
        partial(loss_picture, history, run.published),
        partial(perplexity_picture, history, run.published),
        partial(bits_picture, history),
        partial(step_picture, history, "learning_rate", "Learning rate", "learning rate", TRAIN),
        partial(step_picture, history, "gradient_norm", "Gradient norm", "norm before clipping", TRAIN),
        partial(step_picture, history, "tokens_per_second", "Throughput", "tokens per second", COLOURS["green"][0]),
        partial(checkpoints_picture, history),
        partial(timeline_picture, history, run.costs),
    ]
    return [picture for picture in make_all(pictures, processes) if picture]


def render_page(run: Run, pictures: Sequence[Picture], compared: str = "") -> bytes:
    """`report.html`."""
    history = run.history
    return render(
        "page.html.j2",
        title=run.name,
        run=run,
        status=status_of(history),
        tiles=_tiles(run),
        pictures=pictures,
        notes=_notes(run),
        evaluations=_evaluation_rows(run),
        evaluations_in_all=len(history.evaluations),
        samples=[(s.step, s.prompt, s.text[:_LONG]) for s in evenly(history.samples, SAMPLES)][::-1],
        samples_in_all=len(history.samples),
        attempts=_attempt_rows(run),
        costs=_cost_rows(run.costs),
        saves=_save_facts(history),
        data=_data_rows(history),
        environment=_rows({name: history.facts.get(name) for name in _ENVIRONMENT}),
        config=_rows(_mapping(history.facts, "config")),
        published=run.published,
        compared=compared,
    )


def status_of(history: RunHistory) -> tuple[str, str]:
    """How the run stands, as a class of the style sheet and in words."""
    if not history.attempts:
        return "open", "nothing is known of how it began"
    last = history.attempts[-1]
    if last.code is None:
        return "open", "no end noted: it still runs, or was killed"
    if last.code == 0:
        return "good", "complete"
    return ("open" if last.code == 75 else "bad"), f"ended with {last.code}: {last.reason}"


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """What one wants to know first: name, value, and what belongs to it."""
    history, costs = run.history, run.costs
    end = history.facts.get("end")
    best, speeds = history.best, history.steps["tokens_per_second"]
    known = speeds[np.isfinite(speeds)]
    tiles = [("step", f"{history.step:,}", f"of {end:,}" if isinstance(end, int) else "")]
    if best is not None and best.val_loss is not None:
        tiles.append(("best validation loss", f"{best.val_loss:.4f}", f"at step {best.step:,}"))
        tiles.append(("perplexity", _number(np.exp(min(best.val_loss, 300.0))), "of that"))
        if best.bits_per_byte is not None:
            tiles.append(("bits per byte", f"{best.bits_per_byte:.4f}", "of that"))
    elif best is not None:
        tiles.append(("best training loss", f"{best.train_loss:.4f}", f"at step {best.step:,}"))
    if history.test_loss is not None:
        tiles.append(("test loss", f"{history.test_loss:.4f}", "of the best checkpoint"))
    tokens = history.step * (history.tokens_per_step or 0)
    epochs = f"{tokens / history.tokens_per_epoch:.3g} epochs" if history.tokens_per_epoch else ""
    if tokens:
        tiles.append(("tokens", short(tokens), epochs))
    if len(known):
        tiles.append(("tokens per second", short(float(np.median(known))), "median"))
    if costs.goodput is not None:
        tiles.append(("goodput", f"{costs.goodput:.0%}", f"of {duration(costs.wall)}"))
    if isinstance(parameters := history.facts.get("parameters"), int):
        tiles.append(("parameters", short(parameters), ""))
    return tiles


def _notes(run: Run) -> list[str]:
    history = run.history
    notes = list(history.oddities)
    if not history.evaluations:
        notes.append("nothing has been evaluated yet: the loss is that of single training batches")
    for name, what in (
        ("checkpoint rejected", "checkpoint passed over because it was damaged"),
        ("checkpoint failed", "save lost"),
        ("checkpoint skipped", "checkpoint left out because the one before was still being stored"),
        ("rolled back", "return to an earlier step, because too many in a row were not finite"),
    ):
        if found := history.marks.get(name):
            steps = ", ".join(f"{event['step']:,}" for event in found[:8]) + (", ..." if len(found) > 8 else "")
            noun, _, why = what.partition(" ")
            notes.append(f"{counted(len(found), noun)} {why}: at step {steps}")
    return notes


def _evaluation_rows(run: Run) -> list[list[str]]:
    names = [known.name for known in run.published]
    rows = [["step", "epoch", "train", "validation", "perplexity", *names]]
    per_epoch = run.history.tokens_per_epoch
    for e in evenly(run.history.evaluations, ROWS):
        loss = e.val_loss if e.val_loss is not None else e.train_loss
        rows.append(
            [
                f"{e.step:,}",
                f"{e.tokens / per_epoch:.2f}" if per_epoch and e.tokens == e.tokens else "",
                _loss(e.train_loss),
                _loss(e.val_loss),
                _number(np.exp(min(loss, 300.0))) if loss is not None else "",
                *("" if (value := known.at(e.step)) is None else f"{value:.4g}" for known in run.published),
            ]
        )
    return rows


def _attempt_rows(run: Run) -> list[list[str]]:
    attempts, lost = run.history.attempts, run.costs.interruptions
    rows = []
    for at, attempt in enumerate(attempts):
        cost = lost[at] if at < len(lost) else None
        redone = "" if cost is None else "unknown" if cost.redone_steps is None else f"{cost.redone_steps:,}"
        rows.append(
            [
                str(attempt.number),
                f"{attempt.first_step:,} to {attempt.last_step:,}",
                duration(attempt.seconds),
                ending_of(attempt, at == len(attempts) - 1),
                redone,
                duration(cost.away) if cost else "",
                duration(cost.seconds) if cost else "",
            ]
        )
    return rows


def _cost_rows(costs: Costs) -> list[tuple[str, str, str]]:
    whole = costs.wall or 1.0
    lost = sum(interruption.seconds for interruption in costs.interruptions)
    parts = {
        "steps that count": costs.training,
        **costs.phases,
        "waiting for snapshots": costs.stalled,
        counted(len(costs.interruptions), "interruption"): lost,
    }
    rows = [(name, _span(seconds), f"{seconds / whole:.1%}") for name, seconds in parts.items() if seconds > 0]
    return [*rows, ("in all", _span(costs.wall), "")] if costs.wall else []


def _save_facts(history: RunHistory) -> str:
    if not history.saves:
        return ""
    totals = [save.seconds.get("total", 0.0) for save in history.saves]
    stalls = [save.seconds.get("snapshot", 0.0) for save in history.saves]
    return (
        f"{len(totals)} saved, the last at step {history.saves[-1].step:,}, {short(history.saves[-1].bytes)} bytes; "
        f"median {_span(float(np.median(totals)))}, slowest {_span(max(totals))}; "
        f"training waited {_span(float(np.median(stalls)))} for one, {_span(sum(stalls))} in all"
    )


def _data_rows(history: RunHistory) -> list[tuple[str, str]]:
    corpus = _mapping(history.facts, "corpus")
    rows = [("fingerprint", str(corpus["fingerprint"]))] if corpus.get("fingerprint") else []
    if tokenizer := history.facts.get("tokenizer_sha256"):
        rows.append(("tokenizer", f"{_mapping(history.facts, 'config').get('data', {}).get('tokenizer')} {tokenizer}"))
    for name, facts in _mapping(corpus, "splits").items():
        rows.append((name, ", ".join(f"{value:,} {unit}" for unit, value in facts.items() if isinstance(value, int))))
    if corpus.get("windows"):
        rows.append(("windows of an epoch", f"{corpus['windows']:,}"))
    for file in corpus.get("files") or []:
        rows.append((str(file.get("uri")), f"{file.get('size'):,} bytes, sha256 {file.get('sha256')}"))
    if (count := corpus.get("file_count", 0)) > len(corpus.get("files") or []):
        rows.append(("more files", f"{count - len(corpus['files']):,}"))
    return rows


def _rows(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested values as dotted names."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{before}{name}.")
        elif value is not None:
            rows.append((f"{before}{name}", value if isinstance(value, str) else json.dumps(value)))
    return rows


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))]


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 10_000 else short(value)


def _span(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.3g}s"
