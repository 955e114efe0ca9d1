"""A sorted table of byte strings in LevelDB's format, as it is the index of a TensorFlow checkpoint.

Blocks of entries, each followed by its kind of compression and its checksum; one block that lists the others; a footer
that says where that one is. (github.com/google/leveldb, doc/table_format.md)
"""

from collections.abc import Iterator

from job.model.wire import Damaged, checksum, varint

MAGIC = 0xDB4775248B80FB57
MAX_ENTRIES = 10_001  # tensors, and one header
MAX_KEY = 1024  # bytes
_FOOTER, _TRAILER = 48, 5  # bytes


def read_table(data: bytes) -> dict[bytes, bytes]:
    """All entries of the table. Raises Damaged."""
    if len(data) < _FOOTER:
        raise Damaged(f"it has {len(data)} bytes, fewer than a footer's {_FOOTER}")
    magic = int.from_bytes(data[-8:], "little")
    if magic != MAGIC:
        raise Damaged(f"its last 8 bytes are {magic:#018x}, expected {MAGIC:#018x}")
    body, footer = data[:-_FOOTER], data[-_FOOTER:-8]
    more, at = _handle(footer, 0)
    place, at = _handle(footer, at)
    if any(footer[at:]):
        raise Damaged("its footer is not filled up with zeros")
    _block(body, more)  # nothing of use, but damaged it must not be
    found: dict[bytes, bytes] = {}
    end = 0
    last = b""
    for _, entry in _entries(_block(body, place)):
        (start, size), _ = _handle(entry, 0)
        if start < end:  # a block that counts twice could make much of little
            raise Damaged(f"a block begins at byte {start}, the one before it ends at {end}")
        end = start + size
        for key, value in _entries(_block(body, (start, size))):
            if found and key <= last:
                raise Damaged(f"{key!r} does not sort after {last!r}")
            found[key], last = value, key
            if len(found) > MAX_ENTRIES:
                raise Damaged(f"it has more than {MAX_ENTRIES} entries")
    return found


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Where a block is, start and size, and where these two numbers end."""
    start, at = varint(data, at)
    size, at = varint(data, at)
    return (start, size), at


def _block(body: bytes, place: tuple[int, int]) -> bytes:
    start, size = place
    if start + size + _TRAILER > len(body):
        raise Damaged(f"a block of {size} bytes at byte {start} leaves the file")
    content, trailer = body[start : start + size], body[start + size : start + size + _TRAILER]
    stored, found = int.from_bytes(trailer[1:], "little"), checksum(body[start : start + size + 1])
    if stored != found:
        raise Damaged(f"the block at byte {start} has checksum {found:08x}, expected {stored:08x}")
    if trailer[0] != 0:
        kind = "with snappy" if trailer[0] == 1 else f"in way {trailer[0]}"
        raise Damaged(f"the block at byte {start} is compressed {kind}; TensorFlow writes checkpoints without that")
    return content


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values; a key begins with as much of the one before it as its entry says."""
    if len(block) < 4:
        raise Damaged("a block has no end")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise Damaged(f"a block of {len(block)} bytes has {restarts} restarts")
    at, key, count = 0, b"", 0
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or own + length > end - at:
            raise Damaged("an entry leaves its block")
        if shared + own > MAX_KEY:
            raise Damaged(f"a name has {shared + own} bytes, at most {MAX_KEY} are read")
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length
        count += 1
        if count > MAX_ENTRIES:
            raise Damaged(f"a block has more than {MAX_ENTRIES} entries")
