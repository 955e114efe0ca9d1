"""The work of making token files: documents into segments, segments into tokens on all cores, tokens into shards."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import structlog

from job.config import DataConfig
from job.data.cache import Advance
from job.data.corpus import Corpus
from job.data.documents import Document, read_documents
from job.data.shards import AnyTokens, ShardWriter, token_type
from job.data.splits import SPLITS, Segment, many_texts, one_text
from job.data.token_files import SplitFiles, TokenFiles
from job.data.tokenizer import NEWLINE, Tokenizer

BATCH = 1 << 20  # characters encoded at once
MAX_THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Part:
    """What a batch adds to a split: tokens, arrays of (t,), and what they stand for."""

    tokens: list[AnyTokens]
    characters: int = 0
    bytes: int = 0
    documents: int = 0

    def add(self, more: Self) -> None:
        """Append `more`."""
        self.tokens += more.tokens
        self.characters += more.characters
        self.bytes += more.bytes
        self.documents += more.documents


def tokenize(
    folder: Path, fingerprint: str, corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, advance: Advance
) -> TokenFiles:
    """Write the shards of every split into `folder`; returns the facts about them."""
    started = time.monotonic()
    documents = read_documents(corpus, config, advance)
    opening = list(islice(documents, 2))
    if len(opening) == 1:
        segments = one_text(opening[0], _characters(opening[0]), config.split, tokenizer)
    else:
        segments = many_texts(chain(opening, documents), config.split, tokenizer)
    advance(0, corpus.size)  # of the files: compressed ones, or with more than text in them, end elsewhere
    splits = _write(folder, segments, tokenizer, advance)
    tokens = {split.name: split.tokens for split in splits}
    log.info("tokenized", tokenizer=tokenizer.kind, seconds=round(time.monotonic() - started, 1), **tokens)
    return TokenFiles(fingerprint, tokenizer.vocab_size, "characters" if len(opening) == 1 else "documents", *splits)


def _characters(document: Document) -> int:
    return sum(len(piece) for piece in document.pieces())


def _write(folder: Path, segments: Iterable[Segment], tokenizer: Tokenizer, advance: Advance) -> list[SplitFiles]:
    dtype = token_type(tokenizer.vocab_size)
    totals = [Part([]) for _ in SPLITS]
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(folder, split, dtype)) for split in SPLITS]
        for parts in _in_order(lambda batch: _encode(batch, tokenizer), _batches(segments)):
            for writer, total, part in zip(writers, totals, parts, strict=True):
                for tokens in part.tokens:
                    writer.write(tokens)
                part.tokens = []
                total.add(part)
            advance(sum(part.bytes for part in parts))
    return [
        SplitFiles(name, writer.tokens, total.bytes, total.characters, total.documents, tuple(writer.paths))
        for name, writer, total in zip(SPLITS, writers, totals, strict=True)
    ]


def _separator(tokenizer: Tokenizer) -> Part:
    """What follows a document."""
    if tokenizer.end_of_text is not None:
        return Part([np.array([tokenizer.end_of_text])])
    return Part([tokenizer.encode_ordinary(NEWLINE)], characters=1, bytes=1)


def _batches(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Segments in groups that are worth a thread's while."""
    held: list[Segment] = []
    size = 0
    for segment in segments:
        held.append(segment)
        size += len(segment.text)
        if size >= BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held


def _encode(batch: list[Segment], tokenizer: Tokenizer) -> list[Part]:
    """What the batch adds to each split."""
    parts = [Part([]) for _ in SPLITS]
    for segment in batch:
        tokens = tokenizer.encode_ordinary(segment.text)
        part = parts[segment.split]
        part.add(Part([tokens], len(segment.text), len(segment.text.encode()), int(segment.first)))
        if segment.last:
            part.add(_separator(tokenizer))
    return parts


def _in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`work` of each item, in their order, done by threads (tiktoken lets go of the interpreter) a few ahead."""
    threads = min(
        MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
