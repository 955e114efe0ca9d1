"""What a run keeps for life, and what may change between attempts."""

import pytest

from job.checkpoint.identity import changed_settings, ends_equality, require_same, run_identity
from job.config import plain
from job.config_file import load_config
from job.errors import ConfigError


def config(*overrides):
    return load_config(overrides=overrides).config


def test_the_same_identity_continues():
    """Another length or learning rate is the same run."""
    same = run_identity(config(), "c" * 64, "t" * 64)

    require_same(
        same, run_identity(config("training.max_steps=9", "seed=1337"), "c" * 64, "t" * 64), "runs/a", "runs/a"
    )


def test_every_difference_is_named_with_both_values():
    """Model, corpus content and seed: each field that differs stands in the error."""
    stored = run_identity(config(), "c" * 64, "t" * 64)
    asked = run_identity(config("model.n_layer=2", "seed=5"), "d" * 64, "t" * 64)
    with pytest.raises(ConfigError) as refused:
        require_same(stored, asked, "runs/a", "runs/b")

    assert refused.value.problems[1:] == (
        "model.n_layer is 4 in the run, 2 here",
        "seed is 1337 in the run, 5 here",
        f"corpus is {'c' * 64!r} in the run, {'d' * 64!r} here",
    )


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_optimizer_is_another_run(before, now):
    """Muon's momenta are none of AdamW's moments, nor the reverse: neither goes on with what the other has stored."""
    stored, asked = (run_identity(config(f"optimizer.name={name}"), "c" * 64, "t" * 64) for name in (before, now))
    with pytest.raises(ConfigError, match=f"optimizer.name is '{before}' in the run, '{now}' here"):
        require_same(stored, asked, "runs/a", "runs/b")


@pytest.mark.parametrize(
    ("setting", "marked"),
    [
        ("optimizer.learning_rate=0.5", True),
        ("training.micro_batch_size=4", True),
        ("training.max_steps=9", True),
        ("training.eval_every=3", False),
        ("checkpoint.every=3", False),
        ("observe.log_every=3", False),
    ],
)
def test_changes_that_end_equality_are_marked(setting, marked):
    """Every change is seen, and those after which numbers differ are told apart."""
    now = config(setting)
    changed = changed_settings(plain(config()), plain(now))

    assert (list(changed), bool(ends_equality(changed, now))) == ([setting.partition("=")[0]], marked)


def test_a_longer_run_at_a_constant_rate_is_the_same_run():
    """With no schedule to stretch, more steps change no number."""
    constant = "optimizer.schedule=constant"
    now = config(constant, "training.max_steps=9000")

    assert ends_equality(changed_settings(plain(config(constant)), plain(now)), now) == []
