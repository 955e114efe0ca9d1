"""The object store on S3 and on whatever speaks its language.

Large objects travel in parts, several at once. botocore repeats requests that fail; what it does not repeat, an answer
that breaks off in its body and a conditional write that met another, is repeated here, a bounded number of times.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from job.config import StorageConfig
from job.errors import ConfigError, JobError, StorageError
from job.infra.buffers import Joined
from job.infra.hashing import hashed
from job.infra.in_order import in_order
from job.infra.object_store import NO_CONDITIONS, UNSAFE, Content, Moved, check_key, unwatched
from job.infra.parted_file import PartedFile, cut
from job.infra.s3_connection import Connection
from job.infra.s3_errors import code, s3_errors, status

_CHUNK = 1 << 20  # bytes of a body taken at once
_RANGE = 16 << 20  # most bytes asked for at once: what is read is held in memory until its turn to be hashed
_CHECKSUMS = "; if it does not know the newer checksums, set storage.checksums=when_required"
_MAX_PARTS = 10_000  # of one upload, S3's limit
_BODY_TRIES = 5
_CONFLICT_TRIES = 5
_BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError)

log = structlog.get_logger(__name__)


class S3ObjectStore:
    """Objects whose keys begin with `prefix` in a bucket.

    Args:
        connection: The way to S3.
        bucket: Its name.
        prefix: What stands before every key, without the slash between.
        config: Part size, concurrency and how objects are kept.
        single_writer_unsafe: A person's word that nobody else writes: without conditional writes, look and then write.
    """

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        prefix: str,
        config: StorageConfig,
        single_writer_unsafe: bool = False,
    ) -> None:
        self._s3 = connection
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._part_size = config.part_size
        self._step = min(config.part_size, _RANGE)  # read at once
        self._concurrency = config.concurrency
        self._as_stored = _stored_as(config)
        self._checksum = {"ChecksumAlgorithm": "CRC32"} if config.checksums == "when_supported" else {}
        self._single_writer_unsafe = single_writer_unsafe
        self._has_conditions = True
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def put(self, key: str, content: Content) -> str:
        """Store `content` under `key`, in one request or in parts; returns its SHA-256, in hex."""
        place, body = self._place(key), Joined(content)
        with self._errors("put", key), hashed(content) as sha256:
            if body.size <= self._part_size:
                self._s3.ask("put_object", **place, **self._as_stored, Body=body)
            else:
                self._put_parts(place, body)
            return sha256()

    def _put_parts(self, place: dict[str, str], body: Joined) -> None:
        size = max(self._part_size, -(-body.size // _MAX_PARTS))
        started = self._s3.ask("create_multipart_upload", **place, **self._as_stored, **self._checksum)
        upload = {**place, "UploadId": started["UploadId"]}

        def send(number: int) -> dict[str, Any]:
            part = body.part((number - 1) * size, number * size)
            answer = self._s3.ask("upload_part", **upload, **self._checksum, PartNumber=number, Body=part)
            named: dict[str, Any] = {name: answer[name] for name in ("ETag", "ChecksumCRC32") if name in answer}
            return {"PartNumber": number, **named}

        try:
            numbers = range(1, -(-body.size // size) + 1)
            with closing(in_order(send, numbers, self._concurrency, ahead=len(numbers))) as sent:
                parts = list(sent)
            self._s3.ask_patiently("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(JobError, KeyError), s3_errors("abort"):
                self._s3.ask("abort_multipart_upload", **upload)
            raise

    def create(self, key: str, content: bytes) -> bool:
        """Store `content` only if `key` does not exist; False when it does, which may be our own lost write.

        Raises:
            ConfigError: The store lacks conditional writes, and nobody gave their word that there is one writer.
        """
        place = self._place(key)
        for attempt in range(_CONFLICT_TRIES):
            with self._errors("create", key):
                if not self._has_conditions:
                    return self._look_then_put(place, content)
                try:
                    self._s3.ask("put_object", **place, **self._as_stored, Body=content, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    if status(error) == 412:
                        return False
                    if status(error) == 501 or code(error) == "NotImplemented":
                        self._do_without_conditions(error)
                    elif status(error) == 400 and code(error) == "InvalidRequest" and self._checksum:
                        raise ConfigError(f"{self.uri}: the store refuses a write ({error}){_CHECKSUMS}") from error
                    elif status(error) != 409:
                        raise
            time.sleep(0.1 * 2**attempt)
        raise StorageError(f"create {self.uri}/{key}: {_CONFLICT_TRIES} writes in a row met another one")

    def _do_without_conditions(self, error: ClientError) -> None:
        if not self._single_writer_unsafe:
            hint = _CHECKSUMS if self._checksum else ""
            raise ConfigError(f"{self.uri}: {NO_CONDITIONS} (If-None-Match: *){hint}") from error
        self._has_conditions = False
        log.warning(UNSAFE, run_uri=self.uri)

    def _look_then_put(self, place: dict[str, str], content: bytes) -> bool:
        with suppress(KeyError), s3_errors("look"):
            self._head(place)
            return False
        self._s3.ask("put_object", **place, **self._as_stored, Body=content)
        return True

    def get(self, key: str, target: Path, moved: Moved = unwatched, resumable: bool = False) -> str:
        """Write the object to the file `target`, in parts; returns the SHA-256, in hex, of the bytes that are there.

        Where it is resumable, parts that an earlier `get` of the same ETag has left are read from the disk.
        """
        place = self._place(key)

        with s3_errors(f"get {self.uri}/{key} into {target}"):
            head = self._head(place)
            with PartedFile(target, int(head["ContentLength"]), head["ETag"], self._step, lasting=resumable) as file:

                def bring(part: range) -> bytes | bytearray:
                    if file.has(part):
                        moved(len(part))
                        return file.read(part)
                    content = self._body(place, part, head["ETag"])
                    file.write(part.start, content)
                    file.finish(part)
                    moved(len(part))
                    return content

                return self._hash_parts(file.parts, bring)

    def digest(self, key: str) -> str:
        """The SHA-256, in hex, of the object's bytes, read in parts and kept nowhere."""
        place = self._place(key)
        with self._errors("digest of", key):
            head = self._head(place)
            parts = cut(int(head["ContentLength"]), self._step)
            return self._hash_parts(parts, lambda part: self._body(place, part, head["ETag"]))

    def version(self, key: str) -> str:
        """The object's ETag."""
        place = self._place(key)
        with self._errors("version of", key):
            return str(self._head(place)["ETag"])

    def _hash_parts(self, spans: Sequence[range], fetch: Callable[[range], bytes | bytearray]) -> str:
        """The SHA-256 of an object, whose parts are fetched several at once."""
        digest = hashlib.sha256()
        with closing(in_order(fetch, spans, self._concurrency, ahead=self._concurrency + 1)) as contents:
            for content in contents:
                digest.update(content)
        return digest.hexdigest()

    def read(self, key: str) -> bytes:
        """The object whole."""
        place = self._place(key)
        with self._errors("read", key):
            return bytes(self._body(place))

    def size(self, key: str) -> int:
        """Bytes of the object."""
        place = self._place(key)
        with self._errors("size of", key):
            return int(self._head(place)["ContentLength"])

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted; without the folder markers that consoles make."""
        with self._errors("list", prefix):
            found = [
                entry["Key"].removeprefix(self._prefix)
                for page in self._pages("list_objects_v2", prefix, ContinuationToken="NextContinuationToken")
                for entry in page.get("Contents", [])
            ]
        return sorted(key for key in found if key and not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is already gone."""
        place = self._place(key)
        with suppress(KeyError), self._errors("delete", key):
            self._s3.ask("delete_object", **place)

    def unfinished(self, prefix: str) -> list[str]:
        """Keys below `prefix` with multipart uploads that were neither completed nor aborted, sorted."""
        with self._errors("list unfinished uploads of", prefix):
            return sorted({upload["Key"].removeprefix(self._prefix) for upload in self._uploads(prefix)})

    def abandon(self, key: str) -> None:
        """Abort every multipart upload of `key` that is not completed, and free the parts it left."""
        place = self._place(key)
        with self._errors("abandon", key):
            for upload in self._uploads(key):
                if upload["Key"] == place["Key"]:
                    self._abort({**place, "UploadId": upload["UploadId"]})

    def _abort(self, upload: dict[str, str]) -> None:
        try:
            self._s3.ask("abort_multipart_upload", **upload)
        except ClientError as error:
            if code(error) != "NoSuchUpload":
                raise

    def _uploads(self, prefix: str) -> list[dict[str, Any]]:
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = self._pages("list_multipart_uploads", prefix, **markers)
        return [upload for page in pages for upload in page.get("Uploads", [])]

    def _pages(self, verb: str, prefix: str, **markers: str) -> Iterator[dict[str, Any]]:
        """Every page of a listing; `markers` names what a request takes over from the answer before it."""
        after: dict[str, str] = {}
        while True:
            page = self._s3.ask(verb, Bucket=self._bucket, Prefix=self._prefix + prefix, **after)
            yield page
            if not page.get("IsTruncated"):
                return
            after = {name: page[next_name] for name, next_name in markers.items() if page.get(next_name)}
            if not after:
                raise StorageError(f"{verb} of {self.uri}/{prefix}: a page says that there are more, but not where")

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _errors(self, verb: str, key: str) -> AbstractContextManager[None]:
        return s3_errors(f"{verb} {self.uri}/{key}")

    def _head(self, place: dict[str, str]) -> dict[str, Any]:
        """Size and ETag, among others."""
        try:
            return self._s3.ask("head_object", **place)
        except ClientError as error:
            if status(error) not in {400, 403, 404}:
                raise
        with self._s3.watching():  # an answer to HEAD has no body to say what is missing or refused; one to GET does
            with _no_such_range():
                self._s3.ask("get_object", **place, Range="bytes=0-0")["Body"].close()
            return self._s3.ask("head_object", **place)

    def _body(self, place: dict[str, str], span: range | None = None, etag: str | None = None) -> bytearray:
        """The object's bytes, or those of `span`; what breaks off is continued where it broke."""
        at, stop = (span.start, span.stop) if span else (0, None)
        content = bytearray(len(span) if span else 0)
        with self._s3.watching() as watch:
            for _ in range(_BODY_TRIES):
                part = {} if stop is None else {"Range": f"bytes={at}-{stop - 1}"}
                same = {} if etag is None else {"IfMatch": etag}
                answer = self._s3.ask("get_object", **place, **part, **same)
                length, etag = int(answer["ContentLength"]), answer["ETag"]
                if stop is None:
                    stop, content = length, bytearray(length)
                if at + length != stop:
                    raise StorageError(f"{self.uri}: asked for {stop - at} bytes of {place['Key']}, promised {length}")
                with suppress(*_BROKEN), closing(answer["Body"]) as body:
                    for chunk in body.iter_chunks(_CHUNK):
                        begin = at - stop + len(content)
                        content[begin : begin + len(chunk)] = chunk
                        at += len(chunk)
                        self._s3.moved()
                if at == stop:
                    return content
                watch.give_up()
        raise StorageError(f"{self.uri}: {place['Key']} broke off {_BODY_TRIES} times, at last at byte {at} of {stop}")


def _stored_as(config: StorageConfig) -> dict[str, str]:
    """What a write says about storage class and encryption."""
    stored = {} if config.storage_class is None else {"StorageClass": config.storage_class}
    match (config.encryption or "").split(":", maxsplit=2):
        case [""]:
            return stored
        case ["AES256"]:
            return {**stored, "ServerSideEncryption": "AES256"}
        case ["aws", "kms"]:
            return {**stored, "ServerSideEncryption": "aws:kms"}
        case ["aws", "kms", key_id]:
            return {**stored, "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key_id}
    raise ConfigError(f"storage.encryption={config.encryption!r} must be AES256, aws:kms or aws:kms:KEY-ID")


@contextmanager
def _no_such_range() -> Iterator[None]:
    """Let pass that an empty object has no first byte."""
    try:
        yield
    except ClientError as error:
        if status(error) != 416:
            raise
