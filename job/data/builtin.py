"""Texts that need no address: one that every Python carries, and two with a pinned hash."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from job.data.cache import Advance, hash_file
from job.data.fetch import Content, ContentCache
from job.errors import ConfigError, NotFoundError

IMAGE_ASSETS = Path("/usr/share/gpt-job")
PYTHON_DOCS = "python-docs"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asset:
    """A public file of known content: its usual name, where it is published, its SHA-256 in hex."""

    name: str
    url: str
    sha256: str


TEXTS = {
    "the-verdict": Asset(
        "the-verdict.txt",
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
    ),
    "tiny-shakespeare": Asset(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}


def builtin_text(name: str, cache: ContentCache) -> Content:
    """The text `builtin:name`. ConfigError when there is none of that name."""
    if name == PYTHON_DOCS:
        return cache.keep_text(f"builtin:{name}", python_docs(), ".txt")
    if asset := TEXTS.get(name):
        return find_asset(asset, asset_folders(), cache.advance) or cache.fetch_url(asset.url, asset.sha256, ".txt")
    known = [PYTHON_DOCS, *TEXTS]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise ConfigError(f"data.corpus: no builtin:{name}; nearest is builtin:{nearest}, known are {', '.join(known)}")


def python_docs() -> str:
    """The language reference that this Python carries, topics in the order of their names; about 0.5 MB."""
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415  # some distributions leave it out
    except ImportError as error:
        raise NotFoundError(f"builtin:{PYTHON_DOCS}: this Python comes without pydoc_data") from error
    return "\n".join(topics[name].strip("\n") + "\n" for name in sorted(topics))


def asset_folders() -> list[Path]:
    """Folders that may hold public files, in the order of trust: $GPT_JOB_ASSETS, the image's own."""
    named = os.environ.get("GPT_JOB_ASSETS")
    return [Path(named), IMAGE_ASSETS] if named else [IMAGE_ASSETS]


def find_asset(asset: Asset, folders: list[Path], advance: Advance, *other_names: str) -> Content | None:
    """The first file in `folders`, under its usual or another name, that is `asset` by its hash."""
    for path in (folder / name for folder in folders for name in (asset.name, *other_names)):
        if path.is_file():
            found = hash_file(path, advance)
            if found == asset.sha256:
                return Content(path, found)
            log.warning("not the published file, passed over", path=str(path), sha256=found, expected=asset.sha256)
    return None
