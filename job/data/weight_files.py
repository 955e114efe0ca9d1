"""Where weights are: from a name, a folder or an address to local files, each by the name it has there."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from job.config import DataConfig
from job.data.addresses import public
from job.data.cache import Advance, cache_folder
from job.data.fetch import ContentCache
from job.errors import AccessError, ConfigError, DataError, JobError, NotFoundError, StorageError
from job.infra.object_store import ObjectStore, folder_errors
from job.uris import local_folder

SIZES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}  # and Hugging Face's names
_ALSO = {"": "124M", "small": "124M", "medium": "355M", "large": "774M", "xl": "1558M"}
_ALSO |= {"117M": "124M", "345M": "355M", "762M": "774M", "1542M": "1558M"}  # as the paper counted
KNOWN_BYTES = {  # of OpenAI's files, where they are published
    "124M": {"model.ckpt.data-00000-of-00001": 497_759_232, "model.ckpt.index": 5_215},
    "355M": {"model.ckpt.data-00000-of-00001": 1_419_292_672, "model.ckpt.index": 10_399},
    "774M": {},
    "1558M": {},
}
_ENCODING = {"encoder.json": 1_042_301, "vocab.bpe": 456_318}
_OPENAI = ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "encoder.json", "vocab.bpe")
_TOKENIZER = ("job_tokenizer.json", "tokenizer.json", "vocab.json", "merges.txt")
_READ = re.compile(
    r"config\.json|hparams\.json|checkpoint|[\w.-]+\.(index|data-\d{5}-of-\d{5}|safetensors|safetensors\.index\.json)"
    r"|encoder\.json|vocab\.bpe|vocab\.json|merges\.txt|(job_)?tokenizer\.json"
)
_FILE = re.compile(r"\.(safetensors|index|bin|pt|pth|ckpt|pkl|json)$|\.data-\d{5}-of-\d{5}$")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one model.

    Args:
        uri: Where they are from, without what may be secret.
        files: By name; what cannot be of use is listed and was not brought.
    """

    uri: str
    files: Mapping[str, Path]


def find_weight_files(
    uri: str, config: DataConfig, open_store: Callable[[str], ObjectStore], advance: Advance
) -> WeightFiles:
    """The files that `uri` means: `gpt2:124M` and other names of that model, a folder, https:// or s3://.

    Raises:
        NotFoundError: There is nothing.
        ConfigError: No weights can have such an address.
        DataError: A file has another size than the published one.
        AccessError, StorageError: It cannot be reached.
    """
    cache = ContentCache(cache_folder(config), config.max_bytes, advance, config.connections)
    if size := released_size(uri):
        return _released(size, config.weights_hosts, cache)
    if re.match(r"https?://", uri, re.IGNORECASE):
        return WeightFiles(public(uri), _from_web(uri, cache, {}))
    if re.match(r"s3://", uri, re.IGNORECASE):
        store = open_store(uri)
        return WeightFiles(uri, _from_store(store, cache))
    if (folder := local_folder(uri)) is None:
        raise ConfigError(f"{public(uri)}: weights are gpt2:SIZE ({', '.join(SIZES)}), a folder, https:// or s3://")
    return WeightFiles(uri, _from_folder(folder))


def released_size(name: str) -> str | None:
    """The size that a name of GPT-2 means, as OpenAI writes it; None for what is no such name, or is a folder.

    Raises:
        ConfigError: It begins as such a name and there is no such size.
    """
    match = re.fullmatch(r"(?:openai-community/)?gpt-?2(?:([:_ -]).*)?", name.strip(), re.IGNORECASE)
    if not match or (match[1] != ":" and Path(name).is_dir()):
        return None
    words = re.findall(r"[a-z0-9]+", name.lower().removeprefix("openai-community/").replace("gpt-2", "gpt2"))[1:]
    known = {alias.lower(): size for alias, size in (*_ALSO.items(), *((size, size) for size in SIZES))}
    meant = {known.get(word) for word in words or [""]}
    if len(meant) != 1 or None in meant:
        names = ", ".join(f"gpt2:{size}" for size in SIZES)
        raise ConfigError(f"{name}: expected {names}, or one of {', '.join(SIZES.values())}, or a folder")
    return meant.pop()


