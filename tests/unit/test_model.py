"""What the GPT computes: shapes, causality, dropout, the next token."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from job.config import ModelConfig
from job.errors import ConfigError
from job.model.gpt import GPT, evaluating

V = 11
SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=8, context_length=6, init="torch")


def tokens_of(count: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (count, length), generator=torch.Generator().manual_seed(seed))


def test_logits():
    """Tokens (B, T) become logits (B, T, V), for any T up to the context."""
    model = GPT(SMALL, V)

    assert [model(tokens_of(3, T)).shape for T in (1, 6)] == [(3, 1, V), (3, 6, V)]


def test_too_long():
    """A sequence longer than the context is refused with both lengths."""
    with pytest.raises(ConfigError, match=r"7 tokens .* model\.context_length=6"):
        GPT(SMALL, V)(tokens_of(1, 7))


@settings(deadline=None)
@given(changed=st.integers(0, 5), seed=st.integers(0, 99))
def test_causal(changed, seed):
    """Position t sees positions 0..t: changing token s changes the logits from s on and no others."""
    torch.manual_seed(seed)
    model = GPT(SMALL, V)
    tokens = tokens_of(1, 6, seed)
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 1) % V

    same = torch.isclose(model(tokens), model(other), atol=1e-6).all(-1)[0]

    assert same.tolist() == [t < changed for t in range(6)]


@pytest.mark.parametrize("place", ["embedding", "attention", "residual"])
def test_dropout_of_one_place(place):
    """Each of the three dropouts alone makes training random, and evaluation never is."""
    model = GPT(replace(SMALL, **{f"{place}_dropout": 0.5}), V)
    tokens = tokens_of(2, 6)
    trained = model(tokens), model(tokens)
    with evaluating(model):
        evaluated = model(tokens), model(tokens)

    assert not torch.equal(*trained)
    assert torch.equal(*evaluated)


def test_without_dropout():
    """Without dropout a training pass computes what an evaluating one does."""
    model = GPT(SMALL, V)
    trained = model(tokens_of(2, 6))
    with evaluating(model):
        assert torch.equal(trained, model(tokens_of(2, 6)))


def test_hidden():
    """`hidden` gives (B, T, C), and the head makes the logits of it."""
    model = GPT(SMALL, V)
    hidden = model.hidden(tokens_of(2, 5))

    assert hidden.shape == (2, 5, 8)
    assert torch.equal(model.lm_head(hidden), model(tokens_of(2, 5)))


def test_next_logits():
    """The next token's logits are the last position's, without dropout, whatever mode the model is in."""
    model = GPT(replace(SMALL, dropout=0.5), V)
    found = model.next_logits(tokens_of(2, 5))

    assert model.training
    torch.testing.assert_close(found, model.eval()(tokens_of(2, 5))[:, -1].detach())


def test_next_logits_has_no_graph():
    """The next token's logits carry no gradient, and a training step can follow."""
    model = GPT(SMALL, V)
    found = model.next_logits(tokens_of(1, 3))
    model(tokens_of(1, 3)).sum().backward()

    assert not found.requires_grad
    assert model.wte.weight.grad is not None


def test_evaluating_an_evaluated_model():
    """A model that was in evaluation mode stays there."""
    model = nn.Dropout().eval()
    with evaluating(model):
        pass

    assert not model.training


def test_evaluating_restores_the_mode():
    """After an error inside it, `evaluating` leaves the model in the mode of before."""
    model = nn.Dropout()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0

    assert model.training
