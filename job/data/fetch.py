"""Remote files into the content cache, each under its own hash; one process at a time brings one address."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from job.data.addresses import public
from job.data.answers import Validators
from job.data.cache import Advance, digest, hash_file, locked, publish, read_json, write_json
from job.data.download import Download
from job.data.known_hashes import Stamp, known_hash
from job.errors import DataError, NotFoundError, StorageError
from job.infra.object_store import ObjectStore, folder_errors

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Content:
    """A file whose bytes are known by their hash.

    Args:
        stamp: What it looked like when it was hashed; None for one of the cache, where nobody changes files in place.
    """

    path: Path
    sha256: str
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True)
class ContentCache:
    """Whole files named by their SHA-256, and what each address last gave.

    Args:
        max_bytes: Longest file that may be pulled.
        advance: Called whenever bytes have moved.
        connections: How many may be open for one large download.
    """

    folder: Path
    max_bytes: int
    advance: Advance
    connections: int = 4

    def fetch_url(self, url: str, sha256: str | None, suffix: str) -> Content:
        """The file at `url`: downloaded, unless the cache has what is pinned or what the server still has.

        Raises:
            DataError: Its hash is not `sha256`, or the answer was refused (see `Download.run`).
        """
        with locked(self.folder, digest(url), self.advance):
            last = read_json(self._source(url))
            cached = self.find(sha256 or str(last.get("sha256", "")), suffix)
            if cached and sha256:
                return cached
            try:
                return self._download(url, sha256, suffix, cached, Validators.read(last) if cached else Validators())
            except StorageError as error:
                if cached is None:
                    raise
                log.warning("using the cached copy", uri=public(url), reason=str(error), sha256=cached.sha256)
                return cached

    def fetch_object(self, store: ObjectStore, key: str, sha256: str | None, suffix: str) -> Content:
        """The object `key`: brought, unless the cache has what is pinned or this version of it.

        Raises:
            NotFoundError: There is no such object.
            DataError: It is longer than `max_bytes`, or its hash is not `sha256`.
        """
        uri = f"{store.uri.rstrip('/')}/{key}"
        with locked(self.folder, digest(uri), self.advance):
            last = read_json(self._source(uri))
            cached = self.find(sha256 or str(last.get("sha256", "")), suffix)
            if cached and sha256:
                return cached
            try:
                version = store.version(key)
                if cached and last.get("version") == version:
                    return cached
                if (size := store.size(key)) > self.max_bytes:
                    raise DataError(f"{uri}: {size} bytes, but data.max_bytes={self.max_bytes}")
                partial = self._partial(uri)
                self.advance(0, size)
                found = store.get(key, partial, self.advance, resumable=True)
            except KeyError as error:
                raise NotFoundError(f"{uri}: no such object") from error
            if sha256 not in {None, found}:
                partial.unlink()
                raise _wrong_hash(uri, sha256, found)
            return self._keep(uri, Content(partial, found), suffix, {"version": version})

    def keep_text(self, name: str, text: str, suffix: str) -> Content:
        """A file with this text; `name` tells it from others that are being written."""
        partial = self._partial(name)
        with locked(self.folder, digest(name), self.advance):
            with folder_errors(f"write {partial}"):
                partial.write_bytes(text.encode())
            return self._keep(name, Content(partial, hash_file(partial, self.advance)), suffix, {})

    def find(self, sha256: str, suffix: str) -> Content | None:
        """The cached file with this hash; a damaged one is removed and counts as absent."""
        path = self._content(sha256, suffix)
        if not sha256 or not path.exists():
            return None
        if known_hash(self.folder, path, self.advance)[0] == sha256:
            return Content(path, sha256)
        log.warning("a cached file is damaged and is pulled again", path=str(path))
        with folder_errors(f"remove {path}"):
            path.unlink(missing_ok=True)
        return None

    def _download(
        self, url: str, sha256: str | None, suffix: str, cached: Content | None, known: Validators
    ) -> Content:
        """`cached` when `known` is still the version there. A mismatch after a resume gets one fresh start."""
        partial = self._partial(url)
        found = ""
        for _ in range(2):
            download = Download(url, partial, sha256 is not None, self.max_bytes, self.advance, self.connections)
            version = download.run(known)
            if version is None:
                assert cached
                return cached
            found = hash_file(partial, self.advance)
            if sha256 in {None, found}:
                if download.unencrypted and sha256 is None:
                    log.warning("pulled over plain http and not pinned", uri=public(url), pin=f"#sha256={found}")
                kept = self._keep(url, Content(partial, found), suffix, asdict(version))
                download.remove()
                return kept
            download.remove()
            if not download.resumed:
                break
        raise _wrong_hash(public(url), sha256, found)

    def _keep(self, uri: str, content: Content, suffix: str, facts: dict[str, Any]) -> Content:
        path = self._content(content.sha256, suffix)
        with folder_errors(f"write {path}"):
            publish(content.path, path)
        write_json(self._source(uri), {"uri": public(uri), "sha256": content.sha256, **facts})
        return Content(path, content.sha256)

    def _content(self, sha256: str, suffix: str) -> Path:
        return self.folder / "content" / f"{sha256}{suffix}"

    def _source(self, uri: str) -> Path:
        return self.folder / "sources" / f"{digest(uri)}.json"

    def _partial(self, uri: str) -> Path:
        path = self.folder / "partial" / digest(uri)
        with folder_errors(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _wrong_hash(uri: str, expected: str | None, got: str) -> DataError:
    return DataError(f"{uri}: expected sha256 {expected}, got {got}")
