"""The commit log: a dense row of records that gives order, publication and fencing at once.

Writing record n is one conditional PUT; whoever loses it learns from the winner's record what to do. No clock is
compared, no pointer is moved, and absence is believed only after a successful LIST or GET.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from job.checkpoint.history import highest_term
from job.checkpoint.record import DamagedRecord, Record, log_key, parse
from job.errors import FencedError, StorageError
from job.infra.object_store import ObjectStore

_TRIES = 8
_GAP = 1000  # records in a row that may be missing from a listing and are looked for one by one
_READS = 5  # of a record that is not what it says: it may have been bent on the way only
Draft = Callable[[int, str | None], Record]  # (seq, hash of the record before it) -> the record to write


class CommitLog:
    """The records of a run, as last read, and the only way to add one."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.records: list[Record] = []
        self.damaged: dict[int, str] = {}  # seq -> what is wrong with it
        self._next = 1

    def refresh(self) -> None:
        """Read what has been written since the last time.

        Raises:
            AccessError: Reading is refused; never taken for an empty log.
            StorageError: The listing or a record cannot be read.
        """
        listed = sorted(seq for key in self._store.keys("log/") if (seq := _seq(key)) is not None)
        for last in listed:
            self._read_up_to(last)
        while self._exists(self._next):  # a LIST may lag behind
            self._read_up_to(self._next)
        if self._next == 1 and self._store.keys("data/"):
            self.damaged[0] = "the whole log is missing, and there is data of checkpoints"

    def said(self) -> dict[str, list[Any]]:
        """What has been read, as JSON values for other ranks."""
        records = [[record.seq, record.content.decode()] for record in self.records]
        return {"records": records, "damaged": [[seq, what] for seq, what in self.damaged.items()]}

    def hear(self, said: Mapping[str, list[Any]]) -> None:
        """Know what rank 0 has read."""
        self.records[:] = [parse(content.encode(), seq) for seq, content in said["records"]]
        self.damaged.clear()
        self.damaged.update(said["damaged"])

    def _read_up_to(self, last: int) -> None:
        """Read every record from the next one to this, which the listing shows."""
        if last - self._next > _GAP:
            if not self._is_record(last):
                return  # not ours: something of that name, far from where the log ends
            self.damaged[self._next] = f"records {self._next} to {last - 1} are missing"
            self._next = last
        for seq in range(self._next, last + 1):
            self._read(seq)
        self._next = max(self._next, last + 1)

    def _is_record(self, seq: int) -> bool:
        with suppress(KeyError, DamagedRecord):
            parse(self._store.read(log_key(seq)), seq)
            return True
        return False

    def _exists(self, seq: int) -> bool:
        try:
            self._store.size(log_key(seq))
        except KeyError:
            return False
        return True

    def _read(self, seq: int) -> None:
        for _ in range(_READS):
            try:
                record = parse(self._store.read(log_key(seq)), seq)
            except KeyError:
                self.damaged[seq] = f"record {seq} is missing"
                return
            except DamagedRecord as error:
                self.damaged[seq] = str(error)
            else:
                self.damaged.pop(seq, None)
                self.records.append(record)
                return

    def append(self, draft: Draft, attempt: str, term: int | None) -> Record:
        """Commit the record that `draft` makes for the next free place.

        Args:
            draft: Makes the record once its place is known; called again for each later place.
            attempt: Id of the writing attempt.
            term: Its term; None for the fence that begins it, which may pass over anyone's record.

        Raises:
            FencedError: A newer attempt owns the run.
            StorageError: It is not known whether the record was written.
        """
        for _ in range(_TRIES):
            if term is not None and (newest := highest_term(self.records)) > term:  # read, though never run into
                raise FencedError(f"the attempt of record {newest} owns this run now")
            before = self.records[-1].sha256 if self.records else None
            record = draft(self._next, before)
            found = self._create(record)
            self.records.append(found)
            self._next += 1
            if found.sha256 == record.sha256:
                return found
            if term is not None and found.attempt != attempt:
                self._give_way(found, term)
        raise StorageError(f"{self._store.uri}: {_TRIES} places in the log were taken in a row; others keep writing")

    def _give_way(self, found: Record, term: int) -> None:
        if found.term > term:
            raise FencedError(f"attempt {found.attempt} owns this run since record {found.term}")
        raise RuntimeError(f"record {found.seq} was written by attempt {found.attempt} after it had been fenced")

    def _create(self, record: Record) -> Record:
        """The record that stands at this place after trying to put `record` there."""
        problem: Exception | None = None
        for _ in range(_TRIES):
            try:
                if self._store.create(log_key(record.seq), record.content):
                    return record
            except StorageError as error:  # the answer was lost, perhaps not the write
                problem = error
            try:
                return parse(self._store.read(log_key(record.seq)), record.seq)
            except (KeyError, DamagedRecord) as error:
                problem = problem or error
        raise StorageError(f"{self._store.uri}: record {record.seq} could not be committed: {problem}")


def _seq(key: str) -> int | None:
    digits = key.removeprefix("log/").removesuffix(".json")
    return int(digits) if digits.isdecimal() and digits.isascii() and log_key(int(digits)) == key else None
