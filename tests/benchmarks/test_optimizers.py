"""Muon beside AdamW: validation loss against tokens and seconds, both with the same learning rates tried.

The quickstart model on the embedded corpus, and on tiny Shakespeare where it is to be had.
"""

import pytest

from tests.parity.test_verdict_training import of_kind, train
from tests.unit.data_support import published

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
RATES = (2e-3, 4e-3, 8e-3, 16e-3)
STEPS = 500


def curve(folder, name, rate, corpus):
    """(step, seconds in training, validation loss) of each evaluation."""
    settings = [f"optimizer.name={name}", f"optimizer.learning_rate={rate}", "optimizer.min_learning_rate=1e-4"]
    settings += [f"data.corpus={corpus}", f"training.max_steps={STEPS}", "training.eval_every=50"]
    settings += ["training.sample_every=500", "checkpoint.every=500", "training.eval_batches=50"]
    summary, events = train(folder, "quickstart", *settings)
    each = summary["seconds"] / STEPS
    return [(event["step"], event["step"] * each, event["val_loss"]) for event in of_kind(events, "evaluated")]


@pytest.mark.parametrize("corpus", ["builtin:python-docs", "tinyshakespeare.txt"])
def test_muon_needs_fewer_tokens(corpus, tmp_path):
    """At its best rate it reaches AdamW's last loss, at AdamW's best rate, with at most 0.8 of the tokens."""
    where = corpus if corpus.startswith("builtin:") else published(corpus).resolve()
    best = {}
    for name in ("adamw", "muon"):
        for rate in RATES:
            folder = tmp_path / f"{name}-{rate}"
            folder.mkdir()
            found = curve(folder, name, rate, where)
            print(f"{name:<6} {rate:g}: " + "  ".join(f"{loss:.3f}" for _, _, loss in found[1:]), flush=True)
            best[name] = min(best.get(name, found), found, key=lambda one: one[-1][2])
    goal = best["adamw"][-1][2]
    step, seconds, loss = next(point for point in best["muon"] if point[2] <= goal)
    print(
        f"AdamW: {goal:.3f} after {STEPS} steps and {best['adamw'][-1][1]:.1f} s; "
        f"Muon: {loss:.3f} after {step} and {seconds:.1f} s, {best['muon'][-1][2]:.3f} at the end"
    )

    assert step <= 0.8 * STEPS
