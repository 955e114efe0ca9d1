"""Muon with AdamW: which parameters go where, and that it is held to all that AdamW is held to."""

import math

import pytest
import torch
from safetensors.torch import load_file

from job.checkpoint.events import Segment
from job.checkpoint.record import Record
from job.checkpoint.verify import Rejected
from job.config_file import load_config
from job.data.loader import Batch
from job.infra.device import choose_numerics
from job.training.learner import build_learner
from job.training.snapshot import HostMemory, take_snapshot
from job.training.state import TrainingState, restore
from job.training.tensors import OPTIMIZER, model_tensors, optimizer_tensors, to_safetensors

V, T = 61, 16


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def learner():
    """A small learner with Muon, fresh or with room for stored tensors."""

    def build(*settings, restoring=False):
        shape = ("model.n_layer=2", "model.n_head=2", "model.n_embd=16", f"model.context_length={T}")
        own = ("run_uri=unset", "optimizer.name=muon", "runtime.threads=1", "runtime.device=cpu", *shape)
        config = load_config(overrides=[*own, *settings]).config
        return build_learner(config, choose_numerics(config.runtime, None), V, restoring)

    return build


def step(learner, seed=0, loss_times=1.0):
    tokens = torch.randint(V, (2, T + 1), generator=torch.Generator().manual_seed(seed))
    loss = learner.backward(Batch(tokens[:, :-1], tokens[:, 1:], b""), 2)
    learner.update(loss * loss_times, 1e-2, 1.0)


def state_of(learner):
    return model_tensors(learner.model) | optimizer_tensors(learner.model, learner.optimizer)


def frozen(learner):
    return {name: tensor.clone() for name, tensor in state_of(learner).items()}


def unequal(found, expected):
    assert found.keys() == expected.keys()
    return [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])]


def test_muon_updates_the_matrices_of_the_blocks(learner):
    """Their state is a momentum; embeddings, head, norms and biases have AdamW's."""
    trained = learner()
    step(trained)
    by_muon = {
        name for name, _ in trained.model.named_parameters() if trained.optimizer.state[_].keys() == {"momentum_buffer"}
    }

    assert by_muon == {
        f"h.{layer}.{part}.weight"
        for layer in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_a_matrix_changes_alike_in_all_directions(learner):
    """Singular values of an update lie within what the iteration reaches, about a half to one and a half."""
    trained = learner("optimizer.weight_decay=0")
    before = trained.model.h[0].mlp.c_fc.weight.detach().clone()
    step(trained)
    values = torch.linalg.svdvals(before - trained.model.h[0].mlp.c_fc.weight.detach())

    assert values.max() / values.min() < 4
    assert values.mean() == pytest.approx(1e-2 * 0.2 * math.sqrt(64), rel=0.3)


@pytest.mark.parametrize("setting", ["runtime.precision=fp32", "runtime.precision=bf16"])
def test_a_step_that_is_not_finite_changes_nothing(learner, setting):
    """Neither parameters nor momenta nor moments."""
    trained = learner(setting)
    step(trained)
    before = frozen(trained)
    step(trained, 1, math.inf)

    assert unequal(state_of(trained), before) == []


@pytest.mark.parametrize(("found", "moves"), [(0.0, True), (1.0, False)])
def test_a_step_taken_back_without_waiting(learner, found, moves):
    """Where the answer lies on another device, a bad step is undone there, the very first one too."""
    trained, expected = learner(), learner()
    for one in (trained, expected):
        torch.manual_seed(0)
        tokens = torch.randint(V, (2, T + 1))
        one.backward(Batch(tokens[:, :-1], tokens[:, 1:], b""), 2)
    before = frozen(trained)
    trained.optimizer._step_without_waiting(torch.tensor(found) != 0)
    expected.optimizer._muon.step()
    momenta = [v for name, v in state_of(trained).items() if name.endswith("momentum_buffer")]

    assert all((momentum != 0).any() == moves for momentum in momenta)
    if moves:
        assert unequal(state_of(trained), state_of(expected)) == []
    else:
        assert unequal(model_tensors(trained.model), before) == []


def written(trained, folder):
    record = Record("checkpoint", 2, 1, "one", {"step": 2, "chain": TrainingState().chain, "data_offset": 0})
    snapshot = take_snapshot(
        HostMemory(), TrainingState(step=2), trained, tokenizer=b"{}", events=Segment(b"", 0), facts={}
    )
    for name, content in snapshot.checkpoint().files.items():
        (folder / name).write_bytes(b"".join(content))
    return record


def test_a_checkpoint_restores_everything(learner, tmp_path):
    """Parameters, momenta and moments come back to the bit, and so does the next step."""
    saved, restored = learner(), learner(restoring=True)
    step(saved)
    step(saved, 1)
    restore(tmp_path, written(saved, tmp_path), restored)
    same = unequal(state_of(restored), state_of(saved)) == []
    step(saved, 2)
    step(restored, 2)

    assert same
    assert unequal(state_of(restored), state_of(saved)) == []


@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight.momentum_buffer", "wte.weight.exp_avg"])
def test_a_checkpoint_that_lacks_a_momentum_is_rejected(learner, tmp_path, name):
    """Without it that parameter would start over unnoticed."""
    trained = learner()
    step(trained)
    record = written(trained, tmp_path)
    stored = load_file(tmp_path / OPTIMIZER)
    del stored[name]
    (tmp_path / OPTIMIZER).write_bytes(b"".join(to_safetensors(stored)))

    with pytest.raises(Rejected, match=name.rpartition(".")[0]):
        restore(tmp_path, record, learner(restoring=True))
