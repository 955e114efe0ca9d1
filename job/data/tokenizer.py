"""Text to tokens and back: what every tokenizer offers, and which one a setting or a checkpoint means."""

import base64
import difflib
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from job.config import DataConfig
from job.data.alphabets import CODE_POINTS, FORMAT, ByteTokenizer, CharTokenizer, Tokens, code_points
from job.data.bpe import BpeTokenizer
from job.data.bpe_training import PREFIX, trained_tokenizer
from job.data.cache import Advance
from job.data.corpus import Corpus
from job.data.documents import read_documents
from job.data.gpt2_files import gpt2_tokenizer
from job.errors import ConfigError, DataError, StorageError

NEWLINE = "\n"  # between documents, for a tokenizer without end_of_text


class Tokenizer(Protocol):
    """Text <-> numbers below `vocab_size`. Equal `sha256` means equal tokens for every text."""

    @property
    def kind(self) -> str:
        """`char`, `byte`, `bpe:N` or the name of a tiktoken encoding."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest token."""

    @property
    def end_of_text(self) -> int | None:
        """The token between documents; None when there is no such token."""

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of `to_json`."""

    def encode(self, text: str) -> Tokens:
        """A prompt (n characters) -> (t,) uint32; <|endoftext|> means that token where BPE has it."""

    def encode_ordinary(self, text: str) -> Tokens:
        """A corpus's text (n characters) -> (t,) uint32; nothing in it is special."""

    def decode(self, tokens: Sequence[int] | NDArray[Any]) -> str:
        """(t,) -> text; bytes that are not UTF-8 become U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for: UTF-8, or a part of a character's."""

    def cut(self, text: str) -> int:
        """How many characters at the start of `text` have the same tokens whatever follows them."""

    def to_json(self) -> bytes:
        """All of it, as canonical JSON; `load_tokenizer` reads it."""


def build_tokenizer(config: DataConfig, corpus: Corpus, advance: Advance) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names; `char` takes its alphabet from the corpus, `bpe:N` is trained on it.

    Raises:
        ConfigError: There is none of that name.
        NotFoundError, StorageError: Its files are not here and cannot be had.
    """
    if config.tokenizer == "char":
        return CharTokenizer(_alphabet(config, corpus, advance))
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer.startswith(PREFIX):
        return trained_tokenizer(config, corpus, advance)
    if config.tokenizer == "gpt2":
        return gpt2_tokenizer(config, advance)
    return _published(config.tokenizer)


def load_tokenizer(content: bytes) -> Tokenizer:
    """The tokenizer that was written by `to_json`. DataError when the content is something else."""
    try:
        facts = json.loads(content)
        if facts["format"] != FORMAT:
            raise DataError(f"tokenizer.json: format {facts['format']}, expected {FORMAT}")
        make: Callable[[Any], Tokenizer] = {"char": _load_char, "byte": _load_byte}.get(facts["kind"], _load_bpe)
        tokenizer = make(facts)
        whole = tokenizer.to_json() == content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"tokenizer.json: cannot be read: {type(error).__name__}: {error}") from error
    if not whole:
        raise DataError("tokenizer.json: says other things than the tokenizer that was made of it")
    return tokenizer


def _load_char(facts: Any) -> Tokenizer:
    return CharTokenizer(facts["characters"])


def _load_byte(_: Any) -> Tokenizer:
    return ByteTokenizer()


def _load_bpe(facts: Any) -> Tokenizer:
    ranks = {base64.b64decode(token, validate=True): rank for token, rank in facts["ranks"].items()}
    special_tokens = facts["special_tokens"]
    numbers = [*ranks.values(), *special_tokens.values()]
    if len(set(numbers)) < len(numbers) or not all(type(number) is int and 0 <= number < 1 << 32 for number in numbers):
        raise ValueError("tokens are not numbers, each of its own")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("there are bytes without a token")
    return BpeTokenizer(str(facts["kind"]), facts["pattern"], ranks, special_tokens)


def _alphabet(config: DataConfig, corpus: Corpus, advance: Advance) -> str:
    """Every character of the corpus, and the one that will stand between its documents when it has several."""
    seen = np.zeros(CODE_POINTS, bool)
    documents = 0
    for document in read_documents(corpus, config, advance):
        documents += 1
        for piece in document.pieces():
            seen[code_points(piece)] = True
    seen[ord(NEWLINE)] |= documents > 1
    return np.flatnonzero(seen).astype(np.uint32).tobytes().decode("utf-32-le")


def _published(name: str) -> Tokenizer:
    """One of tiktoken's other encodings; tiktoken finds its file in its cache or downloads it."""
    import tiktoken  # noqa: PLC0415  # only when asked for

    encodings = tiktoken.list_encoding_names()
    known = ["byte", "char", *sorted(encodings)]
    if name not in encodings:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"data.tokenizer={name!r} is none of bpe:N, {', '.join(known)}; nearest is {nearest}")
    try:
        encoding = tiktoken.get_encoding(name)
    except ValueError as error:
        raise DataError(f"data.tokenizer={name!r}: {error}") from error
    except OSError as error:  # requests' errors are of this kind
        raise StorageError(
            f"data.tokenizer={name!r}: its file is not in $TIKTOKEN_CACHE_DIR and could not be downloaded: {error}"
        ) from error
    return BpeTokenizer(name, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)
