"""What makes a run this run and no other: what it keeps for life, and what may change from one attempt to the next."""

from collections.abc import Mapping
from typing import Any

from job.config import Config, identity
from job.errors import ConfigError


def run_identity(config: Config, corpus_sha256: str, tokenizer_sha256: str) -> dict[str, Any]:
    """The identity settings together with what they turned out to name."""
    return {**identity(config), "corpus": corpus_sha256, "tokenizer": tokenizer_sha256}


def require_same(stored: Mapping[str, Any], asked: Mapping[str, Any], run_uri: str, own_run: str) -> None:
    """Refuse to continue a run with another identity.

    Args:
        stored: Identity in the run's newest record.
        asked: Identity of this config; may be a part, which is then compared.
        run_uri: The run.
        own_run: Where a run of its own would be.

    Raises:
        ConfigError: They differ; names every field with both values.
    """
    differing = [
        f"{name} is {stored.get(name)!r} in the run, {value!r} here"
        for name, value in asked.items()
        if stored.get(name) != value
    ]
    if differing:
        hint = f"leave run_uri unset for {own_run}" if own_run != run_uri else "give it a run_uri of its own"
        raise ConfigError(f"{run_uri} holds another run; to start a new one, {hint}", *differing)


def changed_settings(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings by dotted name that are not what they were, as (before, now); both configs in their plain form."""
    before, after = _flat(stored), _flat(now)
    return {name: (before.get(name), value) for name, value in after.items() if before.get(name) != value}


def ends_equality(changed: Mapping[str, tuple[Any, Any]], config: Config) -> list[str]:
    """Those of the changed settings after which no number is what an unbroken run would have."""
    numbers: tuple[str, ...] = ("optimizer.", "training.micro_batch_size")
    if config.optimizer.schedule != "constant":  # it ends where the run ends
        numbers = (*numbers, "training.max_steps", "training.epochs")
    return [f"{name} was {before!r}, is {now!r}" for name, (before, now) in changed.items() if name.startswith(numbers)]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
