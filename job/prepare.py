"""The `prepare` command: pull and tokenize, and nothing else."""

from typing import Any

from job.config import Config
from job.data.cache import Advance
from job.data.corpus import pull
from job.data.meter import Meter, Shown
from job.data.prepare import prepare as make_token_files
from job.data.shared_tokens import SharedTokens
from job.data.token_files import require_windows
from job.data.tokenizer import build_tokenizer
from job.errors import StorageError
from job.infra.storage import open_cache, open_store

COUNTS = ("documents", "characters", "bytes", "tokens")


def prepare(config: Config, advance: Advance, shown: Shown | None = None) -> dict[str, Any]:
    """What the corpus holds, in all and by split, once it lies in the cache as tokens.

    Args:
        advance: Called as bytes move; may raise to stop.
        shown: Where a person sees how far it is.

    Raises:
        NotFoundError, DataError, AccessError: The corpus cannot be had, or is not what it should be.
        StorageError: The same, or the token files could not be put where `data.cache_uri` wants them.
    """
    meter = Meter(shown)
    corpus = pull(config.data, lambda uri: open_store(uri, config.storage), advance, meter)
    tokenizer = build_tokenizer(config.data, corpus, advance)
    shared = open_cache(config)
    files = make_token_files(corpus, tokenizer, config.data, advance, meter, shared)
    require_windows(files, config.data.split, config.model.context_length)
    if (
        shared
        and any(file.format.kind != "tokens" for file in corpus.files)
        and not SharedTokens(shared, files.fingerprint).complete()
    ):
        raise StorageError(f"the token files are on this machine, but not in data.cache_uri={config.data.cache_uri}")
    totals = {name: sum(getattr(split, name) for split in files.splits) for name in COUNTS}
    if files.divided_by == "characters":
        totals["documents"] = 1  # each split has a part of it
    return {
        "files": len(corpus.files),
        "vocabulary": tokenizer.vocab_size,
        **totals,
        "bytes_per_token": round(totals["bytes"] / totals["tokens"], 3) if totals["bytes"] else None,
        "tokens_per_second": files.tokens_per_second,
        "skipped_lines": files.skipped_lines,
        "splits": {split.name: {name: getattr(split, name) for name in COUNTS} for split in files.splits},
    }
