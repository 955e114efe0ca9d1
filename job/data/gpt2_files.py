"""GPT-2's tokenizer from its two published files: wherever they are on this machine, else from OpenAI's host."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from job.config import DataConfig
from job.data.alphabets import END_OF_TEXT
from job.data.bpe import BpeTokenizer
from job.data.builtin import Asset, asset_folders, find_asset
from job.data.cache import Advance, cache_folder
from job.data.fetch import ContentCache
from job.errors import AccessError, DataError, NotFoundError, StorageError
from job.infra.object_store import folder_errors

HOST = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
MERGES = Asset("vocab.bpe", f"{HOST}/vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
NUMBERS = Asset(
    "encoder.json", f"{HOST}/encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
)
# GPT-2's pattern in the form that tiktoken uses: the same words, found faster.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
PUBLISHED_SHA256 = "af19cc7f3207ced4ba36966490fa773370845e4c44518bbd4b1dc86e3e276608"  # of the tokenizer they make


def gpt2_tokenizer(config: DataConfig, advance: Advance) -> BpeTokenizer:
    """The tokenizer of GPT-2, equal to tiktoken's `gpt2`.

    Raises:
        NotFoundError: A file is nowhere, with every place that was looked at.
    """
    merges, numbers = (_find(asset, config, advance) for asset in (MERGES, NUMBERS))
    with folder_errors(f"read {merges} and {numbers}"):
        ranks = _ranks(merges.read_text(encoding="utf-8"))
        published = json.loads(numbers.read_bytes())
    if {byte_token(token): number for token, number in published.items() if token != END_OF_TEXT} != ranks:
        raise DataError(f"{merges} and {numbers} do not number the same tokens")
    return BpeTokenizer("gpt2", PATTERN, ranks, {END_OF_TEXT: published[END_OF_TEXT]})


def missing_files(config: DataConfig, advance: Advance) -> list[Asset]:
    """Which of the two would be downloaded."""
    cache = ContentCache(cache_folder(config), config.max_bytes, advance)
    return [
        asset
        for asset in (MERGES, NUMBERS)
        if not _in_folders(asset, config, advance) and not cache.find(asset.sha256, Path(asset.name).suffix)
    ]


def _in_folders(asset: Asset, config: DataConfig, advance: Advance) -> Path | None:
    tiktoken_name = hashlib.sha1(asset.url.encode(), usedforsecurity=False).hexdigest()
    found = find_asset(asset, _folders(config), advance, tiktoken_name)
    return found.path if found else None


def _find(asset: Asset, config: DataConfig, advance: Advance) -> Path:
    folders = _folders(config)
    cache = ContentCache(cache_folder(config), config.max_bytes, advance)
    if found := _in_folders(asset, config, advance):
        return found
    try:
        return cache.fetch_url(asset.url, asset.sha256, Path(asset.name).suffix).path
    except (NotFoundError, AccessError, StorageError) as error:
        looked = "".join(f"\n  {folder}" for folder in [*folders, cache.folder / "content"])
        raise NotFoundError(
            f"GPT-2's {asset.name} is in none of{looked}\nand could not be downloaded: {error}\n"
            f"Put {MERGES.name} and {NUMBERS.name} in a folder and name it in data.tokenizer_dir, or set "
            "data.tokenizer to byte or char, which need no files."
        ) from error


def _folders(config: DataConfig) -> list[Path]:
    """Where the files may lie: what the user named first, what others may have left last."""
    named = [config.tokenizer_dir, os.environ.get("TIKTOKEN_CACHE_DIR")]
    others = [os.environ.get("DATA_GYM_CACHE_DIR"), Path(tempfile.gettempdir(), "data-gym-cache")]
    return [Path(folder).expanduser() for folder in (*named, *asset_folders(), *others) if folder]


def _ranks(merges: str) -> dict[bytes, int]:
    """Token bytes -> token: the 256 bytes in the order of their characters, then one merge a line.

    tiktoken's own reader is not used because it copies what it reads into a cache folder, which may be read-only.
    """
    ranks = {bytes([byte]): rank for rank, byte in enumerate(_BYTES.values())}
    for line in merges.splitlines()[1:]:
        ranks[byte_token(line.replace(" ", ""))] = len(ranks)
    return ranks


def byte_token(shown: str) -> bytes:
    """A token's bytes from the way GPT-2's files write it. KeyError names a character that stands for no byte."""
    return bytes(_BYTES[character] for character in shown)


def shown_token(token: bytes) -> str:
    """A token as GPT-2's files write it."""
    return "".join(_CHARACTERS[byte] for byte in token)


def _byte_characters() -> dict[str, int]:
    """GPT-2's files write every byte as a visible character: itself, or one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTES = _byte_characters()
_CHARACTERS = {byte: character for character, byte in _BYTES.items()}
BYTE_TOKENS = tuple(_BYTES)  # the 256 single bytes as the files write them, in the order of their tokens
