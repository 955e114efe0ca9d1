"""Several buffers read as one file."""

import os
from itertools import accumulate

from job.infra.object_store import Content


class Joined:
    """Pieces one after the other, as a read-only file. Only what is read is copied."""

    def __init__(self, pieces: Content) -> None:
        self._views = [view.cast("B") for piece in pieces if (view := memoryview(piece)).nbytes]
        self._starts = [0, *accumulate(view.nbytes for view in self._views)]
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._starts[-1]

    def part(self, start: int, stop: int) -> "Joined":
        """The bytes from `start` up to `stop`, or up to the end, as a file of their own."""
        return Joined(self._between(start, stop))

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end: S3's chunked bodies want chunks of one length."""
        stop = self.size if size < 0 else self._position + size
        found = b"".join(self._between(self._position, stop))
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset` from the start, from here or from the end; returns the position."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def _between(self, start: int, stop: int) -> list[memoryview]:
        return [
            view[max(0, start - begin) : max(0, stop - begin)]
            for begin, view in zip(self._starts, self._views, strict=False)
        ]
