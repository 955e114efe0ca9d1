"""How far the making of token files has come, so that a process that takes over repeats next to nothing.

The journal lies beside the shards until they are whole. It is written when what it says is on disk: a shard that is
longer by then is cut back to it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from job.data.cache import read_json, write_json
from job.data.encoding import Part
from job.infra.object_store import folder_errors

JOURNAL = "journal.json"
FORMAT = 1


@dataclass(slots=True)
class Done:
    """What was written of a split. Bytes and characters are those of the text that its tokens stand for."""

    tokens: int = 0
    bytes: int = 0
    characters: int = 0
    documents: int = 0

    def add(self, part: Part) -> None:
        """Count one more part."""
        self.tokens += len(part.tokens)
        self.bytes += part.bytes
        self.characters += part.characters
        self.documents += part.documents


@dataclass(slots=True)
class Journal:
    """What was written of a corpus: the first `batches` of it.

    Args:
        batch_characters, shard_tokens: How the corpus is cut; with other numbers the journal says nothing.
        splits: By their names.
    """

    batch_characters: int
    shard_tokens: int
    batches: int
    splits: dict[str, Done]

    def save(self, folder: Path) -> None:
        """Write it beside the shards."""
        write_json(folder / JOURNAL, {"format": FORMAT, **asdict(self)})

    @classmethod
    def fresh(cls, batch_characters: int, shard_tokens: int, names: Sequence[str]) -> Self:
        """Nothing is written yet."""
        return cls(batch_characters, shard_tokens, 0, {name: Done() for name in names})

    @classmethod
    def load(cls, folder: Path, batch_characters: int, shard_tokens: int, names: Sequence[str]) -> Self:
        """What an earlier process left in `folder`; nothing, if that cannot be read or was cut otherwise."""
        fresh = cls.fresh(batch_characters, shard_tokens, names)
        facts = read_json(folder / JOURNAL)
        try:
            splits = {name: Done(**facts["splits"][name]) for name in names}
            same = (facts["format"], facts["batch_characters"], facts["shard_tokens"])
            if same != (FORMAT, batch_characters, shard_tokens):
                return fresh
            return cls(batch_characters, shard_tokens, facts["batches"], splits)
        except (KeyError, TypeError):
            return fresh

    @staticmethod
    def remove(folder: Path) -> None:
        """The shards are whole: there is nothing to continue."""
        with folder_errors(f"remove {folder / JOURNAL}"):
            (folder / JOURNAL).unlink(missing_ok=True)
