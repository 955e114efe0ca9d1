"""Passes that are replayed: to the bit what modules and autograd make of them, or not replayed at all."""

import itertools

import pytest
import torch

from job.config import ModelConfig
from job.config_file import load_config
from job.data.loader import Batch
from job.infra.device import Numerics
from job.model import dropout
from job.model.gpt import GPT
from job.training.learner import Learner, build_learner
from job.training.numerics import may_replay, settle_numerics
from job.training.recorded import RecordedPasses
from job.training.recording import NotRepeatableError, Recording

V = 17
MODELS = {
    "GPT-2's form": {},
    "dropout everywhere": {"dropout": 0.1},
    "attention dropout": {"attention_dropout": 0.2},
    "untied": {"tie_weights": False, "dropout": 0.1},
    "Baby GPT's form": {
        "tie_weights": False,
        "head_bias": True,
        "qkv_bias": False,
        "final_norm": False,
        "activation": "relu",
        "attention_scale": "embd",
        "residual_dropout": 0.2,
    },
    "no biases": {"bias": False, "qkv_bias": False},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(**settings):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 12}
    return GPT(ModelConfig(**{**sizes, **settings}), V)


def tokens(rows, length=12, seed=1):
    return torch.randint(V, (2, rows, length), generator=torch.Generator().manual_seed(seed)).unbind()


def results(model, passes, run):
    """Loss shares and gradients after the passes, and what the generator draws next."""
    model.zero_grad()
    torch.manual_seed(3)
    shares = [run(*tokens(rows, length), weight) for rows, length, weight in passes]
    return [*shares, *(p.grad.clone() for p in model.parameters()), torch.rand(3)]


def eagerly(model):
    def run(inputs, targets, weight):
        share = model(inputs, targets) * weight
        share.backward()
        return share.detach()

    return run


def same(found, expected):
    return all(itertools.starmap(torch.equal, zip(found, expected, strict=True)))


@pytest.mark.parametrize("passes", [[(3, 12, 1.0)], [(3, 12, 0.4), (3, 12, 0.4), (2, 12, 0.2)]], ids=["one", "three"])
@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_a_replay_is_the_pass(settings, passes):
    """Loss, gradients (also of several passes, the last one smaller) and random numbers are equal, again and again."""
    model = model_of(**settings)
    expected = results(model, passes, eagerly(model))
    recorded = RecordedPasses(model)

    for _ in range(3):
        assert same(results(model, passes, recorded.run), expected)


def test_each_size_is_recorded_by_itself():
    """A shorter sequence, or another weight, is another pass."""
    model = model_of(dropout=0.1)
    passes = [(3, 12, 0.5), (3, 7, 0.3), (2, 12, 0.2)]

    assert same(results(model, passes, RecordedPasses(model).run), results(model, passes, eagerly(model)))


def test_parameters_are_read_each_time():
    """A replay uses what the parameters hold by then, in whatever memory."""
    model = model_of()
    recorded = RecordedPasses(model)
    results(model, [(3, 12, 1.0)], recorded.run)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1

    assert same(results(model, [(3, 12, 1.0)], recorded.run), results(model, [(3, 12, 1.0)], eagerly(model)))


def test_frozen_parameters_have_no_gradient():
    """Only what is trained is given a gradient."""
    model = model_of()
    model.wpe.weight.requires_grad_(False)
    model.h[0].mlp.requires_grad_(False)
    RecordedPasses(model).run(*tokens(2), 1.0)

    assert {n for n, p in model.named_parameters() if p.grad is None} == {
        n for n, p in model.named_parameters() if not p.requires_grad
    }


def test_gradients_share_no_memory():
    """Clipping one gradient in place leaves the others and the parameters alone."""
    model = model_of()
    RecordedPasses(model).run(*tokens(2), 1.0)
    held = [t.untyped_storage().data_ptr() for p in model.parameters() for t in (p, p.grad)]

    assert len(set(held)) == len(held)
    assert not any(p.grad.requires_grad or p.grad.is_inference() for p in model.parameters())


def test_masks_drawn_by_numpy_are_not_replayed(monkeypatch):
    """A recording could only repeat its own pass's masks: the pass is left to autograd, its numbers undrawn."""
    monkeypatch.setattr(dropout, "_WORTH_IT", 0)
    model = model_of(dropout=0.1)
    torch.manual_seed(3)
    before = torch.get_rng_state()

    assert RecordedPasses(model).run(*tokens(2), 1.0) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_pass_that_differs_each_time_is_not_replayed(monkeypatch):
    """What does not come out again as it was recorded is not used."""
    model, calls = model_of(), itertools.count()
    monkeypatch.setattr(model, "forward", lambda i, t: GPT.forward(model, i, t) * (1 + next(calls)))

    assert RecordedPasses(model).run(*tokens(2), 1.0) is None


@pytest.mark.parametrize("look", [float, bool, lambda x: x.new_ones(3)[x > 0], lambda x: x + torch.tensor(1.0)])
def test_what_cannot_be_recorded(look):
    """Values that Python sees, sizes that follow from values and tensors from elsewhere end a recording."""
    x = torch.ones(3)
    with pytest.raises(NotRepeatableError), Recording([x]):
        look(x.sum() if look in (float, bool) else x)


def numerics(**settings):
    plain = {"device": "cpu", "precision": "fp32", "compile": False, "deterministic": False, "threads": 1}
    return Numerics(**{**plain, **settings})


def config(*overrides):
    return load_config("baby-cpu", overrides=["run_uri=unset", "runtime.device=cpu", *overrides]).config


def test_auto_replays_small_plain_passes():
    """In one process on the CPU, in fp32, not compiled, below what threads share."""
    assert may_replay(config(), numerics())
    assert not may_replay(config("model.context_length=128"), numerics())
    for other in ({"device": "cuda"}, {"precision": "bf16"}, {"compile": True}, {"world_size": 2, "parallel": "ddp"}):
        assert not may_replay(config(), numerics(**other))


def trained(learner: Learner, steps: int, rows_per_pass: int):
    """Losses, norms and parameters of some updates."""
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        inputs, targets = tokens(5, 8, seed=step)
        loss = learner.backward(Batch(inputs, targets, b""), rows_per_pass)
        found += [loss, learner.update(loss, 1e-3, 1.0)]
    return [*found, *(p.detach().clone() for p in learner.model.parameters())]


@pytest.mark.parametrize("rows_per_pass", [5, 2])
def test_training_is_the_same(rows_per_pass):
    """Twenty updates with clipping, replayed and not: equal to the bit."""
    settled = config("model.dropout=0.1")
    outcomes = []
    for replays in (True, False):
        learner = build_learner(settled, settle_numerics(settled, None), V, restoring=False)
        if not replays:
            learner = Learner(*(getattr(learner, name) for name in Learner.__slots__ if name != "recorded"))
        outcomes.append(trained(learner, 20, rows_per_pass))

    assert same(*outcomes)
