"""What ranks say to each other about gradients: one rank of two, in a group of torch's that has only this one."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from job.config_file import load_config
from job.data.loader import Batch
from job.infra.device import choose_numerics
from job.infra.place import Place
from job.model.gpt import GPT
from job.training.learner import build_learner
from job.training.spread import Sharded

VOCABULARY, ROWS = 64, 6
SHAPE = ("model.n_layer=3", "model.n_embd=256", "model.n_head=4", "model.context_length=8", "model.dropout=0")


@pytest.fixture
def ranks():
    """The first of two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield SimpleNamespace(place=Place(rank=0, world_size=2, local_world_size=2), leads=True)
    dist.destroy_process_group()


def learner_of(ranks, *settings):
    config = load_config(overrides=[*SHAPE, f"training.batch_size={2 * ROWS}", "runtime.device=cpu", *settings]).config
    numerics = choose_numerics(config.runtime, None, ranks.place)
    return build_learner(config, numerics, VOCABULARY, False, ranks)


def step(learner, rows_per_pass):
    """Gradients of a step of this rank's rows."""
    tokens = torch.zeros(ROWS, 8, dtype=torch.int64)
    passes = []
    learner.backward(Batch(tokens, tokens, b""), rows_per_pass, lambda: passes.append(1))
    for parameter in learner.model.parameters():
        parameter.grad = None
    return len(passes)


@pytest.mark.parametrize(("rows_per_pass", "passes"), [(6, 1), (3, 2), (1, 6)])
def test_gradients_travel_once_a_step(ranks, rows_per_pass, passes):
    """Each bucket of gradients is summed over the ranks once, however many passes a step has."""
    learner, buckets = learner_of(ranks), []

    def summed(_, bucket):
        buckets.append(bucket.index())
        return allreduce_hook(None, bucket)

    learner.parallel.forward.register_comm_hook(None, summed)
    steps = [step(learner, rows_per_pass) for _ in range(2)]

    assert steps == [passes, passes]
    assert len(set(buckets)) > 1
    assert sorted(buckets) == sorted(2 * list(set(buckets)))


def test_shards_are_shared_out_after_each_pass(ranks):
    """With FSDP a rank has its share of the gradients after each pass; without, it would have all of them whole."""
    ranks.place = Place()
    model = GPT(load_config(overrides=SHAPE).config.model, VOCABULARY)
    sharded, tokens = Sharded(model, ranks, ROWS, torch.device("cpu")), torch.zeros(1, 8, dtype=torch.int64)
    for _, _, last in sharded.passes(ROWS, 2):
        with sharded.syncing(last):
            torch.autograd.backward(sharded.forward(tokens, tokens))

        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
