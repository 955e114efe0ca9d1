"""A corpus that others have tokenized: its shards, in the format of llm.c, are read where they lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from job.data.cache import Advance, digest
from job.data.corpus import Corpus
from job.data.shards import open_shard
from job.data.splits import SPLITS
from job.data.token_files import SplitFiles, TokenFiles
from job.data.tokenizer import Tokenizer
from job.errors import DataError

CHUNK = 1 << 24  # tokens


def published_tokens(corpus: Corpus, tokenizer: Tokenizer, advance: Advance) -> TokenFiles:
    """The corpus's shards, each in the split that its name says (`val`, `test`, else train); text sizes are unknown, 0.

    Raises:
        DataError: A shard is damaged, or has tokens that the tokenizer does not have.
    """
    paths: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in corpus.files:
        paths[file.split or SPLITS[0]].append(file.path)
    train, validation, test = (_split(name, paths[name], tokenizer, advance) for name in SPLITS)
    fingerprint = digest(["published", corpus.fingerprint, tokenizer.sha256])
    return TokenFiles(fingerprint, tokenizer.vocab_size, "documents", train, validation, test)


def _split(name: str, paths: Sequence[Path], tokenizer: Tokenizer, advance: Advance) -> SplitFiles:
    tokens, documents = 0, 0
    for path in paths:
        shard = open_shard(path)
        for first in range(0, len(shard), CHUNK):
            some = shard[first : first + CHUNK]
            if (largest := int(some.max())) >= tokenizer.vocab_size:
                raise DataError(f"{path}: token {largest}, but {tokenizer.kind} has {tokenizer.vocab_size} tokens")
            documents += int(np.count_nonzero(some == tokenizer.end_of_text)) if tokenizer.end_of_text else 0
            advance()
        tokens += len(shard)
    return SplitFiles(name, tokens, bytes=0, characters=0, documents=documents, paths=tuple(paths))
