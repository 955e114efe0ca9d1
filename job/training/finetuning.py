"""A run that began with somebody's weights: what `train` takes over from it, and what the first training fixes."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from job.checkpoint.chain import GENESIS
from job.checkpoint.files import MODEL, OPTIMIZER, STATE, TOKENIZER
from job.checkpoint.history import is_starting_point
from job.checkpoint.record import Record, canonical
from job.checkpoint.store import Checkpoint, CheckpointStore
from job.config import identity, identity_digest, plain
from job.config_file import ResolvedConfig, stored_config
from job.data.bpe_training import PREFIX
from job.data.tokenizer import Tokenizer, load_tokenizer
from job.infra.environment import code_facts
from job.infra.object_store import Content
from job.model.shapes import SHAPE
from job.training.loading import LoadedRun
from job.training.resume import load_newest
from job.training.state import TrainingState
from job.training.tensors import model_tensors, to_safetensors

_FIXED = (*(f"model.{name}" for name in SHAPE), "data.tokenizer")  # what weights decide


def starting_point(loaded: LoadedRun, origin: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of step 0 that weights are: no optimizer state, no corpus, no events.

    Args:
        loaded: Weights on the host.
        origin: Where they are from, JSON values.
    """
    config, tokenizer = loaded.config, loaded.tokenizer
    asked = identity(config)
    own = {name: asked[name] for name in _FIXED} | {"tokenizer": tokenizer.sha256}
    return Checkpoint(
        step=0,
        files={
            MODEL: weights_file(loaded),
            OPTIMIZER: to_safetensors({}),
            STATE: [canonical({**asdict(TrainingState()), "scaler": None})],
            TOKENIZER: [tokenizer.to_json()],
        },
        events=b"",
        facts={
            "imported": dict(origin),
            "config": plain(config),
            "identity": own,
            "identity_sha256": identity_digest(own),
            "code": code_facts(),
            "tokenizer_sha256": tokenizer.sha256,
            "tokens": 0,
            "chain": GENESIS,
            "data_offset": 0,
            "eval": {"train_loss": None, "val_loss": None},
        },
    )


def weights_file(loaded: LoadedRun) -> Content:
    """The file of the model in a checkpoint."""
    return to_safetensors(model_tensors(loaded.model))


def take_over(resolved: ResolvedConfig, record: Record | None) -> ResolvedConfig:
    """The config with shape and tokenizer of the imported weights, where nobody asked for others by hand."""
    if record is None or "imported" not in record.facts:
        return resolved
    stored, config = stored_config(record.facts["config"]), resolved.config
    open_to = {name for name in _FIXED if resolved.sources[name].startswith(("preset", "default"))}
    shape = {name: getattr(stored.model, name) for name in SHAPE if f"model.{name}" in open_to}
    data = replace(config.data, tokenizer=stored.data.tokenizer) if "data.tokenizer" in open_to else config.data
    taken = replace(config, model=replace(config.model, **shape), data=data)
    return replace(resolved, config=taken, sources={**resolved.sources, **dict.fromkeys(open_to, "imported weights")})


def known_of(record: Record, asked: Mapping[str, Any]) -> dict[str, Any]:
    """That part of an identity which `record` has fixed already."""
    stored = record.facts["identity"]
    return {name: value for name, value in asked.items() if name in stored or not is_starting_point(record)}


def stored_tokenizer(checkpoints: CheckpointStore, record: Record | None) -> Tokenizer | None:
    """The tokenizer that came with imported weights, or was trained for the run; None where the settings mean one.

    Another version of what trained it might train another one.
    """
    if record is None:
        return None
    if "imported" not in record.facts and not record.facts["config"]["data"]["tokenizer"].startswith(PREFIX):
        return None

    def load(folder: Path, _: Record) -> Tokenizer:
        return load_tokenizer((folder / TOKENIZER).read_bytes())

    return load_newest(checkpoints, [record], load, {TOKENIZER}).value
