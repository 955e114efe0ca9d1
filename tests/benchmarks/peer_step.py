"""Steps of one peer, or ours, in a process of its own.

`python -m tests.benchmarks.peer_step NAME CONTEXT BATCH DROPOUT [DEVICE]` takes GPT-2's 124M shape on random tokens, on
as many threads as OMP_NUM_THREADS says, and prints one line of JSON. DEVICE is `cpu`, or `cuda`, which has been tried
on no GPU yet. Checkouts of peers lie below $PEERS, each in a folder with the repository's name; litgpt and transformers
are taken where they are installed. Nobody clips gradients.

Ours, the tutorial's model and the plain one of the parity tests, which stands in for it, have an untied head. nanoGPT
and transformers tie theirs, which is less work. litgpt's is untied; it has rotary positions and no dropout.
"""

import contextlib
import importlib.util
import io
import json
import os
import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

V, STEPS = 50257, int(os.environ.get("STEPS", "4"))
CHECKOUTS = {
    "tutorial": Path("LLMs-from-scratch/ch05/01_main-chapter-code/previous_chapters.py"),
    "nanogpt": Path("nanoGPT/model.py"),
}


def checkout(kind):
    """Where a peer's module would be."""
    return Path(os.environ.get("PEERS", "/nowhere")) / CHECKOUTS[kind]


def missing(name):
    """What a peer needs and this machine lacks; None where it can be measured."""
    kind = name.partition("-")[0]
    if kind in CHECKOUTS and not checkout(kind).exists():
        return f"needs a checkout of {CHECKOUTS[kind].parts[0]} below $PEERS"
    if kind in ("litgpt", "transformers") and importlib.util.find_spec(kind) is None:
        return f"needs {kind}, which `make bench` installs"
    if name.endswith("-compile") and shutil.which("g++") is None:
        return "needs g++, which torch compiles with"
    return None


def module_of(kind):
    """A peer's module from its checkout."""
    file = checkout(kind)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def fused_adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, fused=True)


def plain_loop(loss_of, optimizer, device, autocast):
    def step(x, y):
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = loss_of(x, y)
        loss.backward()
        optimizer.step()

    return step


def chapter_loop(model, device):
    """The loop of the tutorial's chapter 5, in fp32."""
    optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=4e-4, weight_decay=0.1)
    return plain_loop(lambda x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten()), optimizer, device, False)


def tutorials_model(context, dropout):
    sizes = {"vocab_size": V, "context_length": context, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
    return module_of("tutorial").GPTModel({**sizes, "drop_rate": dropout, "qkv_bias": False})


def plain_model(context, dropout):
    from tests.parity.plain_models import PlainVerdict

    return PlainVerdict(12, 12, 768, context, V, dropout)


def nanogpt(context, dropout, device, best=False, compiled=False):
    """As train.py has it: fp32 on a CPU, bf16 on a GPU, there with fused AdamW; compiled as its setting `compile` does.

    At its best it has what a user of a CPU could switch on by hand: fused AdamW and bf16.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    module = module_of("nanogpt")
    with contextlib.redirect_stdout(io.StringIO()):
        sizes = {"block_size": context, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768}
        model = module.GPT(module.GPTConfig(**sizes, dropout=dropout, bias=False)).to(device)
        optimizer = fused_adamw(model) if best else model.configure_optimizers(0.1, 4e-4, (0.9, 0.95), device)
    forward = torch.compile(model) if compiled else model
    return plain_loop(lambda x, y: forward(x, y)[1], optimizer, device, best or device == "cuda")


def litgpts_model(context):
    """litgpt's GPT with GPT-2's sizes."""
    from litgpt import GPT, Config

    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": context, "vocab_size": V, "padding_multiple": 64}
    shape = {"parallel_residual": False, "rotary_percentage": 1.0, "gelu_approximate": "tanh"}
    return GPT(Config(**sizes, **shape))


def litgpt(context, dropout, device, compiled=False):
    """The loop of its pretrain.py, which always compiles: Fabric's bf16-mixed, the loss in chunks.

    AdamW is fused on a CPU too, where it does not ask for that. There is no dropout to set.
    """
    from lightning import Fabric
    from litgpt.utils import chunked_cross_entropy

    torch.set_float32_matmul_precision("high")  # its command does
    fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed")
    model = litgpts_model(context)
    model = fabric.setup(torch.compile(model) if compiled else model)
    optimizer = fabric.setup_optimizers(fused_adamw(model))

    def step(x, y):
        fabric.backward(chunked_cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformers(context, dropout, device):
    """What its Trainer does with bf16=True, without the Trainer: default attention, autocast, fused AdamW, no cache.

    The Trainer's own copy of all logits to fp32 is left out.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
    model = GPT2LMHeadModel(GPT2Config(n_positions=context, use_cache=False, **rates)).train().to(device)
    return plain_loop(lambda x, y: model(x, labels=x).loss, fused_adamw(model), device, True)  # it shifts them itself


PEERS = {
    "tutorial": lambda context, dropout, device: chapter_loop(tutorials_model(context, dropout), device),
    "plain": lambda context, dropout, device: chapter_loop(plain_model(context, dropout), device),
    "nanogpt": nanogpt,
    "nanogpt-best": partial(nanogpt, best=True),
    "nanogpt-compile": partial(nanogpt, compiled=True),
    "litgpt": litgpt,
    "litgpt-compile": partial(litgpt, compiled=True),
    "transformers": transformers,
}


def ours(context, batch, dropout, device):
    from job.bench.training import learner_for
    from job.config_file import load_config
    from job.data.loader import Batch

    settings = [f"model.context_length={context}", f"training.batch_size={batch}", f"model.dropout={dropout}"]
    config = load_config("verdict", overrides=[*settings, "runtime.precision=auto", f"runtime.device={device}"]).config
    learner = learner_for(config)

    def step(x, y):
        loss = learner.backward(Batch(x, y, b""), batch)
        learner.update(loss, 4e-4, None)
        loss.item()

    return step, learner


def seconds_of(step, x, y):
    """Seconds that a step takes until the device has done it."""
    started = time.perf_counter()
    step(x, y)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(name, context, batch, dropout, device="cpu"):
    context, batch, dropout = int(context), int(batch), float(dropout)
    torch.manual_seed(123)
    facts = {}
    if name == "ours":
        step, learner = ours(context, batch, dropout, device)
        from job.bench.limits import matmul_peak
        from job.training.flops import training_flops_per_token

        facts["flops"] = training_flops_per_token(learner.model) * context * batch
    elif reason := missing(name):
        sys.exit(f"{name} {reason}")
    else:
        step = PEERS[name](context, dropout, device)
    tokens = torch.randint(V, (batch, context + 1)).to(device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    found = [seconds_of(step, x, y) for _ in range(STEPS + 1)]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts["memory"] = torch.cuda.max_memory_reserved() if device == "cuda" else resident
    if name == "ours":
        facts["peak"] = matmul_peak(learner.device, "bf16")
    print(json.dumps({"name": name, "best": min(found[1:]), "steps": found[1:], **facts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
