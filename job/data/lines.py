"""The lines of a .jsonl file, each the text of a document."""

import json
from collections.abc import Callable, Iterator

from job.errors import DataError

LONGEST_LINE = 128 << 20  # bytes; a line is held whole
BYTE_ORDER_MARK = "\ufeff"

Refuse = Callable[[DataError], None]  # raises it, or counts it and lets the reading go on


def read_lines(pieces: Iterator[bytes], uri: str, field: str, refuse: Refuse) -> Iterator[tuple[str, str]]:
    """Where each line stands, and the text under `field` in it; empty lines are passed over."""
    start = 0  # of the line, in bytes
    for number, line, size in _split(pieces, uri, refuse):
        where = f"{uri}, line {number}"
        if line.strip():
            try:
                text = _text(line, start, where, field)
            except DataError as error:
                refuse(error)
            else:
                yield where, text
        start += size


def require_text(value: object, where: str, what: str) -> str:
    """`value`, which is a text; DataError when it is none, or cannot be written as UTF-8."""
    if not isinstance(value, str):
        raise DataError(f"{where}: no text under {what!r} (data.text_field)")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: half of a surrogate pair, which is no character") from error
    return value


def _text(line: bytes, start: int, where: str, field: str) -> str:
    try:
        decoded = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {start + error.start} of the file") from error
    try:
        value = json.loads(decoded.removeprefix(BYTE_ORDER_MARK) if start == 0 else decoded)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    return require_text(value.get(field) if isinstance(value, dict) else None, where, field)


def _split(pieces: Iterator[bytes], uri: str, refuse: Refuse) -> Iterator[tuple[int, bytes, int]]:
    """The number of each line, the line with its end, and how long it was; one that is refused for that is empty."""
    held: list[bytes] = []
    size, number, told = 0, 1, False
    for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for part, is_end in [*((end + b"\n", True) for end in ends), (rest, False)]:
            size += len(part)
            if size <= LONGEST_LINE:
                held.append(part)
            elif not told:
                held, told = [], True
                refuse(DataError(f"{uri}, line {number}: longer than {LONGEST_LINE} bytes"))
            if is_end:
                yield number, b"".join(held), size
                held, size, number, told = [], 0, number + 1, False
    if size:
        yield number, b"".join(held), size
