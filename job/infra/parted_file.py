"""A file that arrives in parts, in any order and from several threads, and that a later process can go on with.

While parts are missing a note lies beside it: which version of what it is, and which parts are on disk. The note is
written when they are, so that a power cut costs parts and never makes a wrong one pass for right.
"""

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from job.infra.directory_store import flush

NOTE_BYTES = 256 << 20  # written between two notes


class PartedFile:
    """The file at `path`, while it is filled. Leaving the block with every part in it removes the note.

    Args:
        size: Bytes of the whole.
        version: The name of what the parts are parts of; what is there of another version is given up.
        part_size: Bytes of each part, the last one apart.
        lasting: Whether a later process may go on with it; without, there is no note, and nothing waits for the disk.
        parts: All of them.
        resumed: Whether an earlier process has left some.
    """

    def __init__(self, path: Path, size: int, version: str, part_size: int, *, lasting: bool = True) -> None:
        self.parts = cut(size, part_size)
        self._path, self._note = path, note_of(path)
        self._noted = lasting and len(self.parts) > 1
        self._facts = {"bytes": size, "version": version, "part_size": part_size}
        self._lock = threading.Lock()
        self._done = self._found()
        self._unnoted = 0
        self.resumed = bool(self._done)
        if not self.resumed:
            self._note.unlink(missing_ok=True)  # before the file: it must never stand beside other bytes
        self._file = path.open("r+b" if self.resumed else "w+b")
        if not self.resumed:
            self._write_note()  # a file of that length without one would pass for whole
        self._file.truncate(size)

    def has(self, part: range) -> bool:
        """Whether this part is in the file."""
        return part.start in self._done

    def read(self, part: range) -> bytes:
        """A part that is in the file."""
        return os.pread(self._file.fileno(), len(part), part.start)

    def write(self, at: int, content: bytes | bytearray) -> None:
        """Some bytes of a part."""
        written, view = 0, memoryview(content)
        while written < len(view):
            written += os.pwrite(self._file.fileno(), view[written:], at + written)

    def finish(self, part: range) -> None:
        """All bytes of the part were written."""
        with self._lock:
            self._done.add(part.start)
            self._unnoted += len(part)
            if self._unnoted >= NOTE_BYTES:
                self._write_note()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        try:
            if kind is None:
                if self._noted:
                    os.fsync(self._file.fileno())  # before the note goes: what has none passes for whole
                self._note.unlink(missing_ok=True)
            elif self._unnoted:
                with suppress(OSError):  # the disk is full, most likely: that is being said
                    self._write_note()
        finally:
            self._file.close()

    def _found(self) -> set[int]:
        """Where the parts begin that an earlier process has left."""
        if not self._noted:
            return set()
        note = read_note(self._path)
        starts = {part.start for part in self.parts}
        done = note.pop("done", None)
        if note != self._facts or not isinstance(done, list) or not starts.issuperset(done):
            return set()
        return set(done) if self._path.is_file() and self._path.stat().st_size == self._facts["bytes"] else set()

    def _write_note(self) -> None:
        if not self._noted:
            return
        os.fsync(self._file.fileno())
        partial = self._note.with_name(f"{self._note.name}.partial")
        partial.write_text(json.dumps({**self._facts, "done": sorted(self._done)}))
        flush(partial)
        partial.replace(self._note)
        self._unnoted = 0


def cut(size: int, part_size: int) -> list[range]:
    """The bytes of each part of a file; the last one may have fewer."""
    return [range(at, min(at + part_size, size)) for at in range(0, size, part_size)]


def note_of(path: Path) -> Path:
    """Where the note of a file lies."""
    return path.with_name(f"{path.name}.parts")


def read_note(path: Path) -> dict[str, Any]:
    """What the note of a file says; nothing, if it cannot be read."""
    try:
        facts = json.loads(note_of(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
