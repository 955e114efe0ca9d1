"""A model as other programs read it: Hugging Face's layout where GPT-2's format can express it, else our names.

What a checkpoint holds is enough to make it again, and the same checkpoint makes the same bytes.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import structlog

from job.config import Config
from job.data.huggingface_tokenizer import huggingface_files
from job.data.tokenizer import Tokenizer
from job.data.weight_tokenizers import OWN
from job.infra.object_store import Content, ObjectStore
from job.model import names
from job.model.gpt import GPT
from job.model.shapes import Shape, inexpressible, to_huggingface, to_own
from job.model.weights import CONFIG, MODEL
from job.training.model_card import model_card
from job.training.tensors import model_tensors, to_safetensors

log = structlog.get_logger(__name__)


def export(
    objects: ObjectStore, folder: str, model: GPT, tokenizer: Tokenizer, config: Config, facts: Mapping[str, Any]
) -> str:
    """Write the model below `folder` of a store, its `config.json` last; returns the address.

    Args:
        folder: Empty for the store itself.
        config: The run's.
        facts: What the record of its checkpoint says.

    Raises:
        AccessError, StorageError: It could not be written.
    """
    address = "/".join(filter(None, (objects.uri.rstrip("/"), folder)))
    reasons = inexpressible(model.config)
    if reasons:
        log.warning("exported under our own names: GPT-2's format cannot express this model", reasons=reasons)
    for name, content in export_files(model, tokenizer, config, facts).items():
        objects.put("/".join(filter(None, (folder, name))), content)
    log.info("exported", uri=address, layout="own" if reasons else "huggingface")
    return address


def export_files(model: GPT, tokenizer: Tokenizer, config: Config, facts: Mapping[str, Any]) -> dict[str, Content]:
    """Every file of an export by name, in the order of writing."""
    shape, reasons = Shape(model.config, model.vocab_size), inexpressible(model.config)
    parameters = {name: parameter.float().cpu() for name, parameter in model_tensors(model).items()}
    files: dict[str, Any] = {}
    if reasons:
        files[OWN] = tokenizer.to_json()
        described = to_own(shape)
    else:
        files |= huggingface_files(tokenizer, model.context_length)
        parameters = names.to_huggingface(parameters, query_scale(shape))
        described = to_huggingface(shape, tokenizer.end_of_text)
        ends = {name: described[name] for name in ("bos_token_id", "eos_token_id")}
        files["generation_config.json"] = _json({"_from_model_config": True, **ends})
    files["README.md"] = model_card(shape, config, facts, tokenizer, reasons).encode()
    return {
        **{name: [content] for name, content in sorted(files.items())},
        MODEL: to_safetensors(parameters, {"format": "pt"}),
        CONFIG: [_json(described)],
    }


def query_scale(shape: Shape) -> float:
    """What queries are multiplied by, so that a model that divides by the root of a head's size attends alike."""
    return math.sqrt(shape.model.head_width / shape.model.n_embd) if shape.model.attention_scale == "embd" else 1.0


def _json(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2) + "\n").encode()
