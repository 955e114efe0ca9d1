"""The text of a run: `data.corpus` turned into local files whose bytes are known by their hashes."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import structlog

from job.config import DataConfig
from job.data import formats
from job.data.addresses import Address, parse_addresses, public
from job.data.builtin import builtin_text
from job.data.cache import Advance, cache_folder, digest, hash_file
from job.data.fetch import Content, ContentCache
from job.data.formats import MANIFEST, Format, format_of
from job.data.known_hashes import Stamp, known_hash, require_unchanged
from job.data.local_files import find_files
from job.data.manifest import is_manifest, read_manifest
from job.data.meter import Meter
from job.data.numbered import require_every_shard
from job.data.sweep import sweep
from job.data.together import all_at_once
from job.errors import ConfigError, DataError, NotFoundError
from job.infra.object_store import ObjectStore

SPLIT_WORDS = {"validation": {"val", "valid", "validation"}, "test": {"test"}}
OpenStore = Callable[[str], ObjectStore]  # of an s3:// URI
Source = Callable[[ContentCache], "CorpusFile"]  # brings a file

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of a corpus, here on this machine.

    Args:
        uri: Where it came from, without secrets.
        size: Bytes.
        stamp: What it looked like when it was hashed; None for one of the cache, where nobody changes files in place.
    """

    uri: str
    path: Path
    size: int
    sha256: str
    format: Format
    stamp: Stamp | None = None

    @property
    def split(self) -> str | None:
        """The split that a token file's name says; None for text, which is divided by `data.split`."""
        if self.format.kind != "tokens":
            return None
        words = re.split(r"[^a-z]+", PurePosixPath(self.uri).name.lower())
        return next((split for split, names in SPLIT_WORDS.items() if not names.isdisjoint(words)), "train")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files in the order of `data.corpus`.

    Args:
        text_field: Where a line of a .jsonl, or a row of a .parquet file, keeps its text.
    """

    files: tuple[CorpusFile, ...]
    text_field: str = "text"

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the text depends on: order, content and formats; not names or places."""
        kinds = [[file.format.kind, file.format.compression, file.split, file.sha256] for file in self.files]
        reads_fields = any(file.format.kind in {"jsonl", "parquet"} for file in self.files)
        return digest([kinds, self.text_field if reads_fields else None])

    def require_unchanged(self) -> None:
        """Pass when the files are those that were hashed; DataError names one that was changed since."""
        for file in self.files:
            if file.stamp is not None:
                require_unchanged(file.path, file.stamp)

    @property
    def size(self) -> int:
        """Bytes of all files, as they lie on disk."""
        return sum(file.size for file in self.files)

    @property
    def text_bytes(self) -> int | None:
        """About the bytes of its text; None where the files do not tell before they are read."""
        plain = all(file.format.compression is None and file.format.kind != "parquet" for file in self.files)
        return self.size if plain else None


def pull(config: DataConfig, open_store: OpenStore, advance: Advance, meter: Meter | None = None) -> Corpus:
    """The corpus that `config` names, all of it on this machine: local files in place, others in the cache.

    Args:
        open_store: Opens `s3://bucket`.
        advance: Called whenever bytes have moved, from several threads.

    Raises:
        ConfigError: An entry names no known place or format.
        NotFoundError, AccessError, StorageError: It is not there, is refused, or nobody answers.
        DataError: A pinned hash is not met, or a file is longer than `data.max_bytes`.
    """
    meter = meter or Meter()
    sweep(cache_folder(config), time.time())
    cache = ContentCache(cache_folder(config), config.max_bytes, advance, config.connections)
    addresses = [found for address in parse_addresses(config.corpus) for found in listed(address, cache, open_store)]
    sources = [source for address in addresses for source in _sources(address, open_store)]
    meter.phase("pulling", len(sources), "files")

    def fetch(source: Source, still_wanted: Advance) -> CorpusFile:
        file = source(replace(cache, advance=still_wanted))
        meter.add(1)
        return file

    return Corpus(tuple(all_at_once(fetch, sources, config.downloads, advance)), config.text_field)


