"""Which formats a corpus may have, told from a file's name alone."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

Kind = Literal["text", "jsonl", "parquet", "tokens"]

TEXTS: dict[str, Kind] = {".txt": "text", ".md": "text", ".jsonl": "jsonl"}
WHOLE: dict[str, Kind] = {".parquet": "parquet", ".bin": "tokens"}  # compressed inside, or not at all
MANIFEST = ".manifest"  # holds addresses of files, one a line, and no text
COMPRESSIONS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
KNOWN = ".txt .md .jsonl (plain, .gz or .zst), .parquet or .bin (token files)"


@dataclass(frozen=True, slots=True)
class Format:
    """What a file holds: a text is one document, a line of a jsonl or row of a parquet too; tokens stay as they are."""

    kind: Kind
    compression: Literal["gzip", "zstd"] | None
    suffix: str  # as in the name, in lower case: ".jsonl.gz"


def format_of(name: str) -> Format | None:
    """The format of a file with this name; None when it is not a known one."""
    *_, second, last = ["", "", *PurePath(name.lower()).suffixes]
    if last in WHOLE:
        return Format(WHOLE[last], None, last)
    if last in TEXTS:
        return Format(TEXTS[last], None, last)
    if last in COMPRESSIONS and second in TEXTS:
        return Format(TEXTS[second], COMPRESSIONS[last], second + last)
    return None


PLAIN_TEXT = Format("text", None, ".txt")
