"""The history of a run as JSON lines: each step once, however often the run was stopped.

History events (steps, evaluations, samples) travel in segments, one per checkpoint, and count only when the
checkpoint does. Facts of an attempt (started, rejected, saved, ended) are kept beside them. `events.jsonl` is a view
of both, ordered by attempt and by their number within it; no clock decides.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import structlog

from job.checkpoint import history
from job.checkpoint.record import Record, StoredObject, canonical
from job.infra.logs import redact_event
from job.infra.object_store import ObjectStore

log = structlog.get_logger(__name__)
VIEW = "events.jsonl"
_READS = 5  # of a segment that is not what its record says: it may have been bent on the way only
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Segment:
    """History events since the last committed checkpoint, as JSON lines, and how many they are."""

    content: bytes
    count: int


class EventLog:
    """Appends events to a local file and remembers those that the next checkpoint carries.

    Args:
        path: The local file; rewritten now with `past`.
        past: Events of earlier attempts that still count.
        attempt: Term of this attempt.

    Each event has the Unix `time` and the `uptime`, seconds of a clock that never jumps since the log was opened.
    """

    def __init__(self, path: Path, past: Sequence[Event], attempt: int) -> None:
        self.events: list[Event] = []
        self._lines: list[bytes] = []
        self._there: set[tuple[str, int]] = set()
        self._attempt = attempt
        self._number = 0
        self._began = time.monotonic()
        self._segment: list[Event] = []
        self._facts: list[Event] = []
        self._path = path
        self._file: FileIO | None = None
        self.rewind(past)

    def rewind(self, past: Sequence[Event]) -> None:
        """Begin again from the events in `past`; what this attempt has noted as fact stays."""
        known = {_place(event) for event in past}
        events = [*past, *(fact for fact in self._facts if _place(fact) not in known)]
        self.events = sorted(events, key=_place)
        self._lines = [_line(event) for event in self.events]
        self._there = {(event["event"], event["step"]) for event in self.events}
        self._segment.clear()
        self.close()
        self._bring_up_to_date()

    def record(self, event: str, step: int, **fields: Any) -> Event:
        """Add an event of the run's history: it counts from the next checkpoint on."""
        line = self._write(event, step, fields)
        self._segment.append(line)
        return line

    def note(self, event: str, step: int, **fields: Any) -> Event:
        """Add a fact of this attempt: it counts whatever becomes of the attempt. An error's text may hold secrets."""
        numbers = {name: value for name, value in fields.items() if isinstance(value, float)}
        shown = {**redact_event(None, "", fields), **numbers}
        line = self._write(event, step, shown)
        self._facts.append(line)
        return line

    def _write(self, event: str, step: int, fields: dict[str, Any]) -> Event:
        self._number += 1
        place = {"attempt": self._attempt, "number": self._number}
        moment = {"time": round(time.time(), 3), "uptime": round(time.monotonic() - self._began, 3)}
        line = {"event": event, "step": step, **moment, **fields, **place}
        self.events.append(line)
        self._lines.append(_line(line))
        self._there.add((event, step))
        self._append(self._lines[-1])
        return line

    def _append(self, content: bytes) -> None:
        """Add to the local file; a full disk costs the file, not the run: it is made again when there is room."""
        if self._file is None:
            self._bring_up_to_date()
            return
        try:
            whole = self._file.write(content) == len(content)
        except OSError:
            whole = False
        if not whole:
            self.close()

    def _bring_up_to_date(self) -> None:
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(self.view())
            partial.replace(self._path)
            self._file = self._path.open("ab", buffering=0)

    def segment(self) -> Segment:
        """What the next checkpoint carries."""
        return Segment(b"".join(map(_line, self._segment)), len(self._segment))

    def committed(self, segment: Segment) -> None:
        """The checkpoint that carries `segment` is committed; what came after it waits for the next."""
        del self._segment[: segment.count]

    def facts(self) -> bytes:
        """All facts of this attempt, as JSON lines."""
        return b"".join(map(_line, self._facts))

    @property
    def path(self) -> Path:
        """The local file."""
        return self._path

    def view(self) -> bytes:
        """The whole of `events.jsonl`."""
        return b"".join(self._lines)

    def has(self, event: str, step: int) -> bool:
        """Whether such an event of that step is there."""
        return (event, step) in self._there

    def close(self) -> None:
        """Close the local file; what comes later is kept all the same."""
        if self._file is not None:
            self._file.close()
            self._file = None


def facts_key(attempt: str, term: int) -> str:
    """Key of an attempt's facts."""
    return f"events/{term:010d}-{attempt}/facts.jsonl"


def past_events(objects: ObjectStore, records: Sequence[Record], last: Record | None) -> list[Event]:
    """Events that led to the checkpoint `last`, and the facts of every attempt; whatever can be read of them."""
    line = history.lineage(records, last) if last else []
    segments = [StoredObject(**record.facts["events"]) for record in line]
    fences = [record for record in records if record.kind == "fence"]
    events: list[Event] = []
    for segment in segments:
        events += parse_lines(_whole(objects, segment))
    for fence in fences:
        events += parse_lines(_read(objects, facts_key(fence.attempt, fence.term)))
    return sorted(events, key=_place)


def _place(event: Event) -> tuple[int, int]:
    return event["attempt"], event["number"]


def _whole(objects: ObjectStore, segment: StoredObject) -> bytes:
    """A segment that is what its record says, read again when it was bent on the way; else nothing, with a warning."""
    for _ in range(_READS):
        content = _read(objects, segment.key)
        if hashlib.sha256(content).hexdigest() == segment.sha256:
            return content
    log.warning("events left out: they are not those that were stored", key=segment.key)
    return b""


def _read(objects: ObjectStore, key: str) -> bytes:
    try:
        return objects.read(key)
    except KeyError:
        return b""


def parse_lines(content: bytes) -> list[Event]:
    """Events of JSON lines; a line that is cut or foreign is left out."""
    events = []
    for line in content.splitlines():
        try:
            event = json.loads(line)
            name, *numbers = (event[field] for field in ("event", "attempt", "number", "step"))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and all(type(number) is int for number in numbers):
            events.append(event)
    return events


def _line(event: Event) -> bytes:
    return canonical(event) + b"\n"