def listed(address: Address, cache: ContentCache, open_store: OpenStore) -> list[Address]:
    """The address itself, or those in the manifest that it names."""
    if not is_manifest(address):
        return [address]
    return read_manifest(address, lambda: _manifest_file(address, cache, open_store))


def _manifest_file(address: Address, cache: ContentCache, open_store: OpenStore) -> Path:
    if address.scheme == "file":
        content = Content(Path(address.uri).expanduser(), "")
        if not content.path.is_file():
            raise NotFoundError(f"data.corpus: no file at {content.path}")
        _require_pin(address, replace(content, sha256=hash_file(content.path, cache.advance)))
        return content.path
    if address.scheme == "s3":
        bucket, _, key = address.uri.removeprefix("s3://").partition("/")
        return cache.fetch_object(open_store(f"s3://{bucket}"), key, address.sha256, MANIFEST).path
    return cache.fetch_url(address.uri, address.sha256, MANIFEST).path


def _sources(address: Address, open_store: OpenStore) -> Iterator[Source]:
    """What brings each file that the address stands for; nothing but names has been read yet."""
    if address.scheme == "builtin":
        yield partial(_builtin, address)
    elif address.scheme == "file":
        paths = find_files(address.uri)
        _require_one(address, len(paths))
        yield from (partial(_local, address, path) for path in paths)
    elif address.scheme == "s3":
        bucket, _, key = address.uri.removeprefix("s3://").partition("/")
        store = open_store(f"s3://{bucket}")
        keys = keys_of(store, key)
        _require_one(address, len(keys))
        yield from (partial(_object, address, store, found) for found in keys)
    else:
        fmt = _format(address.uri, unquote(urlsplit(address.uri).path))
        yield partial(_download, address, fmt)


def _builtin(address: Address, cache: ContentCache) -> CorpusFile:
    content = builtin_text(address.uri.removeprefix("builtin:"), cache)
    _require_pin(address, content)
    return _file(address.uri, content, formats.PLAIN_TEXT)


def _local(address: Address, path: Path, cache: ContentCache) -> CorpusFile:
    content = Content(path, *known_hash(cache.folder, path, cache.advance))
    _require_pin(address, content)
    return _file(str(path), content, _format(str(path), path.name))


def _object(address: Address, store: ObjectStore, key: str, cache: ContentCache) -> CorpusFile:
    uri = f"{store.uri}/{key}"
    fmt = _format(uri, key)
    return _file(uri, cache.fetch_object(store, key, address.sha256, fmt.suffix), fmt)


def _download(address: Address, fmt: Format, cache: ContentCache) -> CorpusFile:
    return _file(public(address.uri), cache.fetch_url(address.uri, address.sha256, fmt.suffix), fmt)


def keys_of(store: ObjectStore, key: str) -> list[str]:
    """`key` itself when it is an object, else those of a known format below it."""
    if key and not key.endswith("/"):
        try:
            store.size(key)
        except KeyError:
            pass
        else:
            return [key]
    folder = f"{key.rstrip('/')}/" if key else ""
    found = store.keys(folder)
    known = [name for name in found if format_of(name)]
    if unknown := [name for name in found if not format_of(name)]:
        log.warning("objects of unknown format left out", corpus=f"{store.uri}/{folder}", count=len(unknown))
    if not known:
        raise NotFoundError(f"data.corpus: no object {store.uri}/{key}, and nothing below it is {formats.KNOWN}")
    require_every_shard(f"{store.uri}/{folder}", known)
    return known


def _file(uri: str, content: Content, fmt: Format) -> CorpusFile:
    return CorpusFile(uri, content.path, content.path.stat().st_size, content.sha256, fmt, content.stamp)


def _format(uri: str, name: str) -> Format:
    if fmt := format_of(PurePosixPath(name).name):
        return fmt
    raise ConfigError(f"data.corpus: {public(uri)}: the format is told by the name: {formats.KNOWN}")


def _require_one(address: Address, count: int) -> None:
    if address.sha256 and count != 1:
        raise ConfigError(f"data.corpus: {address.uri}: #sha256= pins one file, and this is {count}")


def _require_pin(address: Address, content: Content) -> None:
    if address.sha256 not in {None, content.sha256}:
        raise DataError(f"{address.uri}: expected sha256 {address.sha256}, got {content.sha256}")
