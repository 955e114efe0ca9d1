"""Decoding with a cache against the model itself, which reads everything for every token."""

import pytest
import torch

from job.config import ModelConfig
from job.model.beams import beam_search
from job.model.decoder import Decoder
from job.model.generation import Continuations, generate
from job.model.gpt import GPT
from job.model.projection import can_be_packed, projection
from job.model.rows import CachedRows, PlainRows
from job.model.sampling import Sampling

V, T = 37, 24
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": T}
SHAPES = {
    "gpt2": {},
    "untied, plain queries": {"tie_weights": False, "qkv_bias": False},
    "baby": {
        "activation": "relu",
        "attention_scale": "embd",
        "head_size": 5,
        "final_norm": False,
        "tie_weights": False,
        "head_bias": True,
        "init": "torch",
    },
    "no biases": {"bias": False, "qkv_bias": False, "n_layer": 1},
}


def model_of(dropout=0.0, **changes):
    """A model whose logits differ enough for tokens to be sure."""
    torch.manual_seed(1)
    model = GPT(ModelConfig(**{**SHAPE, "dropout": dropout, **changes}), V)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    return model_of(**SHAPES[request.param])


def numbers(count, seed=0):
    return torch.randint(V, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def expected(model, tokens):
    """Logits (V,) that the model itself gives after `tokens`."""
    return model.next_logits(torch.tensor([tokens[-T:]]))[0]


def test_logits_with_a_cache(model):
    """Each token's logits are the model's to 1e-5, from a prompt's to those at the end of the context."""
    decoder, tokens = Decoder(model), numbers(T)
    cache = decoder.new_cache(1)
    found = [decoder.read(cache, cache.open(), tokens[:5])]
    found += [decoder.step(cache, [token])[0] for token in tokens[5:]]

    torch.testing.assert_close(torch.stack(found), model(torch.tensor([tokens]))[0, 4:], rtol=1e-5, atol=1e-5)


def test_a_prompt_in_pieces(model):
    """A prompt that is read in pieces leaves the logits and the cache of one that is read at once."""
    decoder, tokens = Decoder(model), numbers(T)
    cache = decoder.new_cache(2)
    whole, pieces = cache.open(), cache.open()
    at_once = decoder.read(cache, whole, tokens)
    for piece in (tokens[:1], tokens[1:9], tokens[9:10]):
        decoder.read(cache, pieces, piece)

    torch.testing.assert_close(decoder.read(cache, pieces, tokens[10:]), at_once, rtol=1e-5, atol=1e-5)
    for kept in (*cache.keys, *cache.values):
        torch.testing.assert_close(kept[pieces], kept[whole], rtol=1e-5, atol=1e-5)


def test_rows_of_different_lengths(model):
    """Each row's logits are those of its own tokens, whatever the others hold."""
    decoder = Decoder(model)
    cache = decoder.new_cache(4)
    rows = [numbers(count, seed=count) for count in (1, 13, T - 2, 4)]
    for tokens in rows:
        decoder.read(cache, cache.open(), tokens)
    for token in (3, 5):
        found = decoder.step(cache, [token] * 4)
        for tokens, logits in zip(rows, found, strict=True):
            tokens.append(token)
            torch.testing.assert_close(logits, expected(model, tokens), rtol=1e-5, atol=1e-5)


def test_a_freed_row_is_used_again(model):
    """After a row is closed the last has its number, and a row opened then knows nothing of the one before."""
    decoder = Decoder(model)
    cache = decoder.new_cache(3)
    rows = [numbers(count, seed=count) for count in (20, 3, 9)]
    for tokens in rows:
        decoder.read(cache, cache.open(), tokens)
    cache.close(0)
    rows = [rows[2], rows[1], [7, 8]]
    decoder.read(cache, cache.open(), rows[2])
    found = decoder.step(cache, [1, 2, 3])

    for tokens, token, logits in zip(rows, (1, 2, 3), found, strict=True):
        torch.testing.assert_close(logits, expected(model, [*tokens, token]), rtol=1e-5, atol=1e-5)


def test_a_full_cache_is_an_error():
    """A row too many, and a prompt longer than a row, are refused rather than written over others."""
    decoder = Decoder(model_of())
    cache = decoder.new_cache(1)
    decoder.read(cache, cache.open(), numbers(T))

    with pytest.raises(IndexError, match="all 1 rows"):
        cache.open()
    with pytest.raises(IndexError, match="1 tokens after 24 do not fit"):
        decoder.read(cache, 0, [1])


def test_the_cache_is_allocated_once():
    """Decoding to the end of the context moves none of the cache's tensors."""
    decoder = Decoder(model_of())
    cache = decoder.new_cache(2)
    before = [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)]
    for _ in range(2):
        decoder.read(cache, cache.open(), numbers(4))
    for token in numbers(T - 4):
        decoder.step(cache, [token, token])

    assert [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)] == before


