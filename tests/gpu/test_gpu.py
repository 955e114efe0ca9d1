"""What only a GPU can show; every test says why it is skipped where there is none.

The same switches are tested on a CPU in tests/unit: this is what differs there.
"""

import pytest
import torch
from torch.nn import functional as F

from job.config import ModelConfig
from job.config_file import load_config
from job.data.loader import Batch
from job.infra.compiled_code import CompiledCode
from job.infra.compiler import settle_compiling
from job.infra.device import choose_numerics
from job.model import loss
from job.model.gpt import GPT
from job.training.learner import build_learner
from job.training.randomness import seed_torch
from job.training.room import Room

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
    pytest.mark.slow,
]
V, T, ROWS = 50257, 256, 4


def learner_with(*settings):
    shape = ("model.n_layer=2", "model.n_head=4", "model.n_embd=256", f"model.context_length={T}")
    config = load_config(overrides=["run_uri=unset", "runtime.device=cuda", *shape, *settings]).config
    return build_learner(config, choose_numerics(config.runtime, None), V, restoring=False)


def batch(seed=0):
    tokens = torch.randint(V, (ROWS, T + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1].contiguous().pin_memory(), tokens[:, 1:].contiguous().pin_memory(), b"")


def losses(learner, steps):
    found = []
    for step in range(steps):
        seed_torch(learner.device, step)
        value = learner.backward(batch(), ROWS)
        learner.update(value, 1e-3, 1.0)
        found.append(value)
    return torch.stack(found).cpu()


def test_auto_is_bf16_and_compiled(tmp_path):
    """What `auto` becomes on a GPU that multiplies in bf16, and torch can indeed compile for it."""
    config = load_config(overrides=["run_uri=unset"]).config
    numerics = choose_numerics(config.runtime, None)

    assert (numerics.device, numerics.precision, numerics.compile) == ("cuda", "bf16", True)
    assert settle_compiling(numerics, config.runtime, CompiledCode(tmp_path, {})) == numerics


def test_a_step_waits_for_nothing():
    """From the second step on, gradients, clipping and update never ask the GPU for an answer."""
    learner = learner_with("runtime.compile=off")
    losses(learner, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        seed_torch(learner.device, 2)
        learner.update(learner.backward(batch(), ROWS), 1e-3, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(name):
    """The update is held back on the device, without an answer from it."""
    learner = learner_with("runtime.compile=off", f"optimizer.name={name}")
    losses(learner, 1)
    before = [p.detach().clone() for p in learner.model.parameters()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.update(learner.backward(batch(), ROWS) * torch.inf, 1e-3, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert all(torch.equal(p, old) for p, old in zip(learner.model.parameters(), before, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_heads_loss(compiled):
    """Padded vocabulary, parts and logits in bf16: loss and gradients near those of the plain way in fp32."""
    torch.manual_seed(0)
    x = torch.randn(512, 64, device="cuda", requires_grad=True)
    weight = torch.randn(V, 64, device="cuda", requires_grad=True)
    targets = torch.randint(V, (512,), device="cuda")
    expected = F.cross_entropy(F.linear(x, weight), targets)
    with torch.autocast("cuda", torch.bfloat16):
        found = loss.head_loss(x, weight, None, targets, compiled)

    assert found.item() == pytest.approx(expected.item(), rel=0.01)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, weight)), torch.autograd.grad(expected, (x, weight)), strict=True
    ):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_attention_takes_the_flash_kernel():
    """The model's own shapes and types are ones that it takes."""
    model = GPT(ModelConfig(n_layer=1, context_length=T), 99).cuda()
    tokens = torch.randint(99, (2, T), device="cuda")
    flash = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION)
    with flash, torch.autocast("cuda", torch.bfloat16):
        model(tokens, tokens).backward()


def test_compiled_and_eager_learn_alike():
    """Twenty steps on one batch: within 0.05 nats at each."""
    eager, compiled = (losses(learner_with(f"runtime.compile={how}"), 20) for how in ("off", "on"))

    assert eager[-1] < eager[0] - 1
    assert (eager - compiled).abs().max() < 0.05


def test_cuda_graphs_compute_the_same():
    """Twenty steps with dropout, an evaluation among them: not a bit differs, and no pass was left out."""
    found = []
    for graphs in ("false", "true"):
        torch._dynamo.utils.counters.clear()
        learner = learner_with("runtime.compile=on", f"runtime.cuda_graphs={graphs}", "model.dropout=0.1")
        first = losses(learner, 10)
        with torch.inference_mode():
            learner.model.eval()(batch().inputs.cuda())
        learner.model.train()
        found.append(torch.cat([first, losses(learner, 10)]))

    assert torch.equal(*found)
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


def test_the_same_seed_is_the_same_run():
    """With `deterministic` two runs end with equal bits."""
    runs = []
    for _ in range(2):
        learner = learner_with("runtime.compile=off", "runtime.deterministic=true", "model.dropout=0.1")
        runs.append((losses(learner, 5), [p.detach().clone() for p in learner.model.parameters()]))
    torch.set_deterministic_debug_mode("default")

    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(one, other) for one, other in zip(runs[0][1], runs[1][1], strict=True))


def test_out_of_memory_says_what_would_fit():
    """Torch's words about what was asked and free, and a setting."""
    config = load_config(overrides=["run_uri=unset"]).config
    room = Room(config, learner_with("runtime.compile=off").numerics, 257)
    with pytest.raises(MemoryError, match=r"Tried to allocate .*micro_batch_size"), room.explained():
        torch.empty(1 << 50, device="cuda")
