"""The reference workload inside a container: small, with dropout and accumulation on, so that equality says much."""

SETTINGS = {
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.context_length": 64,
    "model.dropout": 0.1,
    "data.tokenizer": "byte",
    "training.batch_size": 8,
    "training.micro_batch_size": 4,
    "training.max_steps": 1200,
    "training.eval_every": 200,
    "training.eval_batches": 2,
    "training.sample_every": "none",
    "checkpoint.every": 50,
    "runtime.threads": 1,
}
# What a pod under restricted security has: nothing of the root file system can be written, and no rights at all.
# Without `exec`, docker's tmpfs would not let torch load the kernels that it compiles into the cache.
LOCKED = (
    *("--read-only", "--tmpfs", "/tmp", "--tmpfs", "/cache:exec"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)
ANY_USER = ("--user", "65532:65532")
OFFLINE = ("--network", "none")


def settings(**changes: object) -> str:
    """The workload as GPT_JOB_SET; `training__max_steps=10` changes `training.max_steps`."""
    changed = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    return "\n".join(f"{name}={value}" for name, value in changed.items())
