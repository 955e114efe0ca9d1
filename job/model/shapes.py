"""What a folder of weights says of its model, and what GPT-2's format can say of ours.

`hparams.json` is OpenAI's, `config.json` is Hugging Face's, or ours where `model_type` is `gpt-pretrain-job`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from job.config import ModelConfig
from job.errors import ConfigError, DataError

OWN_TYPE = "gpt-pretrain-job"
EPSILON = 1e-5  # torch's own, OpenAI's and Hugging Face's
LARGEST = 1 << 24  # of any size
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}  # Hugging Face's name -> ours
SHAPE = (  # the settings of a model that its weights decide
    "n_layer",
    "n_head",
    "n_embd",
    "head_size",
    "context_length",
    "bias",
    "qkv_bias",
    "head_bias",
    "tie_weights",
    "final_norm",
    "activation",
    "attention_scale",
)

# What Hugging Face's GPT-2 can do and this model does not: the field, the one value that is read, its default there.
_ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "layer_norm_epsilon": (EPSILON,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
_DEFAULTS = {"model_type": None, "layer_norm_epsilon": EPSILON, "scale_attn_weights": True}
_DEFAULTS |= {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "quantization_config": None}


_CHOICES: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("bias", "qkv_bias", "head_bias", "tie_weights", "final_norm"), (True, False)
)
_CHOICES |= {"activation": ("gelu", "relu"), "attention_scale": ("head", "embd")}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's settings and how many tokens it knows."""

    model: ModelConfig
    vocab_size: int


def from_openai(facts: Mapping[str, Any], where: str) -> Shape:
    """The shape that `hparams.json` gives."""
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "context_length": "n_ctx"}
    sizes = {ours: _size(facts, theirs, where) for ours, theirs in names.items()}
    return Shape(_model(where, sizes), _size(facts, "n_vocab", where))


def from_huggingface(facts: Mapping[str, Any], where: str) -> Shape:
    """The shape that `config.json` gives. DataError names each field that this model cannot follow."""
    if facts.get("model_type") == OWN_TYPE:
        return _from_own(facts, where)
    sizes = {name: _size(facts, name, where) for name in ("n_layer", "n_head", "n_embd")}
    sizes["context_length"] = _size(facts, "n_positions" if "n_positions" in facts else "n_ctx", where)
    inner, activation = facts.get("n_inner"), facts.get("activation_function", "gelu_new")
    problems = [
        f"{name} is {facts.get(name, _DEFAULTS[name])!r}, expected {values[0]!r}"
        for name, values in _ONLY.items()
        if facts.get(name, _DEFAULTS[name]) not in values
    ]
    if inner not in (None, 4 * sizes["n_embd"]):
        problems.append(f"n_inner is {inner!r}, expected null or 4 n_embd = {4 * sizes['n_embd']}")
    if activation not in list(ACTIVATIONS):  # which, unlike the dict, can be asked for anything
        problems.append(f"activation_function is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    tied = facts.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        problems.append(f"tie_word_embeddings is {tied!r}, expected true or false")
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}")
    more = {"tie_weights": tied, "activation": ACTIVATIONS[activation]}
    return Shape(_model(where, sizes | more), _size(facts, "vocab_size", where))


def _from_own(facts: Mapping[str, Any], where: str) -> Shape:
    stored = facts.get("model")
    if not isinstance(stored, Mapping) or set(stored) != set(SHAPE):
        raise DataError(f"{where}: model does not have the fields {', '.join(SHAPE)}")
    for name in ("n_layer", "n_head", "n_embd", "context_length"):
        _size(stored, name, where)
    for name, choices in _CHOICES.items():
        if stored[name] not in choices or type(stored[name]) is not type(choices[0]):
            raise DataError(f"{where}: {name} is {stored[name]!r}, expected one of {choices}")
    return Shape(_model(where, stored), _size(facts, "vocab_size", where))


def _size(facts: Mapping[str, Any], name: str, where: str) -> int:
    size = facts.get(name)
    if type(size) is not int or not 1 <= size <= LARGEST:
        raise DataError(f"{where}: {name} is {size!r}, expected a number from 1 to {LARGEST}")
    return size


def _model(where: str, values: Mapping[str, Any]) -> ModelConfig:
    try:
        model = ModelConfig(**values)
        wide = model.n_head * model.head_width
    except (ConfigError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error
    if type(wide) is not int or wide > LARGEST:
        raise DataError(f"{where}: {model.n_head} heads of {model.head_width!r}, expected at most {LARGEST} channels")
    return model


def inexpressible(model: ModelConfig) -> list[str]:
    """Why GPT-2's format cannot hold this model, one sentence each; empty when it can."""
    wide = model.n_head * model.head_width
    rules = (
        (wide != model.n_embd, f"{model.n_head} heads of {model.head_width} make {wide}, not n_embd={model.n_embd}"),
        (not model.final_norm, "there is no norm before the head"),
        (model.head_bias, "the head has a bias"),
    )
    return [reason for applies, reason in rules if applies]


def to_huggingface(shape: Shape, end_of_text: int | None) -> dict[str, Any]:
    """`config.json` of a model that GPT-2's format can hold."""
    model = shape.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": shape.vocab_size,
        "n_positions": model.context_length,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_inner": None,
        "activation_function": "relu" if model.activation == "relu" else "gelu_new",
        "embd_pdrop": model.dropout_of("embedding"),
        "attn_pdrop": model.dropout_of("attention"),
        "resid_pdrop": model.dropout_of("residual"),
        "layer_norm_epsilon": EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": model.tie_weights,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
        "use_cache": True,
    }


def to_own(shape: Shape) -> dict[str, Any]:
    """`config.json` of a model whose tensors keep our names."""
    model = asdict(shape.model)
    return {"model_type": OWN_TYPE, "vocab_size": shape.vocab_size, "model": {name: model[name] for name in SHAPE}}
