"""Corpus files as documents, in bounded memory: a text file is one document, a line of a .jsonl is one.

Characters are kept as they are (a byte order mark apart): line ends are not translated.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from job.config import DataConfig
from job.data.cache import Advance
from job.data.compression import read_bytes
from job.data.corpus import Corpus, CorpusFile
from job.errors import ConfigError, DataError

LONGEST_LINE = 128 << 20  # bytes; a line of a .jsonl is held whole
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Args:
        where: The file, and the line for a .jsonl, for messages.
        pieces: Reads the text from its start, in pieces that are never empty, each time it is called.
    """

    where: str
    pieces: Callable[[], Iterator[str]]


def read_documents(corpus: Corpus, config: DataConfig, advance: Advance) -> Iterator[Document]:
    """The documents of the corpus in their order, empty ones passed over.

    Raises, while they are read:
        ConfigError: A file holds tokens, not text.
        DataError: The corpus has no text; a file is damaged or not UTF-8; a line is not JSON or lacks its text.
    """
    found = False
    for file in corpus.files:
        if file.format.kind == "tokens":
            raise ConfigError(f"data.corpus: {file.uri} holds tokens: it can neither be tokenized nor mixed with text")
        read = partial(read_bytes, file, config.max_bytes, advance)
        for document in _text(file, read) if file.format.kind == "text" else _lines(file, read, corpus.text_field):
            found = True
            yield document
    if not found:
        raise DataError("the corpus is empty: " + ", ".join(file.uri for file in corpus.files))


def _text(file: CorpusFile, read: Callable[[], Iterator[bytes]]) -> Iterator[Document]:
    def pieces() -> Iterator[str]:
        return _decoded(read(), file.uri)

    if next(pieces(), None):
        yield Document(file.uri, pieces)


def _lines(file: CorpusFile, read: Callable[[], Iterator[bytes]], field: str) -> Iterator[Document]:
    start = 0  # of the line, in bytes
    for number, line in enumerate(_split(read(), file.uri), 1):
        where = f"{file.uri}, line {number}"
        if line.strip() and (text := _field(line, start, where, field)):
            yield Document(where, partial(_whole, text))
        start += len(line)


def _whole(text: str) -> Iterator[str]:
    yield text


def _field(line: bytes, start: int, where: str, field: str) -> str:
    """The text that a line holds."""
    try:
        decoded = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {start + error.start} of the file") from error
    try:
        value = json.loads(decoded.removeprefix(BYTE_ORDER_MARK) if start == 0 else decoded)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{where}: no text under {field!r} (data.text_field)")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half of a surrogate pair, which is no character") from error
    return text


def _split(pieces: Iterator[bytes], uri: str) -> Iterator[bytes]:
    """Lines with their ends. DataError when one is longer than LONGEST_LINE."""
    held: list[bytes] = []
    size, number = 0, 1
    for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for end in whole:
            yield b"".join([*held, end, b"\n"])
            held, size, number = [], 0, number + 1
        held.append(rest)
        size += len(rest)
        if size > LONGEST_LINE:
            raise DataError(f"{uri}, line {number}: longer than {LONGEST_LINE} bytes")
    if size:
        yield b"".join(held)


def _decoded(pieces: Iterator[bytes], uri: str) -> Iterator[str]:
    """UTF-8 as text, without a byte order mark."""
    start, held, first = 0, b"", True
    for piece in pieces:
        text, held = _decode(held + piece, start - len(held), uri, final=False)
        start += len(piece)
        if text:
            yield from filter(None, [text.removeprefix(BYTE_ORDER_MARK) if first else text])
            first = False
    _decode(held, start - len(held), uri, final=True)


def _decode(data: bytes, start: int, uri: str, *, final: bool) -> tuple[str, bytes]:
    """The text in `data` and the bytes of a character that is not whole yet."""
    try:
        text, used = codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise DataError(f"{uri}: not UTF-8 at byte {start + error.start}") from error
    return text, data[used:]
