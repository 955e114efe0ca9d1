"""Numbers and messages as protocol buffers write them, and TensorFlow's checksum of bytes."""

from collections.abc import Iterator

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_LONGEST = 10  # bytes of a number
_MASK = 0xA282EAD8  # so that the checksum of bytes that hold a checksum is no special one


class Damaged(ValueError):
    """The bytes are not what the format says; the caller knows which file they are from."""


def checksum(data: bytes | NDArray[np.uint8]) -> int:
    """The masked CRC-32C that TensorFlow and LevelDB write beside `data`."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at byte `at`, from 0 to 2**64 - 1, and where it ends."""
    value = 0
    for place in range(_LONGEST):
        if at >= len(data):
            raise Damaged("it ends inside a number")
        value |= (data[at] & 0x7F) << 7 * place
        at += 1
        if data[at - 1] < 0x80:
            if value >> 64 or (place and not data[at - 1]):
                break
            return value, at
    raise Damaged("a number has more than 64 bits, or more bytes than it needs")


def integer(data: bytes, at: int) -> tuple[int, int]:
    """The signed number at byte `at`, and where it ends."""
    value, end = varint(data, at)
    return (value - (1 << 64) if value >> 63 else value), end


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message in its order: numbers signed, everything else as bytes."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        match tag & 7:
            case 0:
                value, at = integer(message, at)
                yield tag >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = varint(message, at)
            case 5:
                length = 4
            case kind:
                raise Damaged(f"field {tag >> 3} is of unknown kind {kind}")
        if length > len(message) - at:
            raise Damaged(f"field {tag >> 3} has {length} bytes, {len(message) - at} are left")
        yield tag >> 3, message[at : at + length]
        at += length
