"""What the CPU's fast ways compute: the same as the plain ones, held to them at sizes where both are quick."""

import math

import pytest
import torch
from torch.nn import functional as F

from job.config import ModelConfig
from job.model import attention, dropout, gpt, loss
from job.model.dropout import Masks
from job.model.gpt import GPT

N, T, D = 6, 300, 16  # heads; more than two blocks of queries, the last one smaller
V = 999  # no multiple of 64
P = 0.3


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def always(monkeypatch):
    """The fast ways are taken whatever the size."""
    monkeypatch.setattr(attention, "_WORTH_IT", 0)
    monkeypatch.setattr(dropout, "_WORTH_IT", 0)
    monkeypatch.setattr(loss, "_WORTH_IT", 0)


def gradients(value, *of, gradient=None):
    return torch.autograd.grad(value, of, gradient)


def test_masks_drop_the_share_that_is_asked_for():
    """Of a million elements 30 % are dropped, give or take what chance allows."""
    mask = Masks(1, P).draw((1000, 1000), torch.float32)

    assert mask.mean().item() == pytest.approx(1 - P, abs=5 * math.sqrt(P * (1 - P) / 1e6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_are_ones_and_zeros(dtype):
    """In every dtype a mask holds exact ones and zeros, the same ones from the same seed."""
    masks = [Masks(1, P).draw((33, 7), dtype) for _ in range(2)]

    assert masks[0].dtype == dtype
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(*masks)


def test_masks_of_one_use_differ():
    """The second mask of a generator is not the first."""
    masks = Masks(1, P)

    assert not torch.equal(masks.draw((64, 64), torch.float32), masks.draw((64, 64), torch.float32))


def test_what_is_kept_makes_up_for_what_is_dropped():
    """Kept elements are scaled by what the share of 1/65536ths really is: the expectation is exact."""
    for p in (0.1, 0.5, P):
        masks = Masks(1, p)
        assert masks.scale * (1 - round(p * 65536) / 65536) == pytest.approx(1, rel=1e-12)


def test_dropout_zeroes_the_gradients_of_what_it_zeroed(always):
    """Gradient and value go through one mask and one scale."""
    x = torch.randn(50, 40, requires_grad=True)
    y = dropout.dropout(x, P, training=True)
    (gradient,) = gradients(y.sum(), x)

    torch.testing.assert_close(y, x * gradient)


def test_dropout_follows_torchs_seed(always):
    """Whoever seeds torch repeats the masks; the next use draws others."""
    x, found = torch.ones(50, 40), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(dropout.dropout(x, P, training=True))
    found.append(dropout.dropout(x, P, training=True))

    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert not torch.equal(found[2], found[3])


def plain_attention(q, k, v, scale, p, seed):
    """The whole matrix at once, with the masks of the blocks put together."""
    mask, masks = torch.zeros(N, T, T), Masks(seed, p)
    for first in range(0, T, 128):
        last = min(first + 128, T)
        mask[:, first:last, :last] = masks.draw((N, last - first, last), torch.float32)
    weights = (q @ k.mT * scale).masked_fill(torch.ones(T, T).triu(1) == 1, -math.inf).softmax(-1)
    return (weights * mask * masks.scale) @ v


def test_attention_with_dropout(monkeypatch, always):
    """Values and gradients are those of the whole matrix with the same mask."""
    monkeypatch.setattr(attention, "draw_seed", lambda: 5)
    q, k, v = (torch.randn(N, T, D, requires_grad=True) for _ in range(3))
    found = attention.attend(q[None], k[None], v[None], P, 0.2)[0]
    expected = plain_attention(q, k, v, 0.2, P, 5)
    given = torch.randn(N, T, D)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(
        gradients(found, q, k, v, gradient=given), gradients(expected, q, k, v, gradient=given), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_attention_in_bf16(always):
    """Without dropout, in bf16: as near to float32 as rounding lets it be, gradients within a hundredth."""
    exact = [torch.randn(1, N, T, D, requires_grad=True) for _ in range(3)]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    given = torch.randn(1, N, T, D)
    expected = F.scaled_dot_product_attention(*exact, is_causal=True)
    found = attention.attend(*rounded, 0.0, 1 / math.sqrt(D))
    ours, theirs = gradients(found, *rounded, gradient=given.bfloat16()), gradients(expected, *exact, gradient=given)

    for one, other in zip((found, *ours), (expected, *theirs), strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [2, 50, 1000])
def test_head_loss(monkeypatch, always, bias, rows):
    """Loss and gradients are those of the plain way, in any number of parts, with the vocabulary padded inside."""
    monkeypatch.setattr(loss, "LOGIT_BYTES", rows * 4 * 1024)
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 16 * V)
    x, weight = (torch.randn(*shape, requires_grad=True) for shape in ((2, 60, 24), (V, 24)))
    b = torch.randn(V, requires_grad=True) if bias else None
    targets = torch.randint(V, (2, 60))
    inputs = (x, weight) if b is None else (x, weight, b)
    expected = F.cross_entropy(F.linear(x, weight, b).flatten(0, 1), targets.flatten())
    found = loss.head_loss(x, weight, b, targets)

    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found * 3, *inputs), gradients(expected * 3, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_head_loss_of_an_impossible_target(always):
    """A target whose probability is below what float32 holds still has its loss, not an infinite one."""
    x, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)

    assert loss.head_loss(x, weight, None, torch.tensor([1])).item() == pytest.approx(400)


def trained(precision, steps, rate=3e-3):
    """Losses of a small GPT without dropout, which learns a text of 500 random tokens over and over."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=64, tie_weights=False), V)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    text = torch.randint(V, (500,), generator=torch.Generator().manual_seed(1))
    found = []
    for step in range(steps):
        starts = torch.randint(500 - 65, (4, 1), generator=torch.Generator().manual_seed(step))
        windows = text[starts + torch.arange(65)]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = model(windows[:, :-1], windows[:, 1:])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return torch.tensor(found)


@pytest.fixture
def plain(monkeypatch):
    """Losses by torch's own ways in float32."""
    with monkeypatch.context() as patch:
        patch.setattr(gpt, "attend", lambda q, k, v, p, s: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        patch.setattr(gpt, "head_loss", lambda x, w, b, t, _: F.cross_entropy((x @ w.T).flatten(0, 1), t.flatten()))
        return trained("fp32", 60)


def test_loss_curves_agree_in_fp32(plain, always):
    """Sixty steps down to a third of the loss: at none more than 0.001 nats from the plain way."""
    found = trained("fp32", 60)

    assert plain[-1] < plain[0] / 3
    assert (found - plain).abs().max() < 0.001


def test_loss_curves_agree_in_bf16(plain, always):
    """The fast settings together (bf16 products, blocks, loss of the head): within 0.05 nats at each step."""
    found = trained("bf16", 60)

    assert (found - plain).abs().max() < 0.05
