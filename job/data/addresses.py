"""What an entry of `data.corpus` says: where the text is, and which bytes are expected there."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from job.errors import ConfigError

Scheme = Literal["builtin", "file", "http", "https", "s3"]
SCHEMES: dict[str, Scheme] = {"builtin": "builtin", "http": "http", "https": "https", "s3": "s3"}
KNOWN = "builtin:NAME, a file, a folder, a glob, https://, http:// or s3://"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(builtin):")
_PIN = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Address:
    """One entry of `data.corpus`.

    Args:
        uri: Where the text is, without the pin.
        sha256: What the file there must hash to, in hex; None when it is not pinned.
    """

    scheme: Scheme
    uri: str
    sha256: str | None = None


def parse_addresses(entries: Sequence[str]) -> list[Address]:
    """The addresses in `data.corpus`, in its order. ConfigError names every one that is wrong."""
    addresses: list[Address] = []
    problems: list[str] = []
    for entry in entries:
        try:
            addresses.append(_parse(entry))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return addresses


def public(uri: str) -> str:
    """`uri` without what may be secret in it: user, password and query."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "(an address that cannot be read)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _parse(entry: str) -> Address:
    uri, pinned, sha256 = entry.partition("#sha256=")
    if pinned and not _PIN.fullmatch(sha256):
        raise ConfigError(f"data.corpus: {public(uri)}: #sha256= takes 64 hexadecimal digits")
    match = _SCHEME.match(uri)
    named = (match[1] or match[2]).lower() if match else None
    if named is None:
        return Address("file", uri, sha256.lower() or None)
    if named not in SCHEMES:
        raise ConfigError(f"data.corpus: {public(uri)}: {named}:// is none of {KNOWN}")
    try:
        netloc = urlsplit(uri).netloc
    except ValueError as error:
        raise ConfigError(f"data.corpus: an address of {named}:// cannot be read: {error}") from error
    if "@" in netloc:
        raise ConfigError(f"data.corpus: {public(uri)}: credentials in an address would be stored with the run")
    return Address(SCHEMES[named], uri, sha256.lower() or None)
