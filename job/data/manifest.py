"""A text file that lists a corpus: one address a line, as `data.corpus` takes them; # begins a comment line.

An address without a scheme is relative to the manifest, wherever that is.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

from job.data.addresses import Address, parse_addresses, public
from job.data.formats import MANIFEST
from job.errors import ConfigError, DataError
from job.infra.object_store import folder_errors

MAX_BYTES = 64 << 20


def is_manifest(address: Address) -> bool:
    """Whether the address names a list of addresses."""
    path = urlsplit(address.uri).path if address.scheme in {"http", "https"} else address.uri
    return address.scheme != "builtin" and PurePosixPath(path).suffix.lower() == MANIFEST


def read_manifest(address: Address, file: Callable[[], Path]) -> list[Address]:
    """The addresses in it, in its order.

    Args:
        file: Brings it to this machine.

    Raises:
        ConfigError: An entry is no address, or another manifest; each is named.
        DataError: It is empty, or no text.
    """
    shown = public(address.uri)
    with folder_errors(f"read {shown}"), file().open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"{shown}: a manifest of more than {MAX_BYTES} bytes")
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{shown}: not UTF-8 at byte {error.start}") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise DataError(f"{shown}: a manifest without an address")
    try:
        found = [_beside(entry, address) for entry in parse_addresses(entries)]
    except ConfigError as error:
        raise ConfigError(*(f"{shown}: {problem}" for problem in error.problems)) from error
    if nested := [public(entry.uri) for entry in found if is_manifest(entry)]:
        raise ConfigError(f"{shown}: manifests in a manifest are not read: {', '.join(nested[:5])}")
    return found


def _beside(entry: Address, manifest: Address) -> Address:
    """The entry as seen from where the manifest is."""
    if entry.scheme != "file":
        return entry
    if manifest.scheme == "file":
        return replace(entry, uri=str(Path(manifest.uri).expanduser().parent / Path(entry.uri).expanduser()))
    if manifest.scheme == "s3":
        return replace(entry, scheme="s3", uri=f"{manifest.uri.rpartition('/')[0]}/{entry.uri}")
    return replace(entry, scheme=manifest.scheme, uri=urljoin(manifest.uri, entry.uri))
