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
from job.tensor_file import read_contents


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

    def digest(kind: str) -> str:
        """Of every tensor by name, whichever rank's file holds it."""
        parts = [folder / stored.name for stored in record.objects if stored.name.startswith(kind)]
        found = hashlib.sha256()
        for name, tensor in sorted(entry for part in parts for entry in read_contents(part).items()):
            found.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
            found.update(tensor.path.read_bytes()[tensor.start : tensor.stop])
        return found.hexdigest()

    def steps(event: str) -> tuple[int, ...]:
        return tuple(line["step"] for line in events if line["event"] == event)

    return Outcome(
        record.step,
        record.chain,
        digest("model"),
        digest("optimizer"),
        hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        steps("step"),
        steps("evaluated"),
    )
