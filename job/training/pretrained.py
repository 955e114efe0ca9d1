"""Weights that are no run's, as a model for use: released ones by name, and whatever a folder or an address holds."""

import re
from dataclasses import replace

import structlog

from job.checkpoint.store import RUN_KEY
from job.config import Config
from job.data.cache import Advance
from job.data.weight_files import find_weight_files, released_size
from job.data.weight_tokenizers import read_tokenizer
from job.infra.device import apply_numerics, choose_numerics
from job.infra.storage import open_store
from job.model.weights import find_weights
from job.model.weights import load_weights as read_weights
from job.training.loading import LoadedRun, load_run

log = structlog.get_logger(__name__)


def load_weights(config: Config, uri: str, advance: Advance = lambda *_: None) -> LoadedRun:
    """The model and the tokenizer at `uri`; the config is the given one with their shape in it.

    Args:
        config: How to reach them, and on which device to put the model.
        uri: A name such as gpt2:124M, a folder, https:// or s3://.
        advance: Called as bytes move; may raise to stop.

    Raises:
        NotFoundError, AccessError, StorageError: There is nothing, or it cannot be reached.
        DataError: Something there is damaged, pickled, or of no model that this one can be.
    """
    found = find_weight_files(uri, config.data, lambda address: open_store(address, config.storage), advance)
    weights = find_weights(found.files, found.uri)
    tokenizer = read_tokenizer(found.files, weights.shape.vocab_size, found.uri)
    numerics = choose_numerics(config.runtime, None)
    device = apply_numerics(numerics)
    model = read_weights(weights, device)
    advance()
    log.info("weights loaded", uri=found.uri, layout=weights.layout, parameters=model.parameter_count)
    data = replace(config.data, tokenizer=tokenizer.kind)
    own = replace(config, model=weights.shape.model, data=data)
    return LoadedRun(None, own, model, tokenizer, numerics, device)


def load_for_use(config: Config, which: str, weights: str | None) -> LoadedRun:
    """The model of a command: of the weights that it names, else of the checkpoint `which` of the config's run."""
    return load_weights(config, weights) if weights else load_run(config, which)


def load_any(config: Config, uri: str, which: str) -> LoadedRun:
    """The model at `uri`, which is a run's address, an export's or that of weights."""
    if released_size(uri) or re.match(r"https?://", uri, re.IGNORECASE) or not _is_run(config, uri):
        return load_weights(config, uri)
    return load_run(replace(config, run_uri=uri), which)


def _is_run(config: Config, uri: str) -> bool:
    try:
        return open_store(uri, config.storage).size(RUN_KEY) > 0
    except KeyError:
        return False
