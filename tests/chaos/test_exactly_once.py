"""Promise 3, by force: however often a run is killed, each window of its text is trained on once per epoch, in order.

What is compared is the text itself: the tokens that went through the model, taken where the gradients are made, with
those that the order of the data names. The steps that count are those of the line that was continued: what an attempt
did beyond the checkpoint from which the next one went on is left out.
"""

import itertools
import json
import os
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from job.data.order import Order
from tests.chaos.harness import Plan, run, tiny

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SCALE = int(os.environ.get("CHAOS_SCALE", "1"))
STEPS, BATCH, LENGTH = 56, 4, 64
WINDOWS = 74  # of an epoch: the run ends in the first batch after the third
SETTINGS = (f"training.max_steps={STEPS}", "checkpoint.every=1", "training.eval_every=28", "training.eval_batches=1")


@pytest.fixture(scope="module")
def in_order(corpus):
    """The windows of the text in the order in which the run has to read them."""
    split = corpus.read_bytes()[: int(0.8 * 6000)]
    order = Order("windows", len(split), LENGTH, LENGTH, tiny("run", corpus).config.seed)
    assert order.windows == WINDOWS
    return [split[start : start + LENGTH + 1] for start in order.starts(np.arange(STEPS * BATCH))]


@dataclass(frozen=True)
class Trained:
    """The steps that count, the windows they were trained on, and the steps from which attempts went on."""

    steps: list[int]
    windows: list[bytes]
    began_at: list[int]


def trained(path):
    """What the attempts of a run have noted in the file."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    counting: list[tuple[int, list[bytes]]] = []
    began_at = []
    for _, attempt in itertools.groupby(lines, key=lambda noted: noted[0]):
        made = [(step, [bytes(window) for window in windows]) for _, step, windows in attempt]
        began_at.append(made[0][0])
        counting = [before for before in counting if before[0] < began_at[-1]] + made
    steps, windows = zip(*counting, strict=True)
    return Trained(list(steps), list(itertools.chain(*windows)), began_at)


def place(pick):
    """Somewhere among the batches, or as one of the first checkpoints lands: so that the run gets on."""
    return pick.choice([("batch", pick.randrange(1, 30)), ("after create log", pick.randrange(1, 8))])


def killed_runs(folder, corpus, kills, settings):
    """Run, and kill somewhere, as many runs as it takes for so many kills; what each was trained on."""
    pick, left = random.Random(f"{SEED} {settings}"), kills
    for number in itertools.count():
        resolved = tiny(f"{folder}/run{number}", corpus, *SETTINGS, *settings)
        noted, code = folder / f"data{number}", None
        while code != 0:
            code = run(resolved, Plan(kill_at=place(pick) if left else None, trained=noted))
            left -= code == -9
        yield trained(noted)
        if not left:
            return


CASES = [(0, 2, 34), (2, 1, 16)]  # workers, sequences of a pass (of a batch of 4), kills
LONG = [(0, 2, 250 * SCALE), (2, 1, 250 * SCALE)]


@pytest.mark.parametrize(
    ("workers", "rows", "kills"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG)]
)
def test_every_window_is_trained_on_once_and_in_its_turn(in_order, corpus, tmp_path, workers, rows, kills):
    """Over three epochs and many kills nothing is lost, nothing is repeated, and the order is that of the seed."""
    settings = (f"data.workers={workers}", f"training.micro_batch_size={rows}")
    runs = list(killed_runs(tmp_path, corpus, kills, settings))

    replay = f"CHAOS_SEED={SEED} pytest {__file__} -k '{workers}-{rows}-{kills}'"
    for made in runs:
        assert made.steps == list(range(STEPS)), replay
        assert made.windows == in_order, replay
        assert set(Counter(made.windows[: 3 * WINDOWS]).values()) == {3}, replay
    assert max(step * BATCH // WINDOWS for made in runs for step in made.began_at) > 0, f"first epoch only: {replay}"