@pytest.mark.parametrize("count", [1, 10, T - 1, T, T + 9])
def test_greedy_with_a_cache(model, count):
    """Greedy tokens with the cache are those without it, within the context and far past it."""
    without = list(generate(PlainRows(model), numbers(count), 2 * T))

    assert list(generate(CachedRows(Decoder(model), 1), numbers(count), 2 * T)) == without


def test_batched_prompts_with_a_cache(model):
    """Prompts read side by side, some longer than the context, draw the tokens that each draws without a cache."""
    prompts = [numbers(count, seed=count) for count in (1, 5, T - 3, T, T + 4, 2, 11)]
    drawing = Sampling(temperature=1.0, top_k=9, repetition_penalty=1.2)
    together = Continuations(CachedRows(Decoder(model), 3), T, drawing, stop_token=3, capacity=3)
    for number, prompt in enumerate(prompts):
        together.add(prompt, torch.Generator().manual_seed(number))
    found = {number: [] for number in range(len(prompts))}
    while together:
        for number, token, _ in together.step():
            found[number] += [] if token is None else [token]

    for number, prompt in enumerate(prompts):
        alone = generate(PlainRows(model), prompt, T, drawing, torch.Generator().manual_seed(number), stop_token=3)
        assert found[number] == list(alone)


@pytest.mark.parametrize("count", [2, T - 6, T + 2])
def test_beams_with_a_cache(model, count):
    """Beam search over rows of the cache finds what it finds without one, also past the context."""
    without = beam_search(PlainRows(model), numbers(count), 12, beams=4)

    assert beam_search(CachedRows(Decoder(model), 4), numbers(count), 12, beams=4) == without


def test_rows_are_searched_again():
    """Rows that were emptied search as new ones do."""
    rows = CachedRows(Decoder(model_of()), 3)
    first = beam_search(rows, numbers(9), 8, beams=3)
    rows.select([])
    beam_search(rows, numbers(4, seed=5), 8, beams=3)
    rows.select([])

    assert beam_search(rows, numbers(9), 8, beams=3) == first


def test_bf16_logits():
    """bf16 weights give float32 logits near the model's: within 3 % of their spread."""
    model = model_of()
    decoder = Decoder(model, torch.bfloat16)
    logits, tokens = expected(model, numbers(T)), numbers(T)
    cache = decoder.new_cache(1)
    decoder.read(cache, cache.open(), tokens[:-1])
    found = decoder.step(cache, tokens[-1:])[0]

    assert found.dtype == torch.float32
    assert (found - logits).abs().max() < 0.03 * logits.std()
    assert not torch.equal(found, logits)


def test_dropout_is_left_out():
    """Decoding drops nothing, even of a model that is in training mode."""
    model = model_of(dropout=0.5).train()
    decoder = Decoder(model)
    cache = decoder.new_cache(1)

    torch.testing.assert_close(
        decoder.read(cache, cache.open(), numbers(6)), expected(model, numbers(6)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("packed", [True, False])
def test_projection(activation, rows, packed, monkeypatch):
    """A packed product is the plain one, and so is what takes its place where nothing can be packed."""
    monkeypatch.setattr("job.model.projection.can_be_packed", lambda weight: packed and can_be_packed(weight))
    weight, bias, x = torch.randn(11, 7), torch.randn(11), torch.randn(rows, 7)
    plain = torch.nn.functional.linear(x, weight, bias)
    after = {"none": plain, "gelu": torch.nn.functional.gelu(plain, approximate="tanh"), "relu": plain.relu()}

    torch.testing.assert_close(
        projection(weight, bias, torch.float32, activation)(x), after[activation], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(projection(weight, None, torch.float32)(x), x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("rows", [1, 3])
def test_projection_in_bf16(activation, rows):
    """One row, which has a kernel of its own, and several are the product in bf16; torch's switches stay."""
    weight, bias, x = (torch.randn(shape).bfloat16() for shape in ((48, 32), (48,), (rows, 32)))
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    wanted = torch.nn.functional.gelu(exact, approximate="tanh") if activation == "gelu" else exact
    before = torch.backends.mkldnn.enabled
    found = projection(weight, bias, torch.bfloat16, activation)(x)

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.05)
    assert torch.backends.mkldnn.enabled == before


def test_weights_are_copied():
    """A decoder goes on with the weights it was made from when the model's change."""
    weight = torch.randn(5, 3)
    multiply, x = projection(weight, None, torch.float32), torch.randn(2, 3)
    before = multiply(x)
    weight.zero_()

    assert torch.equal(multiply(x), before)
