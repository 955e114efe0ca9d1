"""transformers' GPT-2 computes and decodes what ours does."""

import pytest
import torch

from job.config import ModelConfig
from job.model.generation import beam_search, generate
from job.model.gpt import GPT

transformers = pytest.importorskip("transformers", reason="needs transformers, the other implementation of GPT-2")


@pytest.fixture(scope="module", params=range(5))
def gpt2(request):
    """Ours and transformers' GPT-2 with the same random weights, and a prompt (1, T)."""
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16}
    torch.manual_seed(request.param)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **shape, n_positions=32, vocab_size=11, initializer_range=0.6, bos_token_id=0, eos_token_id=0
        )
    )
    ours = GPT(ModelConfig(**shape, context_length=32), 11)
    rows_first = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out) there
    weights = theirs.transformer.state_dict().items()
    ours.load_state_dict({name: tensor.T if name.endswith(rows_first) else tensor for name, tensor in weights})
    return ours.eval(), theirs.eval(), torch.randint(1, 11, (1, 5))


def test_logits_of_transformers(gpt2):
    """With GPT-2's settings and weights, logits are transformers'."""
    ours, theirs, prompt = gpt2

    torch.testing.assert_close(ours(prompt), theirs(prompt).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("stop", [None, 0])
def test_beams_of_transformers(gpt2, beams, length_penalty, stop):
    """Beam search finds what transformers' does, with a stop token and without."""
    ours, theirs, prompt = gpt2
    theirs.generation_config.eos_token_id = stop
    options = {"num_beams": beams, "length_penalty": length_penalty, "do_sample": False, "max_new_tokens": 9}
    found = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **options)[0, 5:].tolist()
    expected = found[: found.index(stop)] if stop in found else found

    assert beam_search(ours, prompt[0], 9, beams, length_penalty, stop) == expected


def test_greedy_decoding_of_transformers(gpt2):
    """Temperature 0 continues a prompt as transformers does."""
    ours, theirs, prompt = gpt2
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20)

    assert list(generate(ours, prompt[0], 20)) == expected[0, 5:].tolist()
