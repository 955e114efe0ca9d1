"""transformers' GPT-2 computes and decodes what ours does."""

import pytest
import torch

from job.config import ModelConfig
from job.model.beams import beam_search
from job.model.decoder import Decoder
from job.model.generation import Continuations, generate
from job.model.gpt import GPT
from job.model.rows import CachedRows
from job.model.sampling import Sampling, next_token_probabilities, penalize_repetition

transformers = pytest.importorskip("transformers", reason="needs transformers, the other implementation of GPT-2")


def both(seed, context_length=32, vocab_size=11, initializer_range=0.6, **shape):
    """Ours and transformers' GPT-2 with the same random weights."""
    torch.manual_seed(seed)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **shape,
            n_positions=context_length,
            vocab_size=vocab_size,
            initializer_range=initializer_range,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    ours = GPT(ModelConfig(**shape, context_length=context_length), vocab_size)
    rows_first = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (in, out) there
    weights = theirs.transformer.state_dict().items()
    ours.load_state_dict({name: tensor.T if name.endswith(rows_first) else tensor for name, tensor in weights})
    return ours.eval(), theirs.eval()


@pytest.fixture(scope="module", params=range(5))
def gpt2(request):
    """A tiny pair, and a prompt (1, T)."""
    return *both(request.param, n_layer=2, n_head=2, n_embd=16), torch.randint(1, 11, (1, 5))


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

    assert beam_search(CachedRows(Decoder(ours), beams), prompt[0].tolist(), 9, beams, length_penalty, stop) == expected


def test_greedy_decoding_of_transformers(gpt2):
    """Temperature 0 continues a prompt as transformers does."""
    ours, theirs, prompt = gpt2
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20)

    assert list(generate(CachedRows(Decoder(ours), 1), prompt[0].tolist(), 20)) == expected[0, 5:].tolist()


@pytest.fixture(scope="module")
def pair():
    """A pair with a wide vocabulary, and 20 prompts of 1 to 58 tokens."""
    ours, theirs = both(7, n_layer=3, n_head=4, n_embd=64, context_length=128, vocab_size=1003, initializer_range=0.2)
    theirs.generation_config.eos_token_id = None
    return ours, theirs, [torch.randint(1003, (1 + 3 * number,)).tolist() for number in range(20)]


def continued(theirs, prompt, **options):
    """What transformers makes of a prompt, without it."""
    tokens = torch.tensor([prompt])
    found = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=60, pad_token_id=0, **options
    )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
def test_twenty_prompts_greedily(pair, repetition_penalty):
    """Twenty prompts read side by side continue for 60 tokens as each does in transformers."""
    ours, theirs, prompts = pair
    choice = Sampling(repetition_penalty=repetition_penalty)
    together = Continuations(CachedRows(Decoder(ours), 8), 60, choice, capacity=8)
    found = {together.add(prompt): [] for prompt in prompts}
    while together:
        for number, token, _ in together.step():
            found[number].append(token)

    assert list(found.values()) == [
        continued(theirs, prompt, do_sample=False, repetition_penalty=repetition_penalty) for prompt in prompts
    ]


def test_twenty_prompts_by_beams(pair):
    """Four beams with length penalty 1.0 find for twenty prompts the 60 tokens that transformers' find."""
    ours, theirs, prompts = pair
    rows = CachedRows(Decoder(ours), 4)
    found = []
    for prompt in prompts:
        found.append(beam_search(rows, prompt, 60, beams=4, length_penalty=1.0))
        rows.select([])

    assert found == [continued(theirs, prompt, do_sample=False, num_beams=4, length_penalty=1.0) for prompt in prompts]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_k", [None, 1, 50, 5000])
@pytest.mark.parametrize("top_p", [None, 0.1, 0.9])
def test_distributions_of_transformers(temperature, top_k, top_p):
    """Temperature, top-k (ties among them) and top-p leave the probabilities that transformers' warpers leave."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(20, 1003)
    logits[:10] = logits[:10].round(decimals=1)  # ties
    warped = transformers.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        warped = transformers.TopKLogitsWarper(top_k)(None, warped)
    if top_p is not None:
        logits, warped = logits[10:], warped[10:]  # of equals at the border it keeps the last ones, we the first
        warped = transformers.TopPLogitsWarper(top_p)(None, warped)

    torch.testing.assert_close(
        next_token_probabilities(logits, temperature, top_k, top_p), warped.softmax(-1), rtol=0, atol=1e-6
    )


def test_repetition_penalty_of_transformers():
    """The penalty changes the logits that transformers' changes, and as much."""
    logits, sequence = torch.randn(1, 1003), torch.randint(1003, (1, 300))
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(sequence, logits)

    assert torch.equal(penalize_repetition(logits[0], sequence[0].tolist(), 1.3), expected[0])
