"""One URL into one local file: streamed, resumed where it broke off, bounded in bytes and in patience.

Every failure that may pass is tried again here and nowhere else, so urllib3's own retries are off.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import structlog
from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, ResponseError, SSLError
from urllib3.util import make_headers, parse_url

from job.data.addresses import public
from job.data.cache import Advance, read_json, write_json
from job.errors import AccessError, DataError, NotFoundError, StorageError
from job.infra.directory_store import flush
from job.infra.object_store import folder_errors

REDIRECTS = 5
ATTEMPTS = 5  # in a row that bring less than PROGRESS
PROGRESS = 1 << 20  # bytes after which an attempt counts as a success that was cut
BACKOFF = 0.5  # seconds before the second attempt, doubled for each further one
PATIENCE = 60.0  # seconds without a byte, or with fewer than PATIENCE_BYTES
PATIENCE_BYTES = 64 << 10
CHUNK = 256 << 10
PASSING = {408, 425, 429, 500, 502, 503, 504}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server calls this version of a file; both empty when it does not say."""

    etag: str = ""
    last_modified: str = ""

    @classmethod
    def read(cls, facts: Mapping[str, object]) -> Self:
        """The names noted in `facts`."""
        return cls(str(facts.get("etag", "")), str(facts.get("last_modified", "")))

    def unchanged_since(self) -> dict[str, str]:
        """Headers that ask for the file only if it is another version."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in named.items() if value}

    def same_version(self) -> str:
        """What to send as If-Range; empty when nothing is strong enough (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _Passing(Exception):
    """This attempt failed in a way that the next one may not."""


class Download:
    """A URL on its way into `partial`, which is whole only when `run` has returned.

    Args:
        partial: Bytes so far; what an earlier process left here is continued.
        resumes_blindly: Continue even if the server names no versions (a pinned hash will judge the result).
        max_bytes: A longer answer is refused.
    """

    def __init__(
        self,
        url: str,
        partial: Path,
        resumes_blindly: bool,
        max_bytes: int,
        advance: Advance,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._partial, self._shown = url, partial, public(url)
        self._note = partial.with_name(f"{partial.name}.json")  # the version that the partial file is of
        self._resumes_blindly, self._max_bytes = resumes_blindly, max_bytes
        self._advance, self._sleep, self._clock = advance, sleep, clock
        self._pool = pool_for(url)
        self.resumed = False  # whether bytes of several answers were joined
        self.unencrypted = False  # whether any of them came over plain http

    def run(self, known: Validators) -> Validators | None:
        """Bring the file; returns its version's names, or None when `known` is still the version there.

        Raises:
            NotFoundError: 404 or 410.
            AccessError: 401, 403 or 407.
            DataError: The answer is too long, encoded, redirected in circles or elsewhere than http and https.
            StorageError: No answer, or an unfinished one, after several attempts.
        """
        failures = 0
        while True:
            before = self._size()
            try:
                return self._attempt(known)
            except (HTTPError, _Passing) as error:
                failures = 1 if self._size() - before >= PROGRESS else failures + 1
                if failures >= ATTEMPTS or _is_hopeless(error):
                    raise StorageError(f"{self._shown}: {reason_of(error)} ({failures} attempts)") from error
                log.warning("download interrupted", uri=self._shown, reason=reason_of(error), have=self._size())
                self._pause(BACKOFF * 2 ** (failures - 1))

    def remove(self) -> None:
        """Forget what has been downloaded."""
        with folder_errors(f"remove {self._partial}"):
            self._partial.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)

    def _attempt(self, known: Validators) -> Validators | None:
        have = self._size()
        version = Validators.read(read_json(self._note))
        headers = {"Accept-Encoding": "identity"}
        if have and (version.same_version() or self._resumes_blindly):
            headers["Range"] = f"bytes={have}-"
            headers |= {"If-Range": version.same_version()} if version.same_version() else {}
        else:
            headers |= known.unchanged_since()
        response = self._request(headers, have)
        try:
            if response.status == 304:
                return None
            if response.status == 416:  # we have every byte; an earlier process ended before it could say so
                self.resumed = True
                return version
            return self._receive(response, have)
        finally:
            response.close()

    def _request(self, headers: dict[str, str], have: int) -> BaseHTTPResponse:
        retries = Retry(total=None, connect=0, read=0, other=0, redirect=REDIRECTS, respect_retry_after_header=False)
        try:
            response = self._pool.request(
                "GET",
                self._url,
                headers=headers,
                retries=retries,
                timeout=Timeout(connect=10.0, read=PATIENCE),
                preload_content=False,
            )
        except LocationValueError as error:
            raise DataError(f"{self._shown}: leads to an address that is neither http nor https") from error
        except MaxRetryError as error:
            if isinstance(error.reason, ResponseError):
                raise DataError(f"{self._shown}: more than {REDIRECTS} redirects") from error
            raise
        conditional = not headers.keys().isdisjoint({"If-None-Match", "If-Modified-Since"})
        complete = "Range" in headers and response.headers.get("Content-Range") == f"bytes */{have}"
        if response.status not in {200, 206, 304 if conditional else 200, 416 if complete else 200}:
            response.close()
            raise self._refusal(response)
        self.unencrypted |= any(url.startswith("http://") for url in _visited(self._url, response))
        return response

    def _refusal(self, response: BaseHTTPResponse) -> Exception:
        said = f"{self._shown}: {response.status} {response.reason or ''}".rstrip()
        if response.status in {404, 410}:
            return NotFoundError(said)
        if response.status in {401, 403, 407}:
            return AccessError(said)
        if response.status == 416:  # nothing after what we have: not a prefix of what is there now
            self.remove()
            return _Passing(said)
        return _Passing(said) if response.status in PASSING else DataError(said)

    def _receive(self, response: BaseHTTPResponse, have: int) -> Validators:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DataError(f"{self._shown}: sent as {response.headers['Content-Encoding']} though asked not to be")
        start = _range_start(response) if response.status == 206 else 0
        if start not in {0, have}:
            self.remove()
            raise _Passing(f"answered with bytes from {start}, asked for bytes from {have}")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and start + int(length) > self._max_bytes:
            raise self._too_long(start + int(length))
        version = Validators(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
        if start == 0:
            self.remove()  # before the note of another version: it must never stand beside the old bytes
            write_json(self._note, asdict(version))
        self.resumed |= start > 0
        before, more = start, start + int(length) if length.isdecimal() else 0  # told with the first bytes
        with folder_errors(f"write {self._partial}"), self._partial.open("ab" if start else "wb") as file:
            size, window, moved = start, self._clock(), 0
            while chunk := response.read1(CHUNK, decode_content=False):
                file.write(chunk)
                size, moved = size + len(chunk), moved + len(chunk)
                if size > self._max_bytes:
                    raise self._too_long(size)
                if self._clock() - window > PATIENCE:
                    if moved < PATIENCE_BYTES:
                        raise _Passing(f"only {moved} bytes in {PATIENCE:.0f} s")
                    window, moved = self._clock(), 0
                self._advance(before + len(chunk), more)
                before = more = 0
        with folder_errors(f"write {self._partial}"):
            flush(self._partial)
        return version

    def _too_long(self, size: int) -> DataError:
        self.remove()
        return DataError(f"{self._shown}: {size} bytes or more, but data.max_bytes={self._max_bytes}")

    def _size(self) -> int:
        with folder_errors(f"read {self._partial}"):
            return self._partial.stat().st_size if self._partial.exists() else 0

    def _pause(self, seconds: float) -> None:
        while seconds > 0:
            self._advance()
            self._sleep(min(seconds, 0.5))
            seconds -= 0.5


def pool_for(url: str) -> PoolManager:
    """Connections as the proxy variables of the environment want them."""
    host, scheme = urlsplit(url).hostname or "", urlsplit(url).scheme.lower()
    proxy = getproxies().get(scheme)
    if not proxy or proxy_bypass(host):
        return PoolManager()
    login = parse_url(proxy).auth
    return ProxyManager(proxy, proxy_headers=make_headers(proxy_basic_auth=login) if login else None)


def _visited(url: str, response: BaseHTTPResponse) -> list[str]:
    """The addresses that led to this answer, in lower case."""
    visited = [url]
    for step in response.retries.history if response.retries else ():
        visited.append(urljoin(visited[-1], step.redirect_location or ""))
    return [address.lower() for address in visited]


def _range_start(response: BaseHTTPResponse) -> int:
    """First byte that a 206 carries; -1 when it does not say."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit.lower() == "bytes" and first.isdecimal() else -1


def _is_hopeless(error: Exception) -> bool:
    """Whether the server's certificate was refused: trying again cannot help."""
    return isinstance(error, MaxRetryError) and isinstance(error.reason, SSLError)


def reason_of(error: Exception) -> str:
    """What went wrong, without the URL that urllib3 repeats in its messages."""
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, HTTPError) else str(cause)
