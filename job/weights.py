"""The `weights` commands: somebody's weights as the beginning of a run, and a run's model for everybody's use."""

import hashlib
from dataclasses import replace
from typing import Any

import structlog

from job.checkpoint import history
from job.checkpoint.probe import probe
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.config import Config
from job.data.cache import Advance
from job.errors import ConfigError, DataError
from job.infra.environment import code_facts, owner_facts
from job.infra.storage import open_store
from job.training.export import export
from job.training.finetuning import starting_point, weights_file
from job.training.loading import LoadedRun, load_run
from job.training.pretrained import load_weights

log = structlog.get_logger(__name__)


def import_weights(config: Config, uri: str, advance: Advance, single_writer_unsafe: bool = False) -> dict[str, Any]:
    """Begin the run at `config.run_uri` with these weights; the same ones again change nothing.

    Args:
        config: Where the run is, and how to reach it and the weights.
        uri: A name such as gpt2:124M, a folder, https:// or s3://.
        advance: Called as bytes move; may raise to stop.
        single_writer_unsafe: A person's word that nobody else writes: a store without conditional writes will do.

    Raises:
        ConfigError: The run has checkpoints that did not begin with these weights.
        DataError: The weights are damaged, or know other tokens than their tokenizer.
    """
    loaded = load_weights(replace(config, runtime=replace(config.runtime, device="cpu")), uri, advance)
    if loaded.model.vocab_size != loaded.tokenizer.vocab_size:
        known = f"{loaded.model.vocab_size} tokens, its tokenizer {loaded.tokenizer.vocab_size}"
        raise DataError(f"{uri}: the model knows {known}; a run needs the same number")
    origin = {"uri": uri, "model_sha256": _digest(loaded)}
    objects = open_store(config.run_uri, config.storage, single_writer_unsafe=single_writer_unsafe)
    checkpoints = CheckpointStore(objects)
    checkpoints.log.refresh()
    if standing := history.checkpoints(checkpoints.records):
        found = standing[-1].facts.get("imported") or {}
        if found.get("model_sha256") != origin["model_sha256"]:
            began = f"began with {found['uri']}" if found else "began with weights of its own"
            raise ConfigError(f"{config.run_uri}: holds a run of {standing[-1].step} steps that {began}; name another")
        log.info("imported before", run_uri=config.run_uri, step=standing[-1].step)
        return _facts(config.run_uri, standing[-1], loaded)
    probe(objects, checkpoints.attempt, single_writer_unsafe)
    checkpoints.claim({"owner": owner_facts(), "code": code_facts(), "maintenance": True})
    saved = checkpoints.save(starting_point(loaded, origin))
    log.info("weights imported", run_uri=config.run_uri, weights=uri)
    return _facts(config.run_uri, saved.record, loaded)


def export_weights(config: Config, which: str, to: str) -> dict[str, Any]:
    """Write the model of a checkpoint to the folder or bucket `to`; what was written.

    Raises:
        NotFoundError: There is no run, or no such checkpoint.
        AccessError, StorageError: It cannot be written.
    """
    run = load_run(replace(config, runtime=replace(config.runtime, device="cpu")), which)
    record = run.record
    if record is None:
        raise RuntimeError("a run's model comes with its record")
    address = export(open_store(to, config.storage), "", run.model, run.tokenizer, run.config, record.facts)
    return {"uri": address, **_facts(config.run_uri, record, run)}


def _facts(run_uri: str, record: Record, loaded: LoadedRun) -> dict[str, Any]:
    return {"run_uri": run_uri, "step": record.step, "parameters": loaded.model.parameter_count}


def _digest(loaded: LoadedRun) -> str:
    """SHA-256, in hex, of the model as a checkpoint holds it."""
    found = hashlib.sha256()
    for piece in weights_file(loaded):
        found.update(piece)
    return found.hexdigest()
