"""The token files of a corpus: per split its shards and what was counted while they were written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from job.data.cache import read_json, write_json
from job.data.shards import SHARD_TOKENS, TokenSplit, shard_bytes, token_type
from job.data.splits import SPLITS
from job.errors import DataError

META = "meta.json"


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """One split. Bytes and characters are those of the text that its tokens stand for (UTF-8; end_of_text has none)."""

    name: str
    tokens: int
    bytes: int
    characters: int
    documents: int
    paths: tuple[Path, ...]

    def open(self) -> TokenSplit:
        """The split's tokens, mapped from disk."""
        return TokenSplit(self.paths)


@dataclass(frozen=True, slots=True)
class TokenFiles:
    """A corpus as tokens.

    Args:
        fingerprint: SHA-256, in hex, of what the tokens depend on: corpus, tokenizer, shares of the splits.
        divided_by: Whether the splits are parts of one text, or whole documents.
        skipped_lines: How many lines without text were passed over.
        tokens_per_second: How fast they were made; None for those of others.
    """

    fingerprint: str
    vocab_size: int
    divided_by: Literal["characters", "documents"]
    train: SplitFiles
    validation: SplitFiles
    test: SplitFiles
    skipped_lines: int = 0
    tokens_per_second: float | None = None

    @property
    def splits(self) -> tuple[SplitFiles, SplitFiles, SplitFiles]:
        """In the order of `data.split`."""
        return self.train, self.validation, self.test

    def save(self, folder: Path) -> None:
        """Write the facts beside the shards."""
        splits = {split.name: asdict(split) | {"paths": [path.name for path in split.paths]} for split in self.splits}
        named = ("fingerprint", "vocab_size", "divided_by", "skipped_lines", "tokens_per_second")
        facts = {name: getattr(self, name) for name in named}
        write_json(folder / META, {**facts, "splits": splits})

    @classmethod
    def load(cls, folder: Path) -> "TokenFiles":
        """The token files in `folder`; only the facts and the sizes of the shards are read.

        Raises:
            DataError: Facts or shards are missing or do not fit each other.
        """
        facts = read_json(folder / META)
        try:
            train, validation, test = (
                _load_split(folder, facts["splits"][name], facts["vocab_size"]) for name in SPLITS
            )
            known = facts["fingerprint"], facts["vocab_size"], facts["divided_by"]
            since = facts.get("skipped_lines", 0), facts.get("tokens_per_second")  # not in files of before they were
            return cls(*known, train, validation, test, *since)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{folder}: {META} or a shard is missing or damaged: {error!r}") from error


def _load_split(folder: Path, facts: dict[str, Any], vocab_size: int) -> SplitFiles:
    split = SplitFiles(**facts | {"paths": tuple(folder / name for name in facts["paths"])})
    left = split.tokens
    for path in split.paths:
        tokens = min(left, SHARD_TOKENS)
        expected = shard_bytes(tokens, token_type(vocab_size))
        if path.stat().st_size != expected:
            raise DataError(f"{path}: {path.stat().st_size} bytes, expected {expected}")
        left -= tokens
    if left:
        raise DataError(f"{folder}: {left} tokens of {split.name} are in no shard")
    return split


def require_windows(files: TokenFiles, shares: Sequence[float], context_length: int) -> None:
    """Pass when train, and every split that is to have a share, holds a window: context_length + 1 tokens.

    Raises:
        DataError: What is too short, by how much, and what to change.
    """
    needed = context_length + 1
    asked = [*shares, *[0.0] * (len(SPLITS) - len(shares))]
    short = [
        f"{split.name} has {split.tokens} tokens and needs {needed} (model.context_length + 1)"
        for split, share in zip(files.splits, asked, strict=True)
        if split.tokens < needed and (share > 0 or split.name == "train")
    ]
    if not short:
        return
    few = sum(split.documents for split in files.splits)
    whole = f" (each of its {few} documents goes whole to one split, or join them in one file)"
    raise DataError(
        f"{'; '.join(short)}. Add text to data.corpus{whole if files.divided_by == 'documents' else ''}, change "
        f"data.split={list(shares)}, or lower model.context_length={context_length}."
    )
