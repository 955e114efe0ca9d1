"""What makes a run this run and no other, and refusing to continue it as something else."""

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
