"""What a run came to, as hashes: equal outcomes mean equal weights, optimizer state and chain, bit for bit."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from job.checkpoint import history
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import fetch
from job.config import StorageConfig
from job.infra.storage import open_store


@dataclass(frozen=True)
class Outcome:
    """The last checkpoint of a run, and what its history says."""

    step: int
    chain: str
    model: str
    optimizer: str
    tokenizer: str
    logged_steps: tuple[int, ...]
    evaluated_steps: tuple[int, ...]


def outcome(run_uri: str, folder: Path, storage: StorageConfig | None = None) -> Outcome:
    """Read a run back, every byte verified."""
    objects = open_store(run_uri, storage or StorageConfig())
    checkpoints = CheckpointStore(objects)
    checkpoints.log.refresh()
    record = history.checkpoints(checkpoints.records)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    fetch(objects, record, folder)
    events = [json.loads(line) for line in objects.read("events.jsonl").splitlines()]

    def digest(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    def steps(event: str) -> tuple[int, ...]:
        return tuple(line["step"] for line in events if line["event"] == event)

    return Outcome(
        record.step,
        record.chain,
        digest("model.safetensors"),
        digest("optimizer.safetensors"),
        digest("tokenizer.json"),
        steps("step"),
        steps("evaluated"),
    )
