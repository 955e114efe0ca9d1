"""Byte-pair encodings, run by tiktoken. Whole in `to_json`, so that a checkpoint needs no files beside it."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.data.alphabets import END_OF_TEXT, Tokens, canonical
from job.data.boundaries import forced_cuts, last_boundary


class BpeTokenizer:
    """A tiktoken encoding.

    Args:
        kind: Its name.
        pattern: Regular expression that divides text into words.
        ranks: Token bytes -> token; lower ones merge first.
        special_tokens: Text -> token, for tokens that no ordinary text becomes.
    """

    def __init__(self, kind: str, pattern: str, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        import tiktoken  # noqa: PLC0415  # `--help` and byte or character runs do without it

        self.kind = kind
        self._pattern, self._ranks, self._special_tokens = pattern, dict(ranks), dict(special_tokens)
        self._encoding = tiktoken.Encoding(
            kind, pat_str=pattern, mergeable_ranks=self._ranks, special_tokens=self._special_tokens
        )
        self.vocab_size = self._encoding.n_vocab
        self.end_of_text = self._special_tokens.get(END_OF_TEXT)

    def __reduce__(self) -> tuple[type["BpeTokenizer"], tuple[Any, ...]]:
        return type(self), (self.kind, self._pattern, self._ranks, self._special_tokens)

    @property
    def pattern(self) -> str:
        """Regular expression that divides text into words."""
        return self._pattern

    @property
    def ranks(self) -> Mapping[bytes, int]:
        """Token bytes -> token."""
        return self._ranks

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Text -> token, for tokens that no ordinary text becomes."""
        return self._special_tokens

    def encode(self, text: str) -> Tokens:
        """A prompt's tokens: <|endoftext|> in it is that token, where there is one."""
        return self._encode(text, {END_OF_TEXT} & self._special_tokens.keys())

    def encode_ordinary(self, text: str) -> Tokens:
        """A corpus's tokens: <|endoftext|> in it is text like any other."""
        return self._encode(text, set())

    def decode(self, tokens: Sequence[int] | NDArray[Any]) -> str:
        """Tokens -> text; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode(np.asarray(tokens, np.int64).tolist())

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._encoding.decode_single_token_bytes(token)

    def cut(self, text: str) -> int:
        """Characters at the start of `text` whose tokens do not depend on the rest; 0 when there is no such place."""
        return last_boundary(text)

    def to_json(self) -> bytes:
        """The tokenizer as canonical JSON: pattern, special tokens, and ranks by base64 of the token."""
        return canonical(
            {
                "kind": self.kind,
                "pattern": self._pattern,
                "ranks": {base64.b64encode(token).decode(): rank for token, rank in self._ranks.items()},
                "special_tokens": self._special_tokens,
            }
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of `to_json`."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def _encode(self, text: str, special: set[str]) -> Tokens:
        cuts = forced_cuts(text)
        if not cuts:
            return self._encode_stretch(text, special)
        ends = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return np.concatenate([self._encode_stretch(text[start:end], special) for start, end in ends])

    def _encode_stretch(self, text: str, special: set[str]) -> Tokens:
        try:
            if hasattr(self._encoding, "encode_to_numpy"):
                return self._encoding.encode_to_numpy(text, allowed_special=special, disallowed_special=())
            return np.array(self._encoding.encode(text, allowed_special=special, disallowed_special=()), np.uint32)
        except UnicodeEncodeError:  # half a surrogate pair: a terminal's way to pass on what is not UTF-8
            return self._encode_stretch(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), special)


def merged_from(ranks: Mapping[bytes, int]) -> dict[bytes, tuple[bytes, bytes]]:
    """Which two tokens each longer one is merged from, in the order of merging; those that no merge makes are left out.

    Ranks do not say it, and do: a token's own bytes, merged by all that merge before it, are these two.
    """
    found = {}
    for token, rank in sorted(ranks.items(), key=lambda entry: entry[1]):
        parts = [token[place : place + 1] for place in range(len(token))]
        while len(parts) > 2:
            least, place = min((ranks.get(parts[n] + parts[n + 1], rank), n) for n in range(len(parts) - 1))
            if least >= rank:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) == 2:
            found[token] = (parts[0], parts[1])
    return found
