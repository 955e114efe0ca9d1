"""One URL into one local file: streamed, resumed where it broke off, bounded in bytes and in patience.

A large file comes in parts over several connections, where the server gives ranges and names what they are of; from any
other it comes in one stream. Every failure that may pass is tried again here and nowhere else, so urllib3's own retries
are off.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import structlog
from urllib3 import BaseHTTPResponse, Retry, Timeout
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, ResponseError

from job.data.addresses import public
from job.data.answers import Validators, is_hopeless, pool_for, range_start, reason_of, visited
from job.data.cache import Advance, read_json, write_json
from job.data.together import all_at_once
from job.errors import AccessError, DataError, NotFoundError, StorageError
from job.infra.directory_store import flush
from job.infra.object_store import folder_errors
from job.infra.parted_file import PartedFile, note_of, read_note

T = TypeVar("T")

REDIRECTS = 5
ATTEMPTS = 5  # in a row that bring less than PROGRESS
PROGRESS = 1 << 20  # bytes after which an attempt counts as a success that was cut
BACKOFF = 0.5  # seconds before the second attempt, doubled for each further one
PATIENCE = 60.0  # seconds without a byte, or with fewer than PATIENCE_BYTES
PATIENCE_BYTES = 64 << 10
CHUNK = 256 << 10
PART = 16 << 20  # bytes asked for at once of a file that comes in parts
WORTH_PARTS = 64 << 20  # bytes from which on it does
PASSING = {408, 425, 429, 500, 502, 503, 504}

log = structlog.get_logger(__name__)


class _Passing(Exception):
    """This attempt failed in a way that the next one may not."""


class _OtherBytes(Exception):
    """What came does not go with what is here: it is of another version, or not what was asked for."""


class Download:
    """A URL on its way into `partial`, which is whole only when `run` has returned.

    Args:
        partial: Bytes so far; what an earlier process left here is continued.
        resumes_blindly: Continue even if the server names no versions (a pinned hash will judge the result).
        max_bytes: A longer answer is refused.
        connections: How many may be open for a large file.
    """

    def __init__(
        self,
        url: str,
        partial: Path,
        resumes_blindly: bool,
        max_bytes: int,
        advance: Advance,
        connections: int = 1,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._partial, self._shown = url, partial, public(url)
        self._note = partial.with_name(f"{partial.name}.json")  # the version that the partial file is of
        self._resumes_blindly, self._max_bytes = resumes_blindly, max_bytes
        self._advance, self._sleep, self._clock = advance, sleep, clock
        self._connections, self._pool = connections, pool_for(url, connections)
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
        return self._patiently(lambda: self._attempt(known), self._size)

    def _patiently(self, attempt: Callable[[], T], have: Callable[[], int]) -> T:
        failures = 0
        while True:
            before = have()
            try:
                return attempt()
            except (HTTPError, _Passing) as error:
                failures = 1 if have() - before >= PROGRESS else failures + 1
                if failures >= ATTEMPTS or is_hopeless(error):
                    raise StorageError(f"{self._shown}: {reason_of(error)} ({failures} attempts)") from error
                log.warning("download interrupted", uri=self._shown, reason=reason_of(error), have=have())
                self._pause(BACKOFF * 2 ** (failures - 1))

    def remove(self) -> None:
        """Forget what has been downloaded."""
        with folder_errors(f"remove {self._partial}"):
            self._partial.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)
            note_of(self._partial).unlink(missing_ok=True)

    def _attempt(self, known: Validators) -> Validators | None:
        try:
            return self._go_on(known)
        except _OtherBytes as error:
            self.remove()
            raise _Passing(str(error)) from error

    def _go_on(self, known: Validators) -> Validators | None:
        version = Validators.read(read_json(self._note))
        size = read_note(self._partial).get("bytes")
        if isinstance(size, int) and version.same_version():
            return self._receive_parts(version, size)
        if note_of(self._partial).exists():  # and nobody knows which parts are there
            self.remove()
        have = self._size()
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
        self.unencrypted |= any(url.startswith("http://") for url in visited(self._url, response))
        return response

    def _refusal(self, response: BaseHTTPResponse) -> Exception:
        said = f"{self._shown}: {response.status} {response.reason or ''}".rstrip()
        if response.status in {404, 410}:
            return NotFoundError(said)
        if response.status in {401, 403, 407}:
            return AccessError(said)
        if response.status == 416:  # nothing after what we have: not a prefix of what is there now
            return _OtherBytes(said)
        return _Passing(said) if response.status in PASSING else DataError(said)

    def _receive(self, response: BaseHTTPResponse, have: int) -> Validators:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DataError(f"{self._shown}: sent as {response.headers['Content-Encoding']} though asked not to be")
        start = range_start(response) if response.status == 206 else 0
        if start not in {0, have}:
            raise _OtherBytes(f"answered with bytes from {start}, asked for bytes from {have}")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and start + int(length) > self._max_bytes:
            raise self._too_long(start + int(length))
        version = Validators.of(response)
        if start == 0:
            self.remove()  # before the note of another version: it must never stand beside the old bytes
            write_json(self._note, asdict(version))
        if start == 0 and length.isdecimal() and self._comes_in_parts(response, version, int(length)):
            response.close()
            return self._receive_parts(version, int(length))
        self.resumed |= start > 0
        before, more = start, start + int(length) if length.isdecimal() else 0  # told with the first bytes
        with folder_errors(f"write {self._partial}"), self._partial.open("ab" if start else "wb") as file:
            size = start
            for chunk in self._pieces(response):
                file.write(chunk)
                size += len(chunk)
                if size > self._max_bytes:
                    raise self._too_long(size)
                self._advance(before + len(chunk), more)
                before = more = 0
        with folder_errors(f"write {self._partial}"):
            flush(self._partial)
        return version

    def _pieces(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        """The body as it comes, as long as it does."""
        window, moved = self._clock(), 0
        while chunk := response.read1(CHUNK, decode_content=False):
            moved += len(chunk)
            if self._clock() - window > PATIENCE:
                if moved < PATIENCE_BYTES:
                    raise _Passing(f"only {moved} bytes in {PATIENCE:.0f} s")
                window, moved = self._clock(), 0
            yield chunk

    def _comes_in_parts(self, response: BaseHTTPResponse, version: Validators, size: int) -> bool:
        ranges = response.headers.get("Accept-Ranges", "").lower() == "bytes"
        return ranges and size >= WORTH_PARTS and self._connections > 1 and version.same_version() != ""

    def _receive_parts(self, version: Validators, size: int) -> Validators:
        """What is missing of a file of this version and size, over several connections at once."""
        if size > self._max_bytes:
            raise self._too_long(size)
        self.resumed = True
        with (
            folder_errors(f"write {self._partial}"),
            PartedFile(self._partial, size, version.same_version(), PART) as file,
        ):
            missing = [part for part in file.parts if not file.has(part)]
            self._advance(size - sum(map(len, missing)), size)

            def bring(part: range, still_wanted: Advance) -> None:
                self._receive_part(file, part, version, size, still_wanted)

            all_at_once(bring, missing, self._connections, self._advance)
        return version

    def _receive_part(self, file: PartedFile, part: range, version: Validators, size: int, advance: Advance) -> None:
        at = part.start

        def attempt() -> None:
            nonlocal at
            headers = {"Accept-Encoding": "identity", "If-Range": version.same_version()}
            response = self._request({**headers, "Range": f"bytes={at}-{part.stop - 1}"}, size)
            try:
                self._require_part(response, at, version, size)
                for chunk in self._pieces(response):
                    wanted = chunk[: part.stop - at]
                    file.write(at, wanted)
                    at += len(wanted)
                    advance(len(wanted))
                    if at == part.stop:
                        return
            finally:
                response.close()
            raise _Passing(f"an answer ended at byte {at} of those to {part.stop}")

        self._patiently(attempt, lambda: at)
        file.finish(part)

    def _require_part(self, response: BaseHTTPResponse, at: int, version: Validators, size: int) -> None:
        found = Validators.of(response)
        if response.status != 206 and found.same_version() == version.same_version():
            self._connections = 1
            raise _OtherBytes("the server sends the whole file when asked for a part: it comes in one stream")
        _, _, total = response.headers.get("Content-Range", "").partition("/")
        if response.status != 206 or range_start(response) != at or total not in {str(size), "*"}:
            raise _OtherBytes("another version has come meanwhile: started over")

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
