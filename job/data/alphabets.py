"""Tokenizers whose tokens are single characters or single bytes."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.errors import DataError

Tokens = NDArray[np.uint32]

END_OF_TEXT = "<|endoftext|>"
FORMAT = 1  # of tokenizer.json
CODE_POINTS = 0x110000


def canonical(facts: dict[str, Any]) -> bytes:
    """A tokenizer's facts as the one JSON text that they have."""
    return json.dumps({"format": FORMAT, **facts}, sort_keys=True, separators=(",", ":")).encode()


def code_points(text: str) -> NDArray[np.uint32]:
    """The Unicode numbers of the characters of `text`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


class CharTokenizer:
    """One token per character of a fixed alphabet, numbered in the order of their code points.

    Args:
        characters: The alphabet, in any order.
    """

    kind = "char"
    end_of_text: int | None = None

    def __init__(self, characters: str) -> None:
        self._points = np.unique(code_points(characters))
        self._numbers = np.full(int(self._points.max(initial=0)) + 1, -1, np.int32)  # of each code point
        self._numbers[self._points] = np.arange(len(self._points), dtype=np.int32)
        self.vocab_size = len(self._points)

    @property
    def numbers(self) -> dict[str, int]:
        """Character -> token."""
        return {chr(point): number for number, point in enumerate(self._points.tolist())}

    def encode(self, text: str) -> Tokens:
        """Characters -> their numbers. DataError names one that is not in the alphabet."""
        points = code_points(text)
        known = points < len(self._numbers)
        numbers = self._numbers[np.where(known, points, 0)]
        unknown = ~known | (numbers < 0)
        if unknown.any():
            stranger = int(points[int(unknown.argmax())])
            raise DataError(f"{chr(stranger)!r} (U+{stranger:04X}) is none of the {self.vocab_size} known characters")
        return numbers.astype(np.uint32)

    encode_ordinary = encode

    def decode(self, tokens: Sequence[int] | NDArray[Any]) -> str:
        """Numbers -> their characters."""
        return self._points[np.asarray(tokens, np.int64)].tobytes().decode("utf-32-le")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 of one character."""
        return self.decode([token]).encode("utf-8", "surrogatepass")

    def cut(self, text: str) -> int:
        """Characters at the start of `text` that may be encoded apart from the rest: all."""
        return len(text)

    def to_json(self) -> bytes:
        """The tokenizer as canonical JSON."""
        return canonical({"kind": self.kind, "characters": self._points.tobytes().decode("utf-32-le")})

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of `to_json`."""
        return hashlib.sha256(self.to_json()).hexdigest()


class ByteTokenizer:
    """One token per byte of UTF-8, and one for the end of a text."""

    kind = "byte"
    vocab_size = 257
    end_of_text: int | None = 256

    def encode(self, text: str) -> Tokens:
        """Characters -> the bytes of their UTF-8."""
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint32)

    encode_ordinary = encode

    def decode(self, tokens: Sequence[int] | NDArray[Any]) -> str:
        """Bytes -> text; what is not UTF-8 becomes U+FFFD."""
        numbers = np.asarray(tokens, np.int64)
        ends = np.flatnonzero(numbers == self.end_of_text)
        texts = (part[part != self.end_of_text] for part in np.split(numbers, ends))
        return END_OF_TEXT.join(text.astype(np.uint8).tobytes().decode("utf-8", "replace") for text in texts)

    def token_bytes(self, token: int) -> bytes:
        """One byte; the end of a text in words."""
        return END_OF_TEXT.encode() if token == self.end_of_text else bytes([token])

    def cut(self, text: str) -> int:
        """Characters at the start of `text` that may be encoded apart from the rest: all."""
        return len(text)

    def to_json(self) -> bytes:
        """The tokenizer as canonical JSON."""
        return canonical({"kind": self.kind})

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of `to_json`."""
        return hashlib.sha256(self.to_json()).hexdigest()
