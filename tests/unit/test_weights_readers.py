"""Hugging Face's weights in every form they come in, and the errors that name what is wrong with a folder."""

import json

import pytest
import torch
from safetensors.torch import save_file

from job.config import ModelConfig
from job.errors import DataError, NotFoundError
from job.model import names
from job.model.shapes import Shape, from_huggingface, from_openai, inexpressible, to_own
from job.model.weights import find_weights
from tests.unit.weights_support import hugging_tensors, listed, loaded, model, parameters, same, write_huggingface


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_every_form_of_names(tmp_path, bare, tied):
    """With the prefix and without, tied and untied, every parameter comes back bit for bit."""
    ours = model(tie_weights=tied)

    assert same(loaded(write_huggingface(tmp_path, ours, hugging_tensors(ours, bare))), ours)


def test_masks_are_no_parameters(tmp_path):
    """attn.bias and attn.masked_bias, which older files carry, are passed over, whatever their dtype."""
    ours = model()
    masks = {"h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.bool), "h.1.attn.masked_bias": torch.tensor(-1e4)}

    assert same(loaded(write_huggingface(tmp_path, ours, hugging_tensors(ours, bare=True) | masks)), ours)


def test_several_files(tmp_path):
    """Tensors spread over files by an index come back bit for bit."""
    ours = model()
    placed = {name: f"model-{n % 3}.safetensors" for n, name in enumerate(sorted(hugging_tensors(ours)))}

    assert same(loaded(write_huggingface(tmp_path, ours, files=placed)), ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path, dtype):
    """Weights of 16 bits become float32 of the same value."""
    ours = model()
    half = {name: tensor.to(dtype) for name, tensor in hugging_tensors(ours).items()}
    found = parameters(loaded(write_huggingface(tmp_path, ours, half)))

    assert all(torch.equal(found[name], tensor.to(dtype).float()) for name, tensor in parameters(ours).items())


def test_a_copy_of_the_tied_head(tmp_path):
    """A head written although it is tied may be there if it is the embedding."""
    ours = model()
    head = {"lm_head.weight": parameters(ours)["wte.weight"].clone()}

    assert same(loaded(write_huggingface(tmp_path, ours, hugging_tensors(ours) | head)), ours)


def test_a_tied_head_that_is_another(tmp_path):
    """A head that the config calls tied and that differs from the embedding is never dropped in silence."""
    ours = model()
    head = {"lm_head.weight": parameters(ours)["wte.weight"] + 1}
    with pytest.raises(DataError, match=r"lm_head.weight: differs from wte.weight"):
        loaded(write_huggingface(tmp_path, ours, hugging_tensors(ours) | head))


def without(tensors, name):
    return {other: tensor for other, tensor in tensors.items() if other != name}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: without(t, "transformer.h.1.ln_2.bias"), "missing: h.1.ln_2.bias"),
        (lambda t: t | {"transformer.h.2.ln_1.bias": torch.ones(8)}, "left over: transformer.h.2.ln_1.bias"),
        (
            lambda t: t | {"transformer.h.0.attn.c_attn.weight": torch.ones(24, 8)},
            "misshapen: transformer.h.0.attn.c_attn.weight: expected [8, 24], got [24, 8]",
        ),
        (lambda t: t | {"wte.weight": torch.ones(23, 8)}, "wte.weight are both wte.weight"),
        (
            lambda t: t | {"transformer.wpe.weight": torch.ones(16, 8).int()},
            "dtype I32, expected one of F32, F16, BF16",
        ),
        (lambda t: t | {"transformer.wpe.weight": torch.full((16, 8), torch.nan)}, "values that are not finite"),
        (lambda t: {"a": torch.ones(1)}, "1 tensors, fewer than the 2 layers"),
    ],
)
def test_each_tensor_is_checked(tmp_path, spoil, said):
    """What is missing, left over, misshapen, doubled, of another dtype or no number is named, with the file."""
    ours = model()
    folder = write_huggingface(tmp_path, ours, spoil(hugging_tensors(ours)))
    with pytest.raises(DataError) as refused:
        loaded(folder)

    assert str(refused.value).startswith(str(folder / "model.safetensors"))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("n_inner", 24),
        ("model_type", "llama"),
        ("quantization_config", {"bits": 4}),
        ("n_layer", 0),
        ("n_head", 3),
        ("n_embd", "8"),
        ("vocab_size", 1 << 40),
        ("n_positions", True),
        ("tie_word_embeddings", 1),
    ],
)
def test_what_this_model_cannot_be(tmp_path, field, value):
    """A config that asks for another computation, or for no shape at all, is refused with the field's name."""
    with pytest.raises(DataError, match=field):
        loaded(write_huggingface(tmp_path, model(), **{field: value}))


