"""AdamW for host memory: torch's bits and torch's state."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch.optim import AdamW

from job.training.adamw import HostAdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
SHAPES = [(4, 5), (5,), (3, 4, 2), ()]


def trained(kind, steps, *, begin=lambda optimizer: None, bad=(), without=()):
    """Parameters and optimizer after some updates with gradients from a seed, in two groups."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimizer = kind(groups, **SETTINGS) if kind is HostAdamW else kind(groups, fused=True, **SETTINGS)
    begin(optimizer)
    for step in range(steps):
        for number, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + number))
            parameter.grad = None if (step, number) in without else gradient
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.found_inf = torch.tensor(float(step in bad))
        optimizer.step()
    return parameters, optimizer


def same(one, other):
    """Whether parameters and all entries of the state are equal."""
    (ours, optimizer), (theirs, reference) = one, other
    states = [(optimizer.state[p], reference.state[q]) for p, q in zip(ours, theirs, strict=True)]
    return all(map(torch.equal, ours, theirs)) and all(
        list(own) == list(its) and all(torch.equal(own[name], its[name]) for name in its) for own, its in states
    )


@pytest.mark.parametrize("bad", [(), (0,), (2, 3)], ids=["all finite", "the first not", "two not"])
def test_it_is_torchs(bad):
    """Parameters, moments and steps are torch's own, also where steps were not finite."""
    assert same(trained(HostAdamW, 6, bad=bad), trained(AdamW, 6, bad=bad))


def test_a_parameter_without_a_gradient_is_left_alone():
    """Its moments and its step stay, and it goes on when it has one again."""
    without = {(0, 1), (3, 0), (3, 2)}

    assert same(trained(HostAdamW, 6, without=without), trained(AdamW, 6, without=without))


@pytest.mark.parametrize("before", [AdamW, HostAdamW])
def test_state_put_in_place_is_used(before):
    """Either goes on from what the other has left, and from a state that is put in place in mid-run."""
    left = trained(before, 3)[1].state_dict()

    def begin(optimizer):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.load_state_dict(deepcopy(left))

    assert same(trained(HostAdamW, 4, begin=begin), trained(AdamW, 4, begin=begin))


def test_a_cleared_state_begins_again():
    """After its state was cleared the next step is a first one."""
    parameters, optimizer = trained(HostAdamW, 3)
    optimizer.state.clear()
    optimizer.step()

    assert {float(optimizer.state[p]["step"]) for p in parameters} == {1.0}


def test_the_compiler_is_not_loaded():
    """Steps and all around them come without torch's compiler, which takes a second to import."""
    code = """import sys, torch; from job.training.adamw import HostAdamW
p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)
o = HostAdamW([{"params": [p]}], lr=0.1); o.step(); o.step(); o.zero_grad()
print("torch._dynamo" in sys.modules)"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.strip() == "False"
