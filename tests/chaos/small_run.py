"""A run of a very small model with real files, in memory: made once, copied, damaged, and continued."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from job.checkpoint import history
from job.checkpoint.events import Segment
from job.checkpoint.store import Checkpoint, CheckpointStore
from job.config import Config
from job.data.alphabets import ByteTokenizer
from job.data.loader import Batch
from job.data.order import DataOffset
from job.errors import NotFoundError
from job.infra.device import choose_numerics
from job.infra.object_store import ObjectStore
from job.training.learner import Learner, build_learner
from job.training.randomness import seed_for, seed_torch
from job.training.resume import load_newest, lost_everything, nothing_valid
from job.training.snapshot import HostMemory, take_snapshot
from job.training.state import TrainingState, restore
from job.training.tensors import model_tensors, optimizer_tensors
from tests.chaos.harness import tiny
from tests.memory_store import MemoryObjectStore

STEPS = (5, 10, 15)
TOKENIZER = ByteTokenizer()
SMALL = ("model.n_embd=8", "model.context_length=8")


@dataclass(frozen=True)
class Continued:
    """What a start goes on from: a step, its state, and the hash of every tensor's bytes."""

    step: int
    state: TrainingState
    tensors: str


@dataclass(frozen=True)
class SmallRun:
    """Three checkpoints and what each of them holds."""

    objects: Mapping[str, bytes]
    config: Config
    saved: tuple[Continued, ...]

    def store(self) -> MemoryObjectStore:
        """A store of its own with the run in it."""
        return MemoryObjectStore(dict(self.objects))

    def learner(self) -> Learner:
        """A learner to be restored."""
        return new_learner(self.config, restoring=True)


def new_learner(config: Config, restoring: bool = False) -> Learner:
    return build_learner(config, choose_numerics(config.runtime, None), TOKENIZER.vocab_size, restoring)


def make(corpus: Path) -> SmallRun:
    """Train the model a little between three checkpoints."""
    config = tiny("memory", corpus, *SMALL).config
    objects, learner, saved = MemoryObjectStore(), new_learner(config), []
    checkpoints = CheckpointStore(objects)
    checkpoints.claim({})
    for step in STEPS:
        update(learner, step)
        offsets = [DataOffset(step=2, samples=3)]
        state = TrainingState(
            step=step, seconds=step / 8, chain=f"{step:064x}", data_offsets=offsets, val_loss=5.0 / step
        )
        event = f'{{"attempt":1,"event":"step","loss":5.5,"number":{step},"step":{step}}}\n'.encode()
        snapshot = take_snapshot(
            HostMemory(),
            state,
            learner,
            tokenizer=TOKENIZER.to_json(),
            events=Segment(event, 1),
            facts={"eval": {"val_loss": state.val_loss}, "tokenizer_sha256": TOKENIZER.sha256},
        )
        checkpoints.save(snapshot.checkpoint())
        saved.append(Continued(step, state, digest(learner)))
    return SmallRun(objects.objects, config, tuple(saved))


def update(learner: Learner, seed: int) -> None:
    """One step of training."""
    seed_torch(torch.device("cpu"), seed_for("step", seed))
    tokens = torch.randint(TOKENIZER.vocab_size, (4, 9))
    loss = learner.backward(Batch(tokens[:, :-1], tokens[:, 1:], b""), 4)
    learner.update(loss, 1e-3, 1.0)


def digest(learner: Learner) -> str:
    """SHA-256 over names, types and bytes of all that was learned."""
    found = hashlib.sha256()
    tensors = model_tensors(learner.model) | optimizer_tensors(learner.model, learner.optimizer)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def continue_run(objects: ObjectStore, learner: Learner) -> Continued | None:
    """Find what to continue as `pretrain` does; None for a fresh run."""
    checkpoints = CheckpointStore(objects)
    checkpoints.log.refresh()
    if lost_everything(checkpoints):
        raise NotFoundError(nothing_valid(checkpoints, []))
    candidates = history.checkpoints(checkpoints.records)[::-1]
    if not candidates:
        return None
    loaded = load_newest(checkpoints, candidates, lambda folder, record: restore(folder, record, learner))
    return Continued(loaded.record.step, loaded.value, digest(learner))


def snapshot_of(run: SmallRun) -> Checkpoint:
    """A checkpoint of the run's next step."""
    learner = new_learner(run.config)
    update(learner, 20)
    state = TrainingState(step=20, chain=f"{20:064x}")
    facts = {"eval": {"val_loss": None}}
    taken = {"tokenizer": TOKENIZER.to_json(), "events": Segment(b"", 0), "facts": facts}
    return take_snapshot(HostMemory(), state, learner, **taken).checkpoint()
