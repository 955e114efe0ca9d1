"""A run's model for use: from any checkpoint, without claiming the run or touching the optimizer."""

from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from job.checkpoint.choice import choose, open_run
from job.checkpoint.files import MODEL, TOKENIZER
from job.checkpoint.record import Record
from job.config import Config
from job.config_file import stored_config
from job.data.tokenizer import Tokenizer, load_tokenizer
from job.infra.device import Numerics, apply_numerics, choose_numerics
from job.infra.storage import open_store
from job.model.gpt import GPT
from job.training.learner import empty_model
from job.training.resume import load_newest
from job.training.tensors import load_model

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A model in evaluation mode, and what belongs to it.

    Args:
        record: The checkpoint it is from; None for weights that are no run's.
        config: The config it was saved with.
        numerics: What it computes with here.
    """

    record: Record | None
    config: Config
    model: GPT
    tokenizer: Tokenizer
    numerics: Numerics
    device: torch.device


def load_run(config: Config, which: str) -> LoadedRun:
    """The model of the run at `config.run_uri`.

    Args:
        config: Where the run is, how to reach it and on which device to put the model.
        which: `last` (an older one when the newest is damaged), `best` or a step.

    Raises:
        NotFoundError: There is no run, no such checkpoint, or none that is valid.
    """
    checkpoints = open_run(open_store(config.run_uri, config.storage))
    candidates = choose(checkpoints, which)
    numerics = choose_numerics(config.runtime, None)
    device = apply_numerics(numerics)

    def load(folder: Path, record: Record) -> tuple[GPT, Tokenizer]:
        tokenizer = load_tokenizer((folder / TOKENIZER).read_bytes())
        model = empty_model(stored_config(record.facts["config"]), tokenizer.vocab_size, device)
        load_model(folder, model)
        return model.eval(), tokenizer

    loaded = load_newest(checkpoints, candidates, load, {MODEL, TOKENIZER})
    for record, reason in loaded.rejected:
        log.warning("checkpoint rejected, the one before it is used", step=record.step, reason=str(reason))
    model, tokenizer = loaded.value
    return LoadedRun(loaded.record, stored_config(loaded.record.facts["config"]), model, tokenizer, numerics, device)
