"""Promise 1 with everything that makes steps fast: killed and continued = never stopped, bit for bit."""

import pytest

from tests.chaos.harness import Plan, run, tiny, write_corpus
from tests.chaos.outcome import outcome

SETTINGS = {
    "muon": ("optimizer.name=muon",),
    "bf16, own masks, attention in blocks": (
        "runtime.precision=bf16",
        "model.n_embd=64",
        "model.n_head=4",
        "model.context_length=160",
        "training.max_steps=20",
    ),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_stop_and_a_kill(settings, tmp_path):
    """Stopped at one step and killed at a later one: equal to the run that nothing disturbed."""
    corpus = write_corpus(tmp_path)
    found = []
    for name, plans in (("whole", [Plan()]), ("cut", [Plan(stop_at_step=7), Plan(kill_at=("batch", 6)), Plan()])):
        resolved = tiny(f"{tmp_path}/{name}", corpus, *settings)
        codes = [run(resolved, plan) for plan in plans]
        assert codes == [0] if name == "whole" else [75, -9, 0]
        found.append(outcome(f"{tmp_path}/{name}", tmp_path / f"{name}-files"))

    assert found[1] == found[0]
