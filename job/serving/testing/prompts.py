"""What a served model is asked when nobody says: pieces of a text that every Python carries, of mixed lengths."""

from collections.abc import Iterator

import numpy as np

from job.data.builtin import python_docs
from job.data.tokenizer import Tokenizer
from job.errors import DataError, NotFoundError

SHORTEST = 4  # tokens
CAUTION = 0.75  # of the characters a token that were measured: another piece may have fewer
SAMPLE = 200  # characters


def mixed_prompts(
    count: int, longest: int, seed: int, tokenizer: Tokenizer | None, characters_per_token: float = 1.0
) -> list[str]:
    """`count` texts of 4 to `longest` tokens, as many of each order of magnitude; the same for the same arguments.

    Args:
        tokenizer: Counts the tokens; without one they are guessed.
        characters_per_token: As the unknown tokenizer makes them of `sample`.
    """
    draws = np.random.default_rng(seed)
    text = _known(tokenizer, draws)
    lengths = np.exp(draws.uniform(np.log(min(SHORTEST, longest)), np.log(longest), count)).round().astype(int)
    starts = draws.integers(0, len(text), count)
    pairs = zip(starts, lengths, strict=True)
    if tokenizer is None:
        guess = CAUTION * characters_per_token
        return [_wrapped(text, start, max(1, int(guess * length))) for start, length in pairs]
    return [_piece(text, start, length, tokenizer) for start, length in pairs]


def sample() -> str:
    """A text of which a server can tell how many tokens it has."""
    return _known(None, np.random.default_rng(0))[:SAMPLE]


def _known(tokenizer: Tokenizer | None, draws: np.random.Generator) -> str:
    """A text of characters that the tokenizer knows."""
    try:
        text = python_docs()
    except NotFoundError:
        text = ""
    if tokenizer is not None:
        text = text.translate({ord(character): None for character in _strangers(tokenizer, set(text))})
        return text or tokenizer.decode(draws.integers(0, tokenizer.vocab_size, 10_000).tolist())
    return text or "The quick brown fox jumps over the lazy dog. "


def _strangers(tokenizer: Tokenizer, characters: set[str]) -> Iterator[str]:
    for character in characters:
        try:
            tokenizer.encode_ordinary(character)
        except DataError:
            yield character


def _piece(text: str, start: int, length: int, tokenizer: Tokenizer) -> str:
    """A piece of at most `length` tokens, and nearly that; the text goes on from its start when it ends."""
    low, high = 1, 2  # characters; a piece of `low` fits
    while high < 64 * length and _count(tokenizer, _wrapped(text, start, high)) <= length:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = _count(tokenizer, _wrapped(text, start, middle)) <= length
        low, high = (middle, high) if fits else (low, middle)
    return _wrapped(text, start, low)


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text))


def _wrapped(text: str, start: int, length: int) -> str:
    return (text[start : start + length] + text * (1 + length // len(text)))[:length]
