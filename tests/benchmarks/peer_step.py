"""Steps of one peer, or ours, in a process of its own.

`python -m tests.benchmarks.peer_step NAME CONTEXT BATCH DROPOUT` takes GPT-2's 124M shape on random tokens, on as many
threads as OMP_NUM_THREADS says, and prints one line of JSON. Peers are imported from checkouts below $PEERS, each in a
folder with the repository's name; without one the tutorial's model is the plain one of the parity tests. nanoGPT ties
its head, which is less work.
"""

import contextlib
import importlib.util
import io
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

V, STEPS = 50257, int(os.environ.get("STEPS", "4"))


def peer(repository, path):
    """A peer's module from its checkout; None without one."""
    file = Path(os.environ.get("PEERS", "/nowhere"), repository, path)
    if not file.exists():
        return None
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def plain_loop(loss_of, optimizer, autocast):
    def step(x, y):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = loss_of(x, y)
        loss.backward()
        optimizer.step()

    return step


def tutorial(context, dropout):
    chapters = peer("LLMs-from-scratch", "ch05/01_main-chapter-code/previous_chapters.py")
    if chapters is None:
        from tests.parity.plain_models import PlainVerdict

        model = PlainVerdict(12, 12, 768, context, V)
    else:
        sizes = {"vocab_size": V, "context_length": context, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
        model = chapters.GPTModel({**sizes, "drop_rate": dropout, "qkv_bias": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    return plain_loop(lambda x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten()), optimizer, False)


def nanogpt(context, dropout, best):
    """As it ships, or with all that a user could switch on by hand: fused AdamW and bf16 autocast."""
    module = peer("nanoGPT", "model.py")
    if module is None:
        sys.exit("needs a checkout of nanoGPT below $PEERS")
    with contextlib.redirect_stdout(io.StringIO()):
        sizes = {"block_size": context, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768}
        model = module.GPT(module.GPTConfig(**sizes, dropout=dropout, bias=False))
        optimizer = model.configure_optimizers(0.1, 4e-4, (0.9, 0.95), "cpu")
    if best:
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, fused=True)
    return plain_loop(lambda x, y: model(x, y)[1], optimizer, best)


def ours(context, batch, dropout):
    from job.bench.training import learner_for
    from job.config_file import load_config
    from job.data.loader import Batch

    settings = [f"model.context_length={context}", f"training.batch_size={batch}", f"model.dropout={dropout}"]
    config = load_config("verdict", overrides=[*settings, "runtime.precision=auto", "runtime.device=cpu"]).config
    learner = learner_for(config)

    def step(x, y):
        loss = learner.backward(Batch(x, y, b""), batch)
        learner.update(loss, 4e-4, None)
        loss.item()

    return step, learner


def main():
    name, context, batch, dropout = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    torch.manual_seed(123)
    facts = {}
    if name == "ours":
        step, learner = ours(context, batch, dropout)
        from job.bench.limits import matmul_peak
        from job.training.flops import training_flops_per_token

        facts["flops"] = training_flops_per_token(learner.model) * context * batch
    else:
        step = {
            "tutorial": lambda: tutorial(context, dropout),
            "nanogpt": lambda: nanogpt(context, dropout, False),
            "nanogpt-best": lambda: nanogpt(context, dropout, True),
        }[name]()
    tokens = torch.randint(V, (batch, context + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    found = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        step(x, y)
        found.append(time.perf_counter() - started)
    facts["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if name == "ours":
        facts["peak"] = matmul_peak(learner.device, "bf16")
    print(json.dumps({"name": name, "best": min(found[1:]), "steps": found[1:], **facts}))


if __name__ == "__main__":
    main()
