"""The `prepare` command: pull and tokenize, and nothing else."""

import structlog

from job.config import Config
from job.data.cache import Advance
from job.data.corpus import pull
from job.data.prepare import prepare as make_token_files
from job.data.token_files import require_windows
from job.data.tokenizer import build_tokenizer
from job.infra.storage import open_store

log = structlog.get_logger(__name__)


def prepare(config: Config, advance: Advance) -> dict[str, dict[str, int]]:
    """What each split of the corpus holds, once it lies in the cache as tokens.

    Raises:
        NotFoundError, DataError, AccessError, StorageError: The corpus cannot be had, or is not what it should be.
    """
    corpus = pull(config.data, lambda uri: open_store(uri, config.storage), advance)
    tokenizer = build_tokenizer(config.data, corpus, advance)
    files = make_token_files(corpus, tokenizer, config.data, advance)
    require_windows(files, config.data.split, config.model.context_length)
    return {
        split.name: {
            "documents": split.documents,
            "characters": split.characters,
            "bytes": split.bytes,
            "tokens": split.tokens,
        }
        for split in files.splits
    }