def test_defaults_of_a_config():
    """What config.json leaves out is as GPT2Config has it, and n_ctx will do for n_positions."""
    facts = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4, "n_ctx": 5, "vocab_size": 6}

    assert from_huggingface(facts, "") == Shape(ModelConfig(n_layer=1, n_head=1, n_embd=4, context_length=5), 6)


def test_hparams():
    """OpenAI's names for the sizes."""
    facts = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}

    assert from_openai(facts, "") == Shape(ModelConfig(), 50257)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../elsewhere.safetensors"}}, "names files that are not beside it"),
        ({"weight_map": {"a": 1}}, "weight_map is not an object"),
        ({}, "weight_map is not an object"),
        ({"weight_map": {"transformer.wte.weight": "one.safetensors"}}, "expected in None"),
    ],
)
def test_an_index_that_lies(tmp_path, index, said):
    """An index of files that are not there, or that hold other tensors, is refused."""
    ours = model()
    files = dict.fromkeys(hugging_tensors(ours), "one.safetensors")
    folder = write_huggingface(tmp_path, ours, files=files)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=said):
        loaded(folder)


def test_a_tensor_that_no_file_has(tmp_path):
    """A tensor that the index names and no file holds is missing."""
    ours = model()
    folder = write_huggingface(tmp_path, ours, files=dict.fromkeys(hugging_tensors(ours), "one.safetensors"))
    facts = json.loads((folder / "model.safetensors.index.json").read_bytes())
    facts["weight_map"]["transformer.more"] = "one.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"missing: transformer.more"):
        loaded(folder)


def test_nothing_there(tmp_path):
    """A folder without weights says what would be some, and what is there."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotFoundError, match=r"no weights here: .* there are notes\.txt"):
        loaded(tmp_path)


OWN = [{"n_embd": 9, "head_size": 5}, {"final_norm": False}, {"tie_weights": False, "head_bias": True}]


@pytest.mark.parametrize("settings", OWN)
def test_our_own_layout(tmp_path, settings):
    """Models that GPT-2's format cannot hold come back bit for bit under our names."""
    ours = model(**settings)
    assert inexpressible(ours.config)
    save_file(parameters(ours), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(to_own(Shape(ours.config, ours.vocab_size))))

    assert same(loaded(tmp_path), ours)


def test_what_our_own_config_must_say(tmp_path):
    """A config of ours with a word that no setting has is refused by that setting's name."""
    ours = model(final_norm=False)
    facts = to_own(Shape(ours.config, ours.vocab_size))
    facts["model"]["attention_scale"] = "other"
    save_file(parameters(ours), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="attention_scale is 'other'"):
        find_weights(listed(tmp_path), "")


def test_biases_that_are_not_there_become_zeros(tmp_path):
    """A model without any bias is expressed with zeros, and computes the same."""
    ours = model(bias=False, qkv_bias=False)
    there = loaded(write_huggingface(tmp_path, ours))
    tokens = torch.arange(16)[None]

    assert parameters(there)["h.1.attn.c_attn.bias"].count_nonzero() == 0
    torch.testing.assert_close(there(tokens), ours(tokens), rtol=0, atol=1e-6)


def test_another_attention_scale_is_folded_into_the_queries(tmp_path):
    """Scores divided by the root of the model's width are expressed by smaller queries."""
    ours = model(attention_scale="embd")
    tensors = names.to_huggingface(parameters(ours), query_scale=(4 / 8) ** 0.5)
    tokens = torch.arange(16)[None]

    torch.testing.assert_close(
        loaded(write_huggingface(tmp_path, ours, tensors))(tokens), ours(tokens), rtol=0, atol=1e-6
    )


class Canary:
    """Whoever unpickles this leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "gpt2.ckpt", "weights.pth", "model.safetensors"])
@pytest.mark.parametrize("old_format", [True, False])
def test_pickles_are_never_read(tmp_path, name, old_format):
    """A pickle, whatever it is called, is refused with the way to convert it, and nothing in it has run."""
    ours, canary = model(), tmp_path / "canary"
    folder = write_huggingface(tmp_path / "weights", ours)
    (folder / "model.safetensors").unlink()
    torch.save({"state": Canary(canary)}, folder / name, _use_new_zipfile_serialization=not old_format)
    canary.unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"pickled weights are refused.*save_pretrained"):
        loaded(folder)

    assert not canary.exists()
