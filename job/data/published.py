"""A corpus that others have tokenized: its shards, in the format of llm.c, are read where they lie.

published/<fingerprint>.json   what was counted in them, so that they are read through once and not at every start
"""

from pathlib import Path
from typing import Any

import numpy as np

from job.data.cache import Advance, digest, read_json, write_json
from job.data.corpus import Corpus, CorpusFile
from job.data.shards import open_shard
from job.data.splits import SPLITS
from job.data.token_files import SplitFiles, TokenFiles
from job.data.tokenizer import Tokenizer
from job.errors import DataError

CHUNK = 1 << 24  # tokens


def published_tokens(corpus: Corpus, tokenizer: Tokenizer, cache: Path, advance: Advance) -> TokenFiles:
    """The corpus's shards, each in the split that its name says (`val`, `test`, else train); text sizes are unknown, 0.

    Raises:
        DataError: A shard is damaged, or has tokens that the tokenizer does not have.
    """
    fingerprint = digest(["published", corpus.fingerprint, tokenizer.sha256])
    files = {name: [file for file in corpus.files if (file.split or SPLITS[0]) == name] for name in SPLITS}
    note = cache / "published" / f"{fingerprint}.json"
    counts = _noted(note)
    if counts is None:
        counts = {name: _counted(files[name], tokenizer, advance) for name in SPLITS}
        corpus.require_unchanged()
        write_json(note, {"counts": counts})
    train, validation, test = (
        SplitFiles(name, tokens, 0, 0, documents, tuple(file.path for file in files[name]))
        for name, (tokens, documents) in counts.items()
    )
    return TokenFiles(fingerprint, tokenizer.vocab_size, "documents", train, validation, test)


def _noted(note: Path) -> dict[str, tuple[int, int]] | None:
    facts: Any = read_json(note).get("counts")
    try:
        return {name: (int(facts[name][0]), int(facts[name][1])) for name in SPLITS}
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _counted(files: list[CorpusFile], tokenizer: Tokenizer, advance: Advance) -> tuple[int, int]:
    """Tokens and documents in all of these."""
    tokens, documents = 0, 0
    for file in files:
        shard = open_shard(file.path, file.uri)
        for first in range(0, len(shard), CHUNK):
            some = shard[first : first + CHUNK]
            if (largest := int(some.max())) >= tokenizer.vocab_size:
                raise DataError(f"{file.uri}: token {largest}, but {tokenizer.kind} has {tokenizer.vocab_size} tokens")
            documents += int(np.count_nonzero(some == tokenizer.end_of_text)) if tokenizer.end_of_text else 0
            advance()
        tokens += len(shard)
    return tokens, documents
