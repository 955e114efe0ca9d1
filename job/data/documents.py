"""Corpus files as documents, in bounded memory: a text file is one, and so is a line of a .jsonl, a row of a .parquet.

Characters are kept as they are (a byte order mark apart): line ends are not translated.
"""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import structlog

from job.config import DataConfig
from job.data.cache import READ_BYTES, Advance
from job.data.compression import read_bytes
from job.data.corpus import Corpus, CorpusFile
from job.data.lines import BYTE_ORDER_MARK, Refuse, read_lines
from job.data.parquet import read_rows
from job.errors import ConfigError, DataError

SHOWN = 10  # bad lines named in the log

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Args:
        where: The file, and the line for a .jsonl, for messages.
        pieces: Reads the text from its start, in pieces that are never empty, each time it is called.
    """

    where: str
    pieces: Callable[[], Iterator[str]]


class BadLines:
    """The lines and rows without text that were passed over, where `data.bad_lines` allows that.

    Args:
        count: How many.
    """

    def __init__(self) -> None:
        self.count = 0

    def skip(self, error: DataError) -> None:
        """One more; the first few are named in the log."""
        self.count += 1
        if self.count <= SHOWN:
            log.warning("line passed over", reason=str(error), last_one_named=self.count == SHOWN)


def read_documents(
    corpus: Corpus, config: DataConfig, advance: Advance, bad: BadLines | None = None
) -> Iterator[Document]:
    """The documents of the corpus in their order, empty ones passed over.

    Args:
        bad: Where lines are counted that `data.bad_lines = "skip"` lets pass.

    Raises, while they are read:
        ConfigError: A file holds tokens, not text, or needs a module that is not installed.
        DataError: The corpus has no text; a file is damaged or not UTF-8; a line holds no text.
    """
    found, bad = False, bad or BadLines()
    refuse = bad.skip if config.bad_lines == "skip" else _stop
    for file in corpus.files:
        for document in _documents(file, corpus.text_field, config.max_bytes, advance, refuse):
            found = True
            yield document
    if not found:
        passed = f" but for {bad.count} lines without text" if bad.count else ""
        raise DataError(f"the corpus is empty{passed}: " + ", ".join(file.uri for file in corpus.files))


def _stop(error: DataError) -> None:
    raise error


def _documents(file: CorpusFile, field: str, max_bytes: int, advance: Advance, refuse: Refuse) -> Iterator[Document]:
    read = partial(read_bytes, file, max_bytes, advance)
    if file.format.kind == "tokens":
        raise ConfigError(f"data.corpus: {file.uri} holds tokens: it can neither be tokenized nor mixed with text")
    if file.format.kind == "text":
        yield from _text(file, read)
        return
    if file.format.kind == "parquet":
        rows = read_rows(file, field, max_bytes, advance, refuse)
    else:
        rows = read_lines(read(), file.uri, field, refuse)
    yield from (Document(where, partial(_slices, text)) for where, text in rows if text)


def _text(file: CorpusFile, read: Callable[[], Iterator[bytes]]) -> Iterator[Document]:
    def pieces() -> Iterator[str]:
        return _decoded(read(), file.uri)

    if next(pieces(), None):
        yield Document(file.uri, pieces)


def _slices(text: str) -> Iterator[str]:
    """A text in pieces as long as those of a file."""
    for start in range(0, len(text), READ_BYTES):
        yield text[start : start + READ_BYTES]


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
