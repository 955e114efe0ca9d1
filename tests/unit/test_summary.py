"""What a person is told to do next: commands that work when they are copied."""

import shlex

import pytest

from job.config import TrainingConfig
from job.infra.status import RunStatus
from job.infra.summary import longer, next_steps

COMMANDS = ("generate", "serve", "evaluate", "report")


def steps(flags="", **facts):
    """The commands that are shown for a complete run."""
    status = RunStatus(status="complete", run_uri="runs/a", checkpoint="runs/a/data/1", **facts)
    return [line for _, line in next_steps(status, flags, COMMANDS)]


@pytest.mark.parametrize(
    ("prompt", "typed"),
    [
        ("", "The "),
        ("吾輩は猫である。", "吾輩は猫である。"),
        ("\n \n  It's late\nand", "  It's late"),
        ("a" * 100, "a" * 40),
    ],
)
def test_the_prompt_is_one_of_the_run(prompt, typed):
    """Samples' own prompt, of whatever alphabet, in one line that a shell gives back as it was."""
    [line] = [line for line in steps(prompt=prompt) if line.startswith("gpt-job generate")]
    words = shlex.split(line)

    assert words[words.index("--prompt") + 1] == typed


def test_a_complete_run_can_go_on():
    """The same flags with twice the steps, each setting once."""
    flags = "--preset baby-cpu --set training.max_steps=100 --set seed=2"
    first, *_ = steps(flags, longer=("training.max_steps=200",))

    assert first == "gpt-job train --preset baby-cpu --set seed=2 --set training.max_steps=200"


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"max_steps": 10}, ("training.max_steps=20",)),
        ({"max_steps": None, "epochs": 1.5}, ("training.epochs=3",)),
        ({"max_steps": 10, "epochs": 1}, ("training.max_steps=20", "training.epochs=2")),
        ({"max_steps": 10, "max_seconds": 60.0}, ()),
    ],
)
def test_what_makes_a_run_longer(settings, more):
    """Whatever ends it, doubled; nothing is said of a run that a clock ends."""
    assert longer(TrainingConfig(**settings)) == more
