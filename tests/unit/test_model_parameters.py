"""The GPT's parameters: names, shapes, counts, the tied head, starting values."""

import math
from dataclasses import replace

import pytest
import torch

from job.config import ModelConfig
from job.model.gpt import GPT, unfilled

V = 11
SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=8, context_length=6, init="torch")


def names_of(config: ModelConfig) -> set[str]:
    return {name for name, _ in GPT(config, V).named_parameters()}


def test_parameter_names():
    """Names and shapes are GPT-2's, in torch's (out, in) layout."""
    shapes = {name: tuple(parameter.shape) for name, parameter in GPT(replace(SMALL, n_layer=1), V).named_parameters()}

    assert shapes == {
        "wte.weight": (V, 8),
        "wpe.weight": (6, 8),
        "h.0.ln_1.weight": (8,),
        "h.0.ln_1.bias": (8,),
        "h.0.attn.c_attn.weight": (24, 8),
        "h.0.attn.c_attn.bias": (24,),
        "h.0.attn.c_proj.weight": (8, 8),
        "h.0.attn.c_proj.bias": (8,),
        "h.0.ln_2.weight": (8,),
        "h.0.ln_2.bias": (8,),
        "h.0.mlp.c_fc.weight": (32, 8),
        "h.0.mlp.c_fc.bias": (32,),
        "h.0.mlp.c_proj.weight": (8, 32),
        "h.0.mlp.c_proj.bias": (8,),
        "ln_f.weight": (8,),
        "ln_f.bias": (8,),
    }


def test_head_size():
    """Heads of a size of their own project C -> 3HD and HD -> C."""
    attention = GPT(replace(SMALL, head_size=5), V).h[0].attn

    assert (attention.c_attn.weight.shape, attention.c_proj.weight.shape) == ((30, 8), (8, 10))


def test_without_qkv_bias():
    """`qkv_bias` decides on c_attn's bias alone."""
    assert names_of(SMALL) - names_of(replace(SMALL, qkv_bias=False)) == {
        "h.0.attn.c_attn.bias",
        "h.1.attn.c_attn.bias",
    }


def test_without_bias():
    """Without `bias` and `qkv_bias` no parameter is a bias."""
    assert not [name for name in names_of(replace(SMALL, bias=False, qkv_bias=False)) if "bias" in name]


def test_head_bias():
    """`head_bias` gives an untied head a bias."""
    untied = replace(SMALL, tie_weights=False)

    assert names_of(replace(untied, head_bias=True)) - names_of(untied) == {"lm_head.bias"}


def test_without_final_norm():
    """Without `final_norm` the head reads the last block's output."""
    assert names_of(SMALL) - names_of(replace(SMALL, final_norm=False)) == {"ln_f.weight", "ln_f.bias"}


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "count"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_gpt2_sizes(n_layer, n_head, n_embd, count):
    """GPT-2's four shapes have the parameters OpenAI's checkpoints have; on the meta device none takes memory."""
    with torch.device("meta"):
        model = GPT(ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd), 50257)

    assert model.parameter_count == count


def test_meta_forward():
    """On the meta device a forward pass gives shapes."""
    with torch.device("meta"):
        logits = GPT(replace(SMALL, init="gpt2"), V)(torch.zeros(2, 6, dtype=torch.int64))

    assert (logits.device.type, logits.shape) == ("meta", (2, 6, V))


@pytest.mark.parametrize("init", ["torch", "gpt2"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_unfilled(init, device):
    """A model that is to be loaded has all names and shapes, is tied, and draws no numbers."""
    config = replace(SMALL, init=init)
    wanted = {name: parameter.shape for name, parameter in GPT(config, V).named_parameters()}
    before = torch.get_rng_state()
    model = unfilled(config, V, device)

    assert {name: parameter.shape for name, parameter in model.named_parameters()} == wanted
    assert model.lm_head.weight is model.wte.weight
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_head():
    """A tied head reads wte's own storage and is saved once."""
    model = GPT(SMALL, V)

    assert model.lm_head.weight is model.wte.weight
    assert "lm_head.weight" not in model.state_dict()


def test_tied_head_after_meta():
    """A tied model built on meta and loaded by assignment is still tied, and computes the same."""
    model = GPT(SMALL, V)
    with torch.device("meta"):
        loaded = GPT(SMALL, V)
    loaded.load_state_dict(model.state_dict(), assign=True)

    assert loaded.lm_head.weight is loaded.wte.weight
    assert torch.equal(loaded(torch.arange(6)[None]), model(torch.arange(6)[None]))


def test_untied_head():
    """An untied head has a weight of its own."""
    model = GPT(replace(SMALL, tie_weights=False), V)

    assert model.lm_head.weight is not model.wte.weight
    assert "lm_head.weight" in model.state_dict()


def test_gpt2_init():
    """GPT-2's start: deviation 0.02, 0.02 / sqrt(2 n_layer) into the residual stream, biases 0, norms 1."""
    parameters = dict(GPT(ModelConfig(n_layer=2, n_head=4, n_embd=128, context_length=64), 500).named_parameters())
    spread = {name: float(p.detach().std()) for name, p in parameters.items() if p.dim() == 2}
    expected = {name: 0.02 / math.sqrt(4) if "c_proj" in name else 0.02 for name in spread}

    assert spread == pytest.approx(expected, rel=0.05)
    assert all(not p.any() for name, p in parameters.items() if name.endswith("bias"))
    assert all((p == 1).all() for name, p in parameters.items() if "ln_" in name and name.endswith("weight"))


def test_gpt2_init_of_an_untied_head():
    """GPT-2's start holds for a head of its own too."""
    head = GPT(ModelConfig(n_layer=1, n_head=4, n_embd=128, tie_weights=False), 500).lm_head

    assert float(head.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
