"""Several runs in one page: their losses over tokens, what came out, and which settings differ."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from job.infra.progress import duration, short
from job.report.canvas import Picture
from job.report.curves import overlay_picture
from job.report.page import Run, status_of
from job.report.rendering import render

Named = tuple[str, Run]


def render_comparison(runs: Sequence[Run]) -> dict[str, bytes]:
    """`compare.html` and its pictures, by name."""
    named = list(zip(_labels(runs), runs, strict=True))
    pictures = _pictures(named)
    page = render(
        "compare.html.j2",
        title=f"{len(runs)} runs",
        runs=[(name, run.uri) for name, run in named],
        pictures=pictures,
        outcomes=_outcomes(named),
        settings=_differences(named),
        notes=[f"{name}: {note}" for name, run in named for note in run.history.oddities],
    )
    return {"compare.html": page, **{f"{picture.name}.png": picture.png for picture in pictures}}


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart: more of the address where the last part is not enough."""
    for parts in range(1, 6):
        labels = ["/".join(run.uri.rstrip("/").split("/")[-parts:]) for run in runs]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{at}: {run.name}" for at, run in enumerate(runs, 1)]


def _pictures(named: Sequence[Named]) -> list[Picture]:
    losses = {
        "compare_validation_loss": ("Validation loss", "val_loss", "nats per token"),
        "compare_train_loss": ("Training loss", "train_loss", "nats per token"),
        "compare_bits_per_byte": ("Bits per byte", "bits_per_byte", "bits per byte"),
    }
    pictures = [
        overlay_picture(file, title, y, [(name, *_evaluated(run, value)) for name, run in named])
        for file, (title, value, y) in losses.items()
    ]
    steps = {
        "compare_batch_loss": ("Loss of single batches", "loss", "nats per token"),
        "compare_throughput": ("Throughput", "tokens_per_second", "tokens per second"),
    }
    pictures += [
        overlay_picture(
            file, title, y, [(name, run.history.steps["tokens"], run.history.steps[column]) for name, run in named]
        )
        for file, (title, column, y) in steps.items()
    ]
    return [picture for picture in pictures if picture]


def _evaluated(run: Run, value: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(e.tokens, getattr(e, value)) for e in run.history.evaluations if getattr(e, value) is not None]
    return np.array([x for x, _ in found], dtype=np.float64), np.array([y for _, y in found], dtype=np.float64)


def _outcomes(named: Sequence[Named]) -> list[list[str]]:
    rows = [["run", "stands", "step", "tokens", "best validation", "bits per byte", "tokens/s", "training", "goodput"]]
    for name, run in named:
        history, best = run.history, run.history.best
        speeds = history.steps["tokens_per_second"]
        known = speeds[np.isfinite(speeds)]
        rows.append(
            [
                name,
                status_of(history)[1],
                f"{history.step:,}",
                short(history.step * (history.tokens_per_step or 0)),
                f"{best.val_loss:.4f} at {best.step:,}" if best and best.val_loss is not None else "",
                f"{best.bits_per_byte:.4f}" if best and best.bits_per_byte is not None else "",
                short(float(np.median(known))) if len(known) else "",
                duration(run.costs.training),
                f"{run.costs.goodput:.0%}" if run.costs.goodput is not None else "",
            ]
        )
    return rows


def _differences(named: Sequence[Named]) -> list[list[str]]:
    """Settings that are not the same in all runs, and what else tells them apart."""
    flat = {name: _flat(run.history.facts) for name, run in named}
    settings = sorted({setting for values in flat.values() for setting in values})
    rows = [["setting", *flat]]
    for setting in settings:
        values = [flat[name].get(setting, "") for name in flat]
        if len(set(values)) > 1:
            rows.append([setting, *values])
    return rows


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    config = facts.get("config")
    values: dict[str, str] = {}
    for section, entries in (config if isinstance(config, Mapping) else {}).items():
        if isinstance(entries, Mapping):
            values |= {f"{section}.{name}": json.dumps(value) for name, value in entries.items()}
        elif section != "run_uri":
            values[section] = json.dumps(entries)
    corpus = facts.get("corpus")
    fingerprint = corpus.get("fingerprint") if isinstance(corpus, Mapping) else None
    told = {name: facts[name] for name in ("device", "precision", "threads", "parameters") if name in facts}
    values |= {name: str(value) for name, value in told.items()}
    return values | ({"corpus fingerprint": str(fingerprint)[:12]} if fingerprint else {})
