"""The picture of a run's losses, from its event log alone."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from job.report.plots import plot_losses, read_events


def evaluated(step, loss):
    tokens = step * 1536
    facts = {"tokens": tokens, "epoch": tokens / 900_000, "train_loss": loss, "val_loss": loss + 0.1}
    return {"event": "evaluated", "step": step, **facts}


def stepped(step, loss):
    return {"event": "step", "step": step, "tokens": step * 1536, "epoch": step * 1536 / 900_000, "loss": loss}


RUN = [{"event": "run started", "step": 0}] + [
    event
    for step in range(0, 1001, 50)
    for event in (stepped(step, 1 + 3 / (1 + step / 100)), evaluated(step, 1 + 3 / (1 + step / 100)))
]


@pytest.fixture
def draw(tmp_path):
    """Draw events; the picture's bytes, or None when there is none."""

    def draw(events):
        target = tmp_path / "loss.png"
        target.unlink(missing_ok=True)
        drawn = plot_losses(events, target)
        assert drawn == target.exists()
        return target.read_bytes() if drawn else None

    return draw


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The picture of RUN."""
    target = tmp_path_factory.mktemp("picture") / "loss.png"
    plot_losses(RUN, target)
    return target.read_bytes()


def test_a_run_becomes_a_picture(picture):
    """The picture is a PNG, wide enough to be read."""
    width, height = struct.unpack(">II", picture[16:24])

    assert picture.startswith(b"\x89PNG")
    assert width > 1200
    assert height > 1000


def test_the_same_events_give_the_same_picture(draw, picture):
    """Drawing twice gives the same bytes."""
    assert draw(RUN) == picture


@pytest.mark.parametrize("change", [evaluated(500, 3.0), stepped(500, 3.0)])
def test_evaluations_and_steps_are_both_drawn(draw, picture, change):
    """Another loss at one step is another picture."""
    changed = [change if (e["event"], e["step"]) == (change["event"], 500) else e for e in RUN]

    assert draw(changed) != picture


@pytest.mark.parametrize("events", [[], [stepped(1, 2.0)], [evaluated(0, math.nan)], [{"event": "evaluated"}]])
def test_nothing_evaluated_is_no_picture(draw, events):
    """Without a single evaluated loss there is no file."""
    assert draw(events) is None


@pytest.mark.parametrize(
    "stray",
    [
        {},
        {"event": "sampled", "step": 10, "text": "x"},
        {"event": "evaluated", "step": 10},
        {"event": "step", "tokens": 10, "loss": None},
        {"event": "step", "tokens": "ten", "loss": 1.0},
        {"event": "evaluated", "tokens": math.inf, "train_loss": math.nan, "val_loss": math.nan},
    ],
)
def test_events_that_say_nothing_are_passed_over(draw, picture, stray):
    """Unknown, partial and not finite events change nothing."""
    assert draw([*RUN[:10], stray, *RUN[10:]]) == picture


def test_of_two_evaluations_of_a_step_the_later_is_drawn(draw, picture):
    """An event that is there twice is one point."""
    assert draw([evaluated(500, 9.0), *RUN]) == picture


def test_a_run_without_epochs_is_drawn_over_tokens(draw):
    """Tokens alone are enough."""
    assert draw([{k: v for k, v in event.items() if k != "epoch"} for event in RUN])


def test_one_split_is_enough(draw):
    """A run without a validation split still has its training curve."""
    assert draw([{k: v for k, v in event.items() if k != "val_loss"} for event in RUN])


def test_the_very_first_evaluation_is_drawn(draw):
    """A run that has only been evaluated at step 0 has a picture."""
    assert draw([evaluated(0, 4.0)])


def test_a_loss_beyond_all_measure_is_drawn(draw):
    """A loss whose perplexity no number can hold does no harm."""
    assert draw([*RUN, evaluated(1050, 5000.0)])


def test_nothing_is_left_beside_the_picture(draw, tmp_path):
    """The partial file has become the picture."""
    draw(RUN)

    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_events_are_read_up_to_the_cut(tmp_path):
    """The last line of a killed process is left out, as is anything that is no JSON object."""
    log = tmp_path / "events.jsonl"
    whole = [evaluated(0, 4.0), stepped(10, 3.0)]
    log.write_bytes(
        b"\n".join(json.dumps(event).encode() for event in whole) + b'\n[1]\n\n\xff\xfe\n{"event": "step", "lo'
    )

    assert read_events(log) == whole


def test_drawing_libraries_load_only_to_draw():
    """Importing the module does not import matplotlib."""
    code = "import sys, job.report.plots; print('matplotlib' in sys.modules)"
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout

    assert said == "False\n"
