"""A run's checkpoints on an object store: claimed by a fence, published by one conditional write.

A checkpoint is its record in the commit log. Data objects are written first, under keys of this attempt alone, and
are nothing until a record names them.
"""

import itertools
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from job.checkpoint import history
from job.checkpoint.log import CommitLog
from job.checkpoint.record import FORMAT, Kind, Record, StoredObject, canonical
from job.errors import ConfigError, FencedError, JobError, StorageError
from job.infra.object_store import Content, ObjectStore

RUN_KEY = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that a run needs to continue from a step, frozen.

    Args:
        step: Steps taken.
        files: File name -> bytes in pieces.
        events: The events since the checkpoint before it, as JSON lines.
        facts: What its record says beside them, JSON values.
    """

    step: int
    files: Mapping[str, Content]
    events: bytes
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """A committed checkpoint and how long each stage of saving took."""

    record: Record
    seconds: Mapping[str, float] = field(default_factory=dict)


class CheckpointStore:
    """Where a run's checkpoints are kept. Anyone may read; writing begins with `claim`."""

    def __init__(self, objects: ObjectStore, attempt: str | None = None) -> None:
        self.objects = objects
        self.log = CommitLog(objects)
        self.attempt = attempt or secrets.token_hex(16)
        self.term: int | None = None
        self._last: Record | None = None
        self._folders: set[str] = set()

    @property
    def records(self) -> Sequence[Record]:
        """The log as last read."""
        return self.log.records

    @property
    def last(self) -> Record | None:
        """The checkpoint this attempt continued from, or has saved since."""
        return self._last

    def claim(self, facts: Mapping[str, Any], reset: bool = False) -> Record:
        """Write the fence: from here every older attempt loses at its next commit.

        Args:
            facts: Who claims (information only).
            reset: Make everything before it ineligible, because a person asked to start over.
        """

        def fence(seq: int, before: str | None) -> Record:
            facts_here = {**facts, "reset": reset, "prev_record_sha256": before, "created_at": time.time()}
            return Record("fence", seq, seq, self.attempt, facts_here)

        self._mark_run()
        self.log.refresh()
        record = self.log.append(fence, self.attempt, term=None)
        self.term = record.seq
        return record

    def _mark_run(self) -> None:
        """Create `run.json`, or make sure that the one that is there is of a format this job writes."""
        if self.objects.create(RUN_KEY, canonical({"format": FORMAT, "run": secrets.token_hex(16)})):
            return
        try:
            found = json.loads(self.objects.read(RUN_KEY)).get("format")
        except (KeyError, ValueError, AttributeError) as error:
            raise StorageError(f"{self.objects.uri}/{RUN_KEY} cannot be read: {error}") from error
        if found != FORMAT:
            raise ConfigError(f"{self.objects.uri} has format {found}, this job writes {FORMAT}")

    def continue_from(self, record: Record | None) -> None:
        """Make `record` the one that the next checkpoint follows; None: it follows none."""
        self._last = record

    def folder_of(self, record: Record) -> str:
        """Address of the folder with a checkpoint's files."""
        return f"{self.objects.uri}/{record.objects[0].key.rpartition('/')[0]}"

    def save(self, checkpoint: Checkpoint) -> Saved:
        """Upload everything, look at it, then publish it with one record.

        Raises:
            FencedError: A newer attempt owns the run; what this save uploaded is removed.
            StorageError: It failed; the checkpoint before it stands.
        """
        marks = [time.monotonic()]
        folder = self._fresh_folder(checkpoint.step)
        stored = [self._upload(f"data/{folder}/{name}", pieces) for name, pieces in sorted(checkpoint.files.items())]
        segment = self._upload(f"events/{folder}.jsonl", [checkpoint.events])
        marks.append(time.monotonic())
        for uploaded in (*stored, segment):
            self._check_arrived(uploaded)
        marks.append(time.monotonic())
        facts = {
            **checkpoint.facts,
            "step": checkpoint.step,
            "prev_checkpoint_seq": self._last.seq if self._last else None,
            "objects": [uploaded.plain() for uploaded in stored],
            "events": segment.plain(),
        }
        try:
            self._last = self._commit("checkpoint", facts)
        except FencedError:
            self._discard([uploaded.key for uploaded in (*stored, segment)])
            raise
        marks.append(time.monotonic())
        spans = [after - before for before, after in itertools.pairwise(marks)]
        return Saved(self._last, dict(zip(("upload", "verify", "commit"), spans, strict=True)))

    def complete(self, facts: Mapping[str, Any]) -> Record:
        """Write the record that says the run is done."""
        return self._commit("complete", facts)

    def prune(self, records: Sequence[Record]) -> Record:
        """Write the record that takes `records` out of the run, before their data is deleted."""
        return self._commit("prune", {"pruned": [record.seq for record in records]})

    def assert_owner(self) -> None:
        """Read the log again; FencedError when a newer attempt has begun."""
        self.log.refresh()
        if (newest := history.highest_term(self.records)) != self.term:
            raise FencedError(f"the attempt of record {newest} owns this run now")

    def _commit(self, kind: Kind, facts: Mapping[str, Any]) -> Record:
        if self.term is None:
            raise RuntimeError("a run is written to only after claim()")
        term, created = self.term, time.time()

        def draft(seq: int, before: str | None) -> Record:
            facts_here = {**facts, "prev_record_sha256": before, "created_at": created}
            return Record(kind, seq, term, self.attempt, facts_here)

        return self.log.append(draft, self.attempt, term)

    def _fresh_folder(self, step: int) -> str:
        """A folder that no save of this attempt has used: an unresolved record may name what is in it."""
        base = folder = f"{self.term or 0:010d}-{self.attempt}/s{step:012d}"
        again = 1
        while folder in self._folders:
            again += 1
            folder = f"{base}-{again}"
        self._folders.add(folder)
        return folder

    def _upload(self, key: str, pieces: Content) -> StoredObject:
        size = sum(memoryview(piece).nbytes for piece in pieces)
        return StoredObject(key, size, self.objects.put(key, pieces))

    def _check_arrived(self, uploaded: StoredObject) -> None:
        try:
            size = self.objects.size(uploaded.key)
        except KeyError:
            raise StorageError(f"{uploaded.key} is not there after it was uploaded") from None
        if size != uploaded.size:
            raise StorageError(f"{uploaded.key} has {size} bytes after {uploaded.size} were uploaded")

    def _discard(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self.objects.delete(key)
            except JobError:
                return
