"""Corpus to token files: once per corpus, tokenizer and split; complete or invisible."""

import shutil
from pathlib import Path

import structlog

from job.config import DataConfig
from job.data.cache import Advance, cache_folder, digest, locked, publish
from job.data.corpus import Corpus
from job.data.meter import Meter
from job.data.published import published_tokens
from job.data.shared_tokens import SharedTokens
from job.data.token_files import TokenFiles
from job.data.tokenizer import Tokenizer
from job.data.tokenizing import tokenize
from job.errors import DataError
from job.infra.object_store import ObjectStore, folder_errors

FORMAT = 1  # of token files: raised when the same corpus would become other tokens

log = structlog.get_logger(__name__)


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    advance: Advance,
    meter: Meter | None = None,
    shared: ObjectStore | None = None,
) -> TokenFiles:
    """The corpus as token files, from the cache when they are there.

    One text is cut by characters; of several, each goes whole to the split that its hash names, followed by
    end_of_text, or by a newline where the tokenizer has no such token. A corpus of token files is taken as it is.

    Args:
        advance: Called whenever text has moved; when it raises, nothing is left that looks whole, and the next call
            goes on from there.
        shared: Where token files are looked for before they are made, and put when they are: `data.cache_uri`.

    Raises:
        StorageError, AccessError: `shared` cannot be asked.
        DataError: The corpus is empty, damaged or holds what the tokenizer does not know.
    """
    if all(file.format.kind == "tokens" for file in corpus.files):
        return published_tokens(corpus, tokenizer, cache_folder(config), advance)
    policy = ["skip"] if config.bad_lines == "skip" else []
    fingerprint = digest([FORMAT, corpus.fingerprint, tokenizer.sha256, list(config.split), *policy])
    cache = cache_folder(config)
    folder = cache / "tokens" / fingerprint
    others = SharedTokens(shared, fingerprint) if shared else None
    if not (files := _cached(folder)):
        with locked(cache, f"tokens-{fingerprint}", advance):
            if not (files := _cached(folder)):
                partial = folder.with_name(f".{fingerprint}.partial")
                with folder_errors(f"write {partial}"):
                    partial.mkdir(parents=True, exist_ok=True)
                if not (others and _fetched(others, partial, advance)):
                    _make(partial, fingerprint, corpus, tokenizer, config, advance, meter or Meter())
                _publish(partial, folder)
                files = TokenFiles.load(folder)
    if others:
        others.offer(folder, advance)
    return files


def _make(
    partial: Path,
    fingerprint: str,
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    advance: Advance,
    meter: Meter,
) -> None:
    meter.phase("tokenizing", corpus.text_bytes)
    try:
        made = tokenize(partial, fingerprint, corpus, tokenizer, config, advance, meter)
        corpus.require_unchanged()
        made.save(partial)
    except DataError:  # the text will not get better, or is not the one that the fingerprint is of
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fetched(others: SharedTokens, partial: Path, advance: Advance) -> bool:
    """Whether the folder now has whole token files from elsewhere, and nothing else."""
    incoming = partial.with_suffix(".incoming")
    try:
        with folder_errors(f"write {incoming}"):
            incoming.mkdir(exist_ok=True)
        if not others.fetch(incoming, advance):
            return False
        TokenFiles.load(incoming)
        shutil.rmtree(partial)
        publish(incoming, partial)
    except DataError as error:
        log.warning("shared token files do not fit each other and are made again", uri=others.uri, reason=str(error))
        return False
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return True


def _cached(folder: Path) -> TokenFiles | None:
    if not folder.exists():
        return None
    try:
        return TokenFiles.load(folder)
    except DataError as error:
        log.warning("cached token files are damaged and are made again", reason=str(error))
        return None


def _publish(partial: Path, folder: Path) -> None:
    with folder_errors(f"write {folder}"):
        if folder.exists():
            shutil.rmtree(folder)  # damaged; who has it mapped keeps what it had
        publish(partial, folder)
