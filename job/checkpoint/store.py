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
from job.checkpoint.record import FORMAT, Kind, Record, StoredObject, canonical, parse
from job.errors import ConfigError, FencedError, JobError, StorageError
from job.infra.object_store import Content, ObjectStore
from job.infra.ranks import ALONE, Ranks

RUN_KEY = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that a run needs to continue from a step, frozen.

    Args:
        step: Steps taken.
        files: File name -> bytes in pieces.
        events: The events since the checkpoint before it, as JSON lines; None on all ranks but the first.
        facts: What its record says beside them, JSON values.
    """

    step: int
    files: Mapping[str, Content]
    events: bytes | None
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """A committed checkpoint and how long each stage of saving took."""

    record: Record
    seconds: Mapping[str, float] = field(default_factory=dict)


class CheckpointStore:
    """Where a run's checkpoints are kept. Anyone may read; writing begins with `claim`.

    Of several ranks each stores its share of a checkpoint, and the first alone reads and writes the log.
    """

    def __init__(self, objects: ObjectStore, attempt: str | None = None, ranks: Ranks = ALONE) -> None:
        self.objects, self.ranks = objects, ranks
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

    def refresh(self) -> None:
        """Read the log as it is now; every rank sees what the first one sees.

        Raises:
            FencedError: Claimed, and taken over since.
            AccessError, StorageError: It cannot be read.
        """
        if self.ranks.leads and self.term is None:
            self.log.refresh()
        elif self.ranks.leads:
            self.assert_owner()
        if self.ranks.place.world_size > 1:
            said = self.ranks.led(self.log.said)
            if not self.ranks.leads:
                self.log.hear(said)

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

    def share_claim(self) -> None:
        """Let every rank write for the attempt that the first one has claimed the run for."""
        self.attempt = self.ranks.led(lambda: self.attempt)
        self.term = self.ranks.led(lambda: self.term)

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
        folder, marks = self._fresh_folder(checkpoint.step), [time.monotonic()]

        def store_share() -> list[dict[str, Any]]:
            names = [(f"data/{folder}/{name}", pieces) for name, pieces in sorted(checkpoint.files.items())]
            if checkpoint.events is not None:
                names.append((f"events/{folder}.jsonl", [checkpoint.events]))
            return [self._upload(key, pieces).plain() for key, pieces in names]

        def publish(shares: list[list[dict[str, Any]]]) -> list[Any]:
            marks.append(time.monotonic())
            uploaded = [StoredObject(**entry) for share in shares for entry in share]
            self._last = self._publish(checkpoint, uploaded, marks)
            return [self._last.seq, self._last.content.decode()] if len(shares) > 1 else []

        said = self.ranks.confer(f"save/{folder}", store_share, publish)
        if not self.ranks.leads:
            self._last = parse(said[1].encode(), said[0])
            self.log.records.append(self._last)
        assert self._last is not None
        marks.append(time.monotonic())
        spans = [after - before for before, after in itertools.pairwise(marks)]
        return Saved(self._last, dict(zip(("upload", "verify", "commit"), spans, strict=False)))

    def forgo(self, step: int, error: Exception) -> None:
        """Raise, on all ranks, why this one has nothing to save of a step at which all do."""

        def fail() -> None:
            raise error

        self.ranks.confer(f"save/{self._fresh_folder(step)}", fail, lambda shares: None)

    def _publish(self, checkpoint: Checkpoint, uploaded: Sequence[StoredObject], marks: list[float]) -> Record:
        """Look at what was uploaded, then commit the record that names it."""
        for each in uploaded:
            self._check_arrived(each)
        marks.append(time.monotonic())
        facts = {
            **checkpoint.facts,
            "step": checkpoint.step,
            "prev_checkpoint_seq": self._last.seq if self._last else None,
            "objects": [each.plain() for each in uploaded if each.key.startswith("data/")],
            "events": next(each.plain() for each in uploaded if each.key.startswith("events/")),
        }
        try:
            return self._commit("checkpoint", facts)
        except FencedError:
            self._discard([each.key for each in uploaded])
            raise

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
