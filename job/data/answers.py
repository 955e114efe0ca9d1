"""What comes back from a web server: versions, ranges, redirects, and why nothing came."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError
from urllib3.util import make_headers, parse_url


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server calls this version of a file; both empty when it does not say."""

    etag: str = ""
    last_modified: str = ""

    @classmethod
    def read(cls, facts: Mapping[str, object]) -> Self:
        """The names noted in `facts`."""
        return cls(str(facts.get("etag", "")), str(facts.get("last_modified", "")))

    @classmethod
    def of(cls, response: BaseHTTPResponse) -> Self:
        """The names in an answer."""
        return cls(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))

    def unchanged_since(self) -> dict[str, str]:
        """Headers that ask for the file only if it is another version."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in named.items() if value}

    def same_version(self) -> str:
        """What to send as If-Range; empty when nothing is strong enough (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


def pool_for(url: str, connections: int = 1) -> PoolManager:
    """So many connections, as the proxy variables of the environment want them."""
    host, scheme = urlsplit(url).hostname or "", urlsplit(url).scheme.lower()
    proxy = getproxies().get(scheme)
    if not proxy or proxy_bypass(host):
        return PoolManager(maxsize=connections)
    login = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=login) if login else None
    return ProxyManager(proxy, proxy_headers=headers, maxsize=connections)


def visited(url: str, response: BaseHTTPResponse) -> list[str]:
    """The addresses that led to this answer, in lower case."""
    found = [url]
    for step in response.retries.history if response.retries else ():
        found.append(urljoin(found[-1], step.redirect_location or ""))
    return [address.lower() for address in found]


def range_start(response: BaseHTTPResponse) -> int:
    """First byte that a 206 carries; -1 when it does not say."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit.lower() == "bytes" and first.isdecimal() else -1


def is_hopeless(error: Exception) -> bool:
    """Whether the server's certificate was refused: trying again cannot help."""
    return isinstance(error, MaxRetryError) and isinstance(error.reason, SSLError)


def reason_of(error: Exception) -> str:
    """What went wrong, without the URL that urllib3 repeats in its messages."""
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, HTTPError) else str(cause)
