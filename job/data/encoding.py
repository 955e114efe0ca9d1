"""Segments into tokens: by threads here, or by processes of their own when there is much to do.

A worker process is given text and gives back the bytes of tokens as they will lie on disk: nowhere on the way is there
a list of Python numbers. Which worker has done a batch, and how many there are, cannot be seen in what comes out.
"""

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any

import numpy as np

from job.data.bpe import BpeTokenizer
from job.data.shards import AnyTokens, token_type
from job.data.splits import SPLITS, Segment
from job.data.tokenizer import NEWLINE, Tokenizer
from job.errors import DataError, JobError
from job.infra.cores import scheduled_cores
from job.infra.spawning import no_main_module

MAX_THREADS = 16
WORTH_PROCESSES = 16 << 20  # bytes of corpus from which on processes are started: that takes them half a second
JOIN_SECONDS = 5.0

Batch = Sequence[Segment]
Encoder = Callable[[Batch], "list[Part]"]


@dataclass(slots=True)
class Part:
    """What a batch adds to a split: (t,) tokens as they are stored, and what they stand for."""

    tokens: AnyTokens
    characters: int = 0
    bytes: int = 0
    documents: int = 0


def encode_batch(batch: Batch, tokenizer: Tokenizer) -> list[Part]:
    """What the batch adds to each split."""
    dtype = token_type(tokenizer.vocab_size)
    found: list[list[AnyTokens]] = [[] for _ in SPLITS]
    parts = [Part(np.empty(0, dtype)) for _ in SPLITS]
    for segment in batch:
        part, text = parts[segment.split], segment.text
        found[segment.split].append(tokenizer.encode_ordinary(text))
        part.documents += segment.first
        if segment.last and tokenizer.end_of_text is not None:
            found[segment.split].append(np.array([tokenizer.end_of_text], np.uint32))
        elif segment.last:
            found[segment.split].append(tokenizer.encode_ordinary(NEWLINE))
            text += NEWLINE
        part.characters += len(text)
        part.bytes += len(text) if text.isascii() else len(text.encode())
    for part, arrays in zip(parts, found, strict=True):
        if arrays:
            part.tokens = np.concatenate(arrays, dtype=dtype, casting="unsafe")
    return parts


@contextmanager
def encoders(
    tokenizer: Tokenizer, workers: int | None, corpus_bytes: int
) -> Generator[tuple[Encoder, int], None, None]:
    """What encodes a batch, to be called by so many threads at once.

    Args:
        workers: Processes; 0: none, threads of this one. Unset: one for each core where the work is worth it.
    """
    threads = min(MAX_THREADS, scheduled_cores())
    if workers is None:
        worth = isinstance(tokenizer, BpeTokenizer) and threads > 1 and corpus_bytes >= WORTH_PROCESSES
        workers = threads if worth else 0
    if not workers:
        yield lambda batch: encode_batch(batch, tokenizer), threads
        return
    with ExitStack() as stack:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(closing(_Worker(tokenizer))))

        def encode(batch: Batch) -> list[Part]:
            worker = idle.get()
            try:
                return worker.encode(batch)
            finally:
                idle.put(worker)

        yield encode, workers


class _Worker:
    """A process that encodes batches, and this end of the pipe to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        context = get_context("spawn")  # a fork would take over threads' locks, and all memory that torch has by then
        self._connection, other = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_work, args=(other, tokenizer), daemon=True)
        with no_main_module():
            self._process.start()
        other.close()

    def encode(self, batch: Batch) -> list[Part]:
        """What the batch becomes. DataError as the tokenizer raises it; JobError when the process died."""
        try:
            self._connection.send([(segment.split, segment.text, segment.first, segment.last) for segment in batch])
            answer = self._connection.recv()
            if isinstance(answer, str):
                raise DataError(answer)
            return [_received(self._connection, facts) for facts in answer]
        except (EOFError, OSError) as error:
            self._process.join(JOIN_SECONDS)
            raise JobError(
                f"a process that tokenizes died (exit code {self._process.exitcode}). Most often memory ran out: set "
                "data.tokenizer_workers to fewer, or to 0 for none"
            ) from error

    def close(self) -> None:
        """End the process; it leaves as soon as nobody talks to it."""
        self._connection.close()
        self._process.join(JOIN_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _received(connection: Connection, facts: tuple[Any, ...]) -> Part:
    dtype, *counts = facts
    return Part(np.frombuffer(connection.recv_bytes(), dtype), *counts)


def _work(connection: Connection, tokenizer: Tokenizer) -> None:
    """A worker's life: until the other end is closed, or has died."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # for the process that started this one to answer
        signal.signal(signum, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            batch = [Segment(*fields) for fields in connection.recv()]
            try:
                parts = encode_batch(batch, tokenizer)
            except DataError as error:
                connection.send(str(error))
                continue
            connection.send([(part.tokens.dtype.str, part.characters, part.bytes, part.documents) for part in parts])
            for part in parts:
                connection.send_bytes(part.tokens.data.cast("B"))
