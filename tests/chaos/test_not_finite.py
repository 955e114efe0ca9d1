"""Numbers that are not numbers: in the loss, in one gradient, in the optimizer's state, and a spike that is finite.

Whatever it was and wherever it came, nothing that is not finite is ever on storage, and what the run does about it is
the same whether it was stopped on the way or not.
"""

import json
import math
import os
import random

import pytest
import torch
from safetensors.torch import load_file

from job.errors import DivergedError
from tests.chaos.harness import Plan, run, tiny
from tests.chaos.outcome import outcome

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SCALE = int(os.environ.get("CHAOS_SCALE", "1"))
SETTINGS = ("training.max_nonfinite_steps=3", "checkpoint.keep_last=50", "observe.log_every=2")
HARMS = {
    "NaN in the loss": lambda k: Plan(bad_data=range(k, k + 4)),
    "infinite loss": lambda k: Plan(bad_data=range(k, k + 4), value=math.inf),
    "NaN in a gradient": lambda k: Plan(bad_data=range(k, k + 4), harm="gradient"),
    "infinite gradient": lambda k: Plan(bad_data=range(k, k + 4), harm="gradient", value=-math.inf),
    "one bad step": lambda k: Plan(bad_data=range(k, k + 1)),
    "spike": lambda k: Plan(bad_data=range(k, k + 4), harm="spike"),
    "NaN in the optimizer": lambda k: Plan(bad_state_at=k),
    "infinite optimizer": lambda k: Plan(bad_state_at=k, value=math.inf),
}


def events(folder, name):
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def not_finite(folder):
    """Files under the run's address that hold a number that is none, or an infinite one."""
    stored = sorted((folder / "run" / "data").rglob("*.safetensors"))
    assert stored
    return [path for path in stored if not all(torch.isfinite(tensor).all() for tensor in load_file(path).values())]


def both_ways(folder, corpus, harm, k, stop):
    """The harm from step `k` on, to a run that nobody stops and to one stopped at step `stop`: what is wrong."""
    plan, outcomes, bad, codes = HARMS[harm](k), [], [], []
    for name, stops in (("whole", [None]), ("stopped", [stop, None])):
        resolved = tiny(f"{folder}/{name}/run", corpus, *SETTINGS)
        codes += [run(resolved, Plan(**{**vars(plan), "stop_at_step": stop_at})) for stop_at in stops]
        outcomes.append(outcome(resolved.config.run_uri, folder / name / "files"))
        bad += not_finite(folder / name)
    wrong = {"not finite": bad} if bad else {}
    wrong |= {"codes": codes} if codes != [0, 75, 0] else {}
    return wrong | ({"differ": outcomes} if outcomes[0] != outcomes[1] else {})


@pytest.mark.parametrize("harm", HARMS)
def test_a_bad_state_is_never_saved_and_the_way_out_is_always_the_same(corpus, tmp_path, harm):
    """Harm at a step that the seed draws: all that is stored is finite, and stopped or not, the end is equal."""
    pick = random.Random(f"{SEED} {harm}")
    k, stop = pick.randrange(2, 30), pick.randrange(1, 38)

    assert not both_ways(tmp_path, corpus, harm, k, stop), f"CHAOS_SEED={SEED}: from step {k}, stopped at {stop}"


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_at_every_step(corpus, tmp_path, harm):
    """The same for harm at each step, stopped before, at, among and after the bad ones."""
    pick, wrong = random.Random(f"{SEED} {harm}"), {}
    for k in range(1, 34):
        for stop in [pick.randrange(k), k, k + 1, k + 2, pick.randrange(k + 3, 38)][: 1 + 4 * SCALE]:
            if found := both_ways(tmp_path / f"{k}-{stop}", corpus, harm, k, stop):
                wrong[k, stop] = found

    assert not wrong, f"CHAOS_SEED={SEED}"


def test_a_single_bad_step_is_skipped_and_nothing_else(corpus, tmp_path):
    """One batch that gives no finite loss costs its own update: no way back, no end."""
    assert run(tiny(f"{tmp_path}/run", corpus, *SETTINGS), Plan(bad_data=range(12, 13))) == 0

    assert [event["step"] for event in events(tmp_path, "step skipped")] == [13]
    assert not events(tmp_path, "rolled back")


def test_a_spike_is_trained_on(corpus, tmp_path):
    """Gradients that are huge and finite are clipped like others: nothing is skipped."""
    assert run(tiny(f"{tmp_path}/run", corpus, *SETTINGS), Plan(bad_data=range(11, 12), harm="spike")) == 0

    norms = {event["step"]: event["gradient_norm"] for event in events(tmp_path, "step")}
    assert norms[12] > 1e12
    assert not events(tmp_path, "step skipped")


def test_a_state_gone_bad_is_gone_back_from(corpus, tmp_path):
    """NaN in the optimizer: the save that is due is lost as not finite, and the run goes back to a good checkpoint."""
    settings = ("training.max_nonfinite_steps=3", "checkpoint.keep_last=50")
    assert run(tiny(f"{tmp_path}/run", corpus, *settings), Plan(bad_state_at=14)) == 0

    (rolled_back,) = events(tmp_path, "rolled back")
    assert (rolled_back["step"], rolled_back["skipping_from"]) == (18, 15)
    assert {event["reason"] for event in events(tmp_path, "checkpoint failed")} <= {"not_finite"}


@pytest.mark.parametrize("k", [0, 13])
def test_data_that_stays_bad_ends_the_run_the_same_way(corpus, tmp_path, k):
    """With everything bad from a step on, the run ends with 70 after as many ways back as are allowed, twice alike."""
    ways = []
    for name in ("one", "two"):
        resolved = tiny(f"{tmp_path}/{name}/run", corpus, *SETTINGS, "training.max_rollbacks=2")
        assert run(resolved, Plan(bad_data=range(k, 100), harm="gradient")) == DivergedError.exit_code
        found = events(tmp_path / name, "rolled back")
        ways.append([(event["step"], event["skipping_from"], event["samples_passed_over"]) for event in found])

    assert len(ways[0]) == 2
    assert ways[0] == ways[1]
