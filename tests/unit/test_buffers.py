"""Several buffers read as one file."""

import io
import os

from hypothesis import given
from hypothesis import strategies as st

from job.infra.buffers import Joined

pieces = st.lists(st.binary(max_size=20), max_size=8)
places = st.integers(0, 100)


@given(pieces, st.lists(st.integers(-1, 50)))
def test_reads_as_the_concatenation(content, sizes):
    """Any sequence of reads finds what a file with the same bytes gives."""
    joined, whole = Joined(content), io.BytesIO(b"".join(content))

    assert [joined.read(size) for size in sizes] == [whole.read(size) for size in sizes]
    assert joined.tell() == whole.tell()


@given(pieces, places, places)
def test_part_is_a_slice(content, start, length):
    """A part holds what a slice of the concatenation holds, also beyond the end."""
    part = Joined(content).part(start, start + length)

    assert part.read() == b"".join(content)[start : start + length]


@given(pieces, places)
def test_seek(content, place):
    """Seeking goes where a file's goes."""
    joined, whole = Joined(content), io.BytesIO(b"".join(content))

    assert joined.seek(place) == whole.seek(place)
    assert joined.read(3) == whole.read(3)
    assert joined.seek(2, os.SEEK_CUR) == whole.seek(2, os.SEEK_CUR)
    assert joined.seek(0, os.SEEK_END) == joined.size == whole.seek(0, os.SEEK_END)


def test_parts_share_the_bytes():
    """A part looks at the buffers it was cut from; nothing is copied before it is read."""
    buffer = bytearray(b"abcdef")
    part = Joined([memoryview(buffer)]).part(2, 4)
    buffer[2:4] = b"XY"

    assert part.read() == b"XY"
