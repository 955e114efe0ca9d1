"""Whether a corpus is where its addresses say, asked without downloading it."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from urllib3 import BaseHTTPResponse, Retry, Timeout
from urllib3.exceptions import HTTPError

from job.config import DataConfig
from job.data.addresses import Address, parse_addresses, public
from job.data.answers import pool_for, reason_of
from job.data.builtin import TEXTS, asset_folders, builtin_text, find_asset
from job.data.cache import cache_folder
from job.data.corpus import OpenStore, keys_of, listed
from job.data.download import REDIRECTS
from job.data.fetch import ContentCache
from job.data.formats import KNOWN, format_of
from job.data.local_files import find_files
from job.errors import AccessError, ConfigError, DataError, JobError, NotFoundError, StorageError
from job.infra.object_store import folder_errors

_TIMEOUT = Timeout(connect=3.0, read=5.0)
_LOOKED_AT = 20  # objects and addresses whose size is asked for


@dataclass(frozen=True, slots=True)
class Reached:
    """What an entry of `data.corpus` stands for.

    Args:
        size: Bytes as they lie there; None when nobody says.
    """

    uri: str
    files: int
    size: int | None
    local: bool


def reach(config: DataConfig, open_store: OpenStore) -> Iterator[Reached | JobError]:
    """What each entry stands for, or why it cannot be had."""
    try:
        addresses = parse_addresses(config.corpus)
    except ConfigError as error:
        yield from (ConfigError(problem) for problem in error.problems)
        return
    cache = ContentCache(cache_folder(config), config.max_bytes, lambda *_: None)
    for address in addresses:
        try:
            entries = listed(address, cache, open_store)
        except JobError as error:
            yield error
            continue
        for entry in entries[:_LOOKED_AT]:
            try:
                with folder_errors(f"read {public(entry.uri)}"):
                    yield _reach(entry, cache, open_store)
            except JobError as error:
                yield error


def _reach(address: Address, cache: ContentCache, open_store: OpenStore) -> Reached:
    if address.scheme == "builtin":
        name = address.uri.removeprefix("builtin:")
        if name in TEXTS:
            asset = TEXTS[name]
            held = find_asset(asset, asset_folders(), cache.advance) or cache.find(asset.sha256, ".txt")
            return Reached(address.uri, 1, held.path.stat().st_size, local=True) if held else ask(asset.url)
        content = builtin_text(name, cache)
        return Reached(address.uri, 1, content.path.stat().st_size, local=True)
    if address.scheme == "file":
        paths = find_files(address.uri)
        for path in paths:
            with path.open("rb"):
                pass
        return Reached(address.uri, len(paths), sum(path.stat().st_size for path in paths), local=True)
    if address.scheme == "s3":
        bucket, _, key = address.uri.removeprefix("s3://").partition("/")
        store = open_store(f"s3://{bucket}")
        keys = keys_of(store, key)
        size = sum(store.size(one) for one in keys) if len(keys) <= _LOOKED_AT else None
        return Reached(address.uri, len(keys), size, local=False)
    if format_of(unquote(urlsplit(address.uri).path).rpartition("/")[2]) is None:
        raise ConfigError(f"data.corpus: {public(address.uri)}: the format is told by the name: {KNOWN}")
    return ask(address.uri)


def ask(url: str) -> Reached:
    """A file elsewhere, asked for with HEAD, and then for one byte: a presigned address allows GET alone."""
    shown = public(url)
    try:
        answer = _ask("HEAD", url, {})
        if answer.status >= 400 and answer.status not in {404, 410}:
            answer = _ask("GET", url, {"Range": "bytes=0-0"})
    except HTTPError as error:
        raise StorageError(f"{shown}: {reason_of(error)}") from error
    said = f"{shown}: {answer.status} {answer.reason or ''}".rstrip()
    if answer.status in {404, 410}:
        raise NotFoundError(said)
    if answer.status in {401, 403, 407}:
        raise AccessError(said)
    if answer.status >= 400:
        raise (StorageError if answer.status >= 500 or answer.status == 429 else DataError)(said)
    length = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
    return Reached(shown, 1, int(length) if length.isdecimal() else None, local=False)


def _ask(method: str, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
    retries = Retry(total=None, connect=0, read=0, other=0, redirect=REDIRECTS)
    answer = pool_for(url).request(
        method,
        url,
        headers={"Accept-Encoding": "identity", **headers},
        retries=retries,
        timeout=_TIMEOUT,
        preload_content=False,
    )
    answer.close()
    return answer
