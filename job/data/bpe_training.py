"""A byte-level BPE of a corpus's own, trained by `tokenizers` and run by tiktoken.

Words, which merges never leave, are GPT-2's (`gpt2_files.PATTERN`). Training sees a sample of the corpus, spread
evenly over all of it. The last entry of the vocabulary is <|endoftext|>, which is no word of the text.
"""

import base64
import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import structlog

from job.config import DataConfig
from job.data.alphabets import END_OF_TEXT
from job.data.bpe import BpeTokenizer
from job.data.cache import Advance, cache_folder, digest, locked, read_json, write_json
from job.data.corpus import Corpus
from job.data.documents import read_documents
from job.data.gpt2_files import BYTE_TOKENS, PATTERN, byte_token
from job.errors import ConfigError, DataError

PREFIX = "bpe:"
LEAST = 257  # every byte, and the end of a text
SAMPLE = 64 << 20  # characters that training sees at most
FORMAT = 1  # raised when the same corpus would give another tokenizer

log = structlog.get_logger(__name__)


def entries_of(name: str) -> int:
    """N of `bpe:N`. ConfigError when it is no number, or too small."""
    number = name.removeprefix(PREFIX)
    if not (number.isascii() and number.isdecimal() and LEAST <= int(number) <= 1 << 20):
        raise ConfigError(f"data.tokenizer={name!r}: bpe:N takes a number of entries from {LEAST} to {1 << 20}")
    return int(number)


def trained_tokenizer(config: DataConfig, corpus: Corpus, advance: Advance) -> BpeTokenizer:
    """The tokenizer `bpe:N` of this corpus, from the cache when it was trained before.

    Raises:
        ConfigError: N is no number of entries, or `tokenizers` is not installed.
        DataError: The corpus gives fewer entries.
    """
    size = entries_of(config.tokenizer)
    cache = cache_folder(config)
    name = digest(["bpe", FORMAT, size, PATTERN, SAMPLE, config.bad_lines, corpus.fingerprint])
    path = cache / "tokenizers" / f"{name}.json"
    with locked(cache, f"tokenizer-{name}", advance):
        tokens = read_json(path).get("tokens")
        if not tokens:
            library = _library(config.tokenizer)
            tokens = _train(library, size, _spread(_pieces(corpus, config, advance)), advance)
            version = importlib.metadata.version("tokenizers")
            write_json(path, {"tokens": tokens, "pattern": PATTERN, "trained_by": f"tokenizers {version}"})
    if len(tokens) + 1 < size:
        raise DataError(
            f"data.tokenizer={config.tokenizer!r}: this corpus gives {len(tokens) + 1} entries at most; "
            f"set bpe:{len(tokens) + 1} or fewer, or add text"
        )
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(tokens)}
    return BpeTokenizer(config.tokenizer, PATTERN, ranks, {END_OF_TEXT: len(ranks)})


def _train(library: Any, size: int, sample: list[str], advance: Advance) -> list[str]:
    """Tokens in the order of their ranks, as base64: the bytes first, then what merging makes."""
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)  # divides by GPT-2's pattern
    trainer = library.trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=list(BYTE_TOKENS), special_tokens=[], show_progress=False
    )

    def texts() -> Iterator[str]:
        for text in sample:
            advance()
            yield text

    log.info("training a tokenizer", entries=size, characters=sum(map(len, sample)))
    model.train_from_iterator(texts(), trainer)
    merges = [left + right for left, right in json.loads(model.to_str())["model"]["merges"]]
    tokens = dict.fromkeys([*BYTE_TOKENS, *merges])  # two merges may make the same token
    return [base64.b64encode(byte_token(token)).decode() for token in tokens]


def _pieces(corpus: Corpus, config: DataConfig, advance: Advance) -> Iterator[str]:
    for document in read_documents(corpus, config, advance):
        yield from document.pieces()


def _spread(pieces: Iterator[str]) -> list[str]:
    """Every n-th piece, n a power of two, and as many as SAMPLE characters allow: always the same ones of a text."""
    kept: list[str] = []
    stride, held = 1, 0
    for number, piece in enumerate(pieces):
        if number % stride:
            continue
        kept.append(piece)
        held += len(piece)
        if held > SAMPLE and len(kept) > 1:
            kept, stride = kept[::2], 2 * stride
            held = sum(map(len, kept))
    return kept


def _library(name: str) -> Any:
    try:
        import tokenizers  # noqa: PLC0415  # an extra, asked for only where a tokenizer is trained
        import tokenizers.models  # noqa: PLC0415
        import tokenizers.pre_tokenizers  # noqa: PLC0415
        import tokenizers.trainers  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"data.tokenizer={name!r} needs a module: pip install 'gpt-pretrain-job[bpe]'") from error
    return tokenizers