def _released(size: str, hosts: Iterable[str], cache: ContentCache) -> WeightFiles:
    """A released model from the first host that has it whole."""
    failures = []
    for host in hosts:
        address = host.replace("{size}", size).replace("{name}", SIZES[size])
        try:
            return WeightFiles(public(address), _from_web(address, cache, {**KNOWN_BYTES[size], **_ENCODING}))
        except (NotFoundError, AccessError, StorageError, DataError) as error:
            log.warning("weights not to be had here", uri=public(address), reason=str(error))
            failures.append(error)
    reasons = "".join(f"\n  {error}" for error in failures)
    kind: type[JobError] = DataError if all(isinstance(error, DataError) for error in failures) else NotFoundError
    raise kind(
        f"gpt2:{size} is on none of data.weights_hosts:{reasons}\n"
        "Download the files elsewhere and name their folder instead."
    )


def _from_folder(folder: Path) -> dict[str, Path]:
    with folder_errors(f"read {folder}"):
        if folder.is_file():
            folder = folder.parent
        if not folder.is_dir():
            raise NotFoundError(f"{folder}: no folder or file here")
        return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def _from_store(store: ObjectStore, cache: ContentCache) -> dict[str, Path]:
    """Objects directly below the address; those that are of no use are listed only."""
    found = {key: Path(key) for key in store.keys("") if "/" not in key}
    if not found:
        raise NotFoundError(f"{store.uri}: nothing is stored directly below it")
    return {
        key: cache.fetch_object(store, key, None, _suffix(key)).path if _READ.fullmatch(key) else path
        for key, path in found.items()
    }


def _from_web(uri: str, cache: ContentCache, known: Mapping[str, int]) -> dict[str, Path]:
    """Files below a web address, which lists none: those that the layout it turns out to have consists of."""
    base, _, query = uri.partition("?")
    if _FILE.search(base):
        base = base.rpartition("/")[0]

    def bring(name: str) -> Path:
        bounded = replace(cache, max_bytes=min(cache.max_bytes, known.get(name, cache.max_bytes)))
        address = f"{base.rstrip('/')}/{name}" + (f"?{query}" if query else "")
        path = bounded.fetch_url(address, None, _suffix(name)).path
        if path.stat().st_size != known.get(name, path.stat().st_size):
            raise DataError(f"{public(address)}: expected {known[name]} bytes, got {path.stat().st_size}")
        return path

    if hparams := _if_there(bring, "hparams.json"):
        return {"hparams.json": hparams} | {name: bring(name) for name in _OPENAI}
    config = _if_there(bring, "config.json")
    if config is None:
        raise NotFoundError(f"{public(base)}: neither hparams.json nor config.json is there")
    found = {"config.json": config} | _safetensors(bring)
    return found | {name: path for name in _TOKENIZER if (path := _if_there(bring, name))}


def _safetensors(bring: Callable[[str], Path]) -> dict[str, Path]:
    if whole := _if_there(bring, "model.safetensors"):
        return {"model.safetensors": whole}
    name = "model.safetensors.index.json"
    index = bring(name)
    return {name: index} | {shard: bring(shard) for shard in _shards(index)}


def _shards(index: Path) -> list[str]:
    try:
        facts: Any = json.loads(index.read_bytes())
        named = sorted(set(facts["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{index}: no weight_map can be read: {type(error).__name__}: {error}") from error
    if strange := [name for name in named if not re.fullmatch(r"[\w.-]+\.safetensors", str(name))]:
        raise DataError(f"{index}: names the file {strange[0]!r}, expected NAME.safetensors")
    return named


def _if_there(bring: Callable[[str], Path], name: str) -> Path | None:
    try:
        return bring(name)
    except NotFoundError:
        return None


def _suffix(name: str) -> str:
    """What the cache appends to the hash of such a file."""
    return Path(name).suffix
