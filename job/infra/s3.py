"""The object store on S3 and on whatever speaks its language.

Large objects travel in parts, several at once. botocore repeats requests that fail; what it does not repeat, an answer
that breaks off in its body and a conditional write that met another, is repeated here, a bounded number of times.
"""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3.session
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from job.config import StorageConfig
from job.errors import ConfigError, JobError, StorageError
from job.infra.buffers import Joined
from job.infra.object_store import Content, check_key
from job.infra.s3_errors import code, s3_errors, status

_CHUNK = 1 << 20  # bytes of a body taken at once
_MAX_PARTS = 10_000  # of one upload, S3's limit
_BODY_TRIES = 5
_CONFLICT_TRIES = 5
_BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError)


def connect(config: StorageConfig) -> Any:
    """A client for S3. Credentials, region, endpoint and CA come from boto3's own chain."""
    connect_timeout, read_timeout = config.timeouts
    options = Config(
        retries={"mode": "standard", "total_max_attempts": 8},
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        tcp_keepalive=True,
        max_pool_connections=config.concurrency + 2,
        s3={"addressing_style": config.addressing_style},
        request_checksum_calculation=config.checksums,
        response_checksum_validation=config.checksums,
    )
    try:
        with s3_errors("connect to S3"):
            return boto3.session.Session().client("s3", config=options)
    except ValueError:
        raise ConfigError("connect to S3: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL is not a URL") from None


class S3ObjectStore:
    """Objects whose keys begin with `prefix` in a bucket."""

    def __init__(self, client: Any, bucket: str, prefix: str, config: StorageConfig) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._part_size = config.part_size
        self._concurrency = config.concurrency
        self._as_stored = _stored_as(config)
        self._checksum = {"ChecksumAlgorithm": "CRC32"} if config.checksums == "when_supported" else {}
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def put(self, key: str, content: Content) -> None:
        """Store `content` under `key`: in one request, or in parts when it is larger than one."""
        place, body = self._place(key), Joined(content)
        with self._errors("put", key):
            if body.size <= self._part_size:
                self._client.put_object(**place, **self._as_stored, Body=body)
            else:
                self._put_parts(place, body)

    def _put_parts(self, place: dict[str, str], body: Joined) -> None:
        size = max(self._part_size, -(-body.size // _MAX_PARTS))
        started = self._client.create_multipart_upload(**place, **self._as_stored, **self._checksum)
        upload = {**place, "UploadId": started["UploadId"]}

        def send(number: int) -> dict[str, Any]:
            part = body.part((number - 1) * size, number * size)
            answer = self._client.upload_part(**upload, **self._checksum, PartNumber=number, Body=part)
            named = {name: answer[name] for name in ("ETag", "ChecksumCRC32") if name in answer}
            return {"PartNumber": number, **named}

        try:
            with _threads(self._concurrency) as pool:
                parts = list(pool.map(send, range(1, -(-body.size // size) + 1)))
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(JobError, KeyError), s3_errors("abort"):
                self._client.abort_multipart_upload(**upload)
            raise

    def create(self, key: str, content: bytes) -> bool:
        """Store `content` only if `key` does not exist; False when it does, which may be our own lost write.

        Raises:
            ConfigError: The store lacks conditional writes.
        """
        place = self._place(key)
        for attempt in range(_CONFLICT_TRIES):
            with self._errors("create", key):
                try:
                    self._client.put_object(**place, **self._as_stored, Body=content, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    if status(error) == 412:
                        return False
                    if status(error) == 501 or code(error) == "NotImplemented":
                        raise ConfigError(
                            f"{self.uri}: the store lacks conditional writes (If-None-Match: *), so two jobs could "
                            "overwrite each other; use another store"
                        ) from error
                    if status(error) != 409:
                        raise
            time.sleep(0.1 * 2**attempt)
        raise StorageError(f"create {self.uri}/{key}: {_CONFLICT_TRIES} writes in a row met another one")

    def get(self, key: str, target: Path) -> str:
        """Write the object to the file `target`, in parts; returns the SHA-256, in hex, of the bytes that arrived."""
        place = self._place(key)

        def fetch(span: range) -> range:
            with target.open("r+b") as file:
                file.seek(span.start)
                file.writelines(self._body(place, span, etag))
            return span

        digest = hashlib.sha256()
        with s3_errors(f"get {self.uri}/{key} into {target}"):
            head = self._head(place)
            size, etag = int(head["ContentLength"]), head["ETag"]
            with target.open("wb") as file:
                file.truncate(size)
            spans = [range(at, min(at + self._part_size, size)) for at in range(0, size, self._part_size)]
            with _threads(self._concurrency) as pool:
                for span in pool.map(fetch, spans):
                    _hash(target, span, digest)
        return digest.hexdigest()

    def read(self, key: str) -> bytes:
        """The object whole."""
        place = self._place(key)
        with self._errors("read", key):
            return b"".join(self._body(place))

    def size(self, key: str) -> int:
        """Bytes of the object."""
        place = self._place(key)
        with self._errors("size of", key):
            return int(self._head(place)["ContentLength"])

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted; without the folder markers that consoles make."""
        with self._errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2")
            found = [
                entry["Key"].removeprefix(self._prefix)
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
                for entry in page.get("Contents", [])
            ]
        return sorted(key for key in found if key and not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is already gone."""
        place = self._place(key)
        with suppress(KeyError), self._errors("delete", key):
            self._client.delete_object(**place)

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _errors(self, verb: str, key: str) -> AbstractContextManager[None]:
        return s3_errors(f"{verb} {self.uri}/{key}")

    def _head(self, place: dict[str, str]) -> dict[str, Any]:
        """Size and ETag, among others."""
        try:
            answer: dict[str, Any] = self._client.head_object(**place)
        except ClientError as error:
            if status(error) == 404:  # which of the two is missing, object or bucket, only the answer to a GET says
                self._client.get_object(**place, Range="bytes=0-0")["Body"].close()
            raise
        return answer

    def _body(self, place: dict[str, str], span: range | None = None, etag: str | None = None) -> Iterator[bytes]:
        """The object's bytes, or those of `span`, as they arrive; what breaks off is continued where it broke."""
        at, stop = (span.start, span.stop) if span else (0, None)
        for _ in range(_BODY_TRIES):
            part = {} if stop is None else {"Range": f"bytes={at}-{stop - 1}"}
            same = {} if etag is None else {"IfMatch": etag}
            answer = self._client.get_object(**place, **part, **same)
            length, etag = int(answer["ContentLength"]), answer["ETag"]
            stop = at + length if stop is None else stop
            if at + length != stop:
                raise StorageError(f"{self.uri}: asked for {stop - at} bytes of {place['Key']}, promised {length}")
            with suppress(*_BROKEN), closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(_CHUNK):
                    yield chunk
                    at += len(chunk)
            if at == stop:
                return
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


def _hash(path: Path, span: range, digest: "hashlib._Hash") -> None:
    """Feed the bytes `span` of a file to `digest`."""
    with path.open("rb") as file:
        file.seek(span.start)
        for at in span[::_CHUNK]:
            digest.update(file.read(min(_CHUNK, span.stop - at)))


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for the parts of an object; after a failure nothing new begins, and what has begun is waited for."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="s3")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
