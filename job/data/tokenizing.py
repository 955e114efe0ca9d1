"""The work of making token files: documents into segments, segments into tokens on all cores, tokens into shards."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path

import structlog

from job.config import DataConfig
from job.data.cache import Advance
from job.data.corpus import Corpus
from job.data.documents import BadLines, Document, read_documents
from job.data.encoding import Part, encoders
from job.data.journal import Journal
from job.data.meter import Meter
from job.data.shards import SHARD_TOKENS, ShardWriter, require_written, token_type
from job.data.splits import SPLITS, Segment, many_texts, one_text
from job.data.token_files import SplitFiles, TokenFiles
from job.data.tokenizer import Tokenizer
from job.errors import Interrupted, JobError
from job.infra.in_order import in_order

BATCH = 1 << 20  # characters encoded at once
JOURNAL_EVERY = 64  # batches

log = structlog.get_logger(__name__)


def tokenize(
    folder: Path,
    fingerprint: str,
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    advance: Advance,
    meter: Meter,
) -> TokenFiles:
    """Write the shards of every split into `folder`, from where an earlier process left off; returns their facts."""
    started = time.monotonic()
    bad = BadLines()
    documents = read_documents(corpus, config, advance, bad)
    opening = list(islice(documents, 2))
    if len(opening) == 1:
        segments = one_text(opening[0], _characters(opening[0]), config.split, tokenizer)
    else:
        segments = many_texts(chain(opening, documents), config.split, tokenizer)
    journal = _begin(folder, tokenizer)
    before = sum(done.tokens for done in journal.splits.values())
    with encoders(tokenizer, config.tokenizer_workers, corpus.size) as (encode, threads):
        batches = islice(_batches(segments), journal.batches, None)
        with closing(in_order(encode, batches, threads, ahead=threads + 1)) as encoded:
            train, validation, test = _write(folder, encoded, tokenizer, journal, meter)
    seconds = time.monotonic() - started
    tokens = {split.name: split.tokens for split in (train, validation, test)}
    log.info("tokenized", tokenizer=tokenizer.kind, seconds=round(seconds, 1), **tokens)
    return TokenFiles(
        fingerprint,
        tokenizer.vocab_size,
        "characters" if len(opening) == 1 else "documents",
        train,
        validation,
        test,
        bad.count,
        round((sum(tokens.values()) - before) / max(seconds, 1e-3)),
    )


def _characters(document: Document) -> int:
    return sum(len(piece) for piece in document.pieces())


def _batches(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Segments in groups that are worth a worker's while; the same groups each time."""
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


def _begin(folder: Path, tokenizer: Tokenizer) -> Journal:
    """What the folder has of these token files already; nothing, if its shards are not what the journal says."""
    journal = Journal.load(folder, BATCH, SHARD_TOKENS, SPLITS)
    dtype = token_type(tokenizer.vocab_size)
    try:
        for split, done in journal.splits.items():
            require_written(folder, split, done.tokens, dtype, SHARD_TOKENS)
    except JobError as error:
        log.warning("what an earlier process left is damaged and is made again", reason=str(error))
        return Journal.fresh(BATCH, SHARD_TOKENS, SPLITS)
    if journal.batches:
        tokens = {split: done.tokens for split, done in journal.splits.items()}
        log.info("tokenizing goes on where it was stopped", batches=journal.batches, **tokens)
    return journal


def _write(
    folder: Path, encoded: Iterable[list[Part]], tokenizer: Tokenizer, journal: Journal, meter: Meter
) -> list[SplitFiles]:
    dtype = token_type(tokenizer.vocab_size)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(ShardWriter(folder, split, dtype, SHARD_TOKENS, done.tokens))
            for split, done in journal.splits.items()
        ]
        try:
            for parts in encoded:
                for writer, done, part in zip(writers, journal.splits.values(), parts, strict=True):
                    writer.write(part.tokens)
                    done.add(part)
                    meter.add(part.bytes)
                journal.batches += 1
                if journal.batches % JOURNAL_EVERY == 0:
                    _note(folder, journal, writers)
        except Interrupted:  # it came between two batches: from one that is being read, not written
            _note(folder, journal, writers)
            raise
    Journal.remove(folder)
    return [
        SplitFiles(name, done.tokens, done.bytes, done.characters, done.documents, tuple(writer.paths))
        for writer, (name, done) in zip(writers, journal.splits.items(), strict=True)
    ]


def _note(folder: Path, journal: Journal, writers: Iterable[ShardWriter]) -> None:
    for writer in writers:
        writer.flush()
    journal.save(folder)
