"""Strided evaluation: every token once, each after as many others as promised."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from job.config import ModelConfig, RuntimeConfig
from job.data.shards import ShardWriter, TokenSplit
from job.data.token_files import SplitFiles
from job.errors import ConfigError
from job.infra.device import choose_numerics
from job.model.gpt import GPT
from job.training.evaluation import Evaluator, strided_windows
from job.training.text import strided_set

V, T = 19, 8


@given(tokens=st.integers(2, 200), context=st.integers(1, 40), data=st.data())
def test_each_token_is_scored_once(tokens, context, data):
    """Whatever the lengths, every token but the first is scored once, after context - stride others where they are."""
    stride = data.draw(st.integers(1, context))
    starts, scored = strided_windows(tokens, context, stride)
    window = min(context, tokens - 1)
    targets, before = [], []
    for start, count in zip(starts.tolist(), scored.tolist(), strict=True):
        assert 0 <= start <= tokens - 1 - window
        targets += range(start + window + 1 - count, start + window + 1)
        before += range(window + 1 - count, window + 1)

    assert targets == list(range(1, tokens))
    assert all(many >= min(target, context - stride) for target, many in zip(targets, before, strict=True))


def loss_of(model, tokens, stride, count=None):
    """What the evaluator says of a split of `tokens`, three windows at a time."""
    chosen = strided_set(tokens, T, stride, count)
    evaluator = Evaluator({"test": chosen}, choose_numerics(RuntimeConfig(device="cpu"), None), torch.device("cpu"))
    return evaluator.measure(model, "test")


def split_of(folder, numbers, bytes_in_it):
    """A split of these tokens (t,)."""
    with ShardWriter(folder, "test", np.dtype(np.uint16)) as writer:
        writer.write(numbers.numpy().astype(np.uint16))
    return SplitFiles("test", len(numbers), bytes_in_it, bytes_in_it, 1, tuple(writer.paths))


@pytest.fixture
def text(tmp_path):
    """A split of 30 tokens, and a model."""
    torch.manual_seed(3)
    numbers = torch.randint(V, (30,))
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=8, context_length=T, init="torch"), V)
    return split_of(tmp_path, numbers, bytes_in_it=60), model, numbers


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_strided_loss(text, stride, monkeypatch):
    """The loss is the mean of -log p over all tokens but the first, each after what its window holds before it."""
    split, model, numbers = text
    monkeypatch.setattr("job.training.evaluation._PASS_BYTES", 3 * 4 * T * 8 * 8)
    costs = []
    for target in range(1, 30):
        end = max(T, T + -(-(target - T) // stride) * stride)  # of the window that scores it
        start = min(end, 29) - T
        log_p = model(numbers[None, start:target])[0, -1].log_softmax(-1)
        costs.append(-float(log_p[numbers[target]].detach()))
    found = loss_of(model, split, stride)

    assert (found.loss, found.tokens) == (pytest.approx(sum(costs) / 29, abs=1e-6), 29)
    assert found.bits_per_byte == pytest.approx(found.loss / np.log(2) / 2)


def test_the_first_windows(text):
    """Asked for two windows of stride 3, the first 11 tokens are scored."""
    split, model, _ = text

    assert loss_of(model, split, 3, count=2).tokens == T + 3


def test_a_text_shorter_than_the_context(text, tmp_path):
    """A text of 5 tokens has 4 to score, though the context is 8."""
    _, model, numbers = text
    expected = torch.nn.functional.cross_entropy(model(numbers[None, :4])[0], numbers[1:5])
    found = loss_of(model, split_of(tmp_path, numbers[:5], bytes_in_it=5), 4)

    assert (found.loss, found.tokens) == (pytest.approx(float(expected.detach()), abs=1e-6), 4)


@pytest.mark.parametrize("stride", [0, T + 1])
def test_refused_strides(text, stride):
    """A stride that would leave tokens out, or none at all, is refused."""
    with pytest.raises(ConfigError, match=f"--stride {stride} must be from 1 to the window of 8 tokens"):
        strided_set(text[0], T, stride, None)


def test_the_split_is_read_from_its_file(text):
    """The windows are those of the split's own tokens."""
    split, _, numbers = text

    assert TokenSplit(split.paths).window(0, 30).tolist() == numbers.tolist()
