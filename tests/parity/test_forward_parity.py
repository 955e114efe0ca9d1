"""The tutorials' models compute what ours computes: starting values, logits, gradients, dropout, losses."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from job.config import ModelConfig
from job.model.gpt import GPT
from tests.parity.plain_models import PlainBaby, PlainVerdict, by_our_names

ASSETS = Path(__file__).parents[3] / "shared" / "data"
BPE_FILES = {  # name in tiktoken's cache folder, by file
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}
VERDICT = ModelConfig(context_length=256, dropout=0.1, qkv_bias=False, tie_weights=False, init="torch")
BABY = ModelConfig(
    n_layer=2,
    n_head=2,
    n_embd=16,
    head_size=8,
    context_length=8,
    dropout=0.2,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    qkv_bias=False,
    head_bias=True,
    tie_weights=False,
    final_norm=False,
    activation="relu",
    attention_scale="embd",
    init="torch",
)
PAIRS = {  # our settings, the plain model, and its layers, heads, width, context
    "verdict, small": (
        replace(VERDICT, n_layer=3, n_head=4, n_embd=32, context_length=16),
        PlainVerdict,
        (3, 4, 32, 16),
    ),
    "baby-cpu": (BABY, PlainBaby, (2, 2, 16, 8)),
    "baby-gpu": (
        replace(BABY, n_layer=6, n_head=6, n_embd=512, head_size=85, context_length=256),
        PlainBaby,
        (6, 6, 512, 256),
    ),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    """Ours and the plain model with the same weights, and tokens (2, T) that fill their context."""
    config, kind, sizes = PAIRS[request.param]
    torch.manual_seed(0)
    ours, plain = GPT(config, 65), kind(*sizes, 65)
    ours.load_state_dict(by_our_names(plain, lambda parameter: parameter.detach()))
    return ours, plain, torch.randint(65, (2, config.context_length))


def test_forward(pair):
    """With the tutorial's weights, logits are the tutorial's."""
    ours, plain, tokens = pair

    torch.testing.assert_close(ours.eval()(tokens), plain.eval()(tokens), rtol=1e-5, atol=1e-5)


def test_gradients(pair):
    """With the tutorial's weights, the gradient of the loss is the tutorial's in every parameter.

    In float64: in float32 a ReLU that rounding puts on the other side of 0 changes its whole row.
    """
    *models, tokens = pair
    ours, plain = (model.double().eval() for model in models)
    for model in (ours, plain):
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}

    torch.testing.assert_close(found, by_our_names(plain, lambda parameter: parameter.grad), rtol=1e-5, atol=1e-10)


def test_dropout(pair, monkeypatch):
    """With torch's own masks and one seed, training drops what the tutorial drops, in the same places and order."""
    ours, plain, tokens = pair
    monkeypatch.setattr("job.model.dropout._WORTH_IT", 1 << 62)
    monkeypatch.setattr("job.model.attention._WORTH_IT", 1 << 62)
    torch.manual_seed(1)
    found = ours.train()(tokens)
    torch.manual_seed(1)

    torch.testing.assert_close(found, plain.train()(tokens), rtol=1e-5, atol=1e-5)


def test_baby_parameter_count():
    """Baby GPT's CPU column has 8,737 parameters."""
    assert GPT(BABY, 65).parameter_count == 8737


@pytest.fixture(scope="module")
def verdict():
    """Ours at the tutorial's full shape, drawn under its seed."""
    torch.manual_seed(123)
    return GPT(VERDICT, 50257).eval()


@pytest.fixture(scope="module")
def plain_verdict():
    torch.manual_seed(123)
    return PlainVerdict(12, 12, 768, 256, 50257).eval()


def test_verdict_start(verdict, plain_verdict):
    """Under the tutorial's seed, every parameter starts with the tutorial's value, to the bit."""
    expected = by_our_names(plain_verdict, lambda parameter: parameter.detach())

    assert verdict.state_dict().keys() == expected.keys()
    assert [name for name, tensor in verdict.state_dict().items() if not torch.equal(tensor, expected[name])] == []


def test_verdict_forward(verdict, plain_verdict):
    """At the tutorial's full shape, logits are the tutorial's."""
    tokens = torch.randint(50257, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(verdict(tokens), plain_verdict(tokens), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def verdict_tokens(tmp_path_factory):
    """The Verdict's GPT-2 tokens by split, cut at nine tenths of its characters."""
    if not ASSETS.is_dir():
        pytest.skip(f"needs The Verdict and GPT-2's BPE files in {ASSETS}")
    import tiktoken

    cache = tmp_path_factory.mktemp("tiktoken")
    for name, cached in BPE_FILES.items():
        shutil.copyfile(ASSETS / name, cache / cached)
    text = (ASSETS / "the-verdict.txt").read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        encoding = tiktoken.get_encoding("gpt2")
    return {"train": encoding.encode(text[:cut]), "validation": encoding.encode(text[cut:])}


@pytest.mark.slow  # for each commit test_verdict_training does, through the job's own evaluation
@pytest.mark.parametrize(("split", "windows", "loss"), [("train", 18, 10.987583), ("validation", 2, 10.981106)])
def test_verdict_untrained_loss(verdict, verdict_tokens, split, windows, loss):
    """Untrained, the loss over each whole split is the one the tutorial prints, to 1e-5 nats."""
    tokens = torch.tensor(verdict_tokens[split])
    inputs = tokens[:-1].unfold(0, 256, 256)
    targets = tokens[1:].unfold(0, 256, 256)
    with torch.no_grad():
        losses = [
            F.cross_entropy(verdict(batch).flatten(0, 1), expected.flatten())
            for batch, expected in zip(inputs.split(2), targets.split(2), strict=True)
        ]

    assert len(inputs) == windows
    assert float(torch.stack(losses).mean()) == pytest.approx(loss, abs=1e-5)
