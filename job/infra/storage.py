"""From a URI to the object store it names."""

from pathlib import Path
from urllib.parse import unquote

from job.config import StorageConfig
from job.errors import ConfigError
from job.infra.object_store import DirectoryObjectStore, ObjectStore


def open_store(uri: str, config: StorageConfig) -> ObjectStore:
    """The store that `uri` names. Nothing is read or written yet.

    Raises:
        ConfigError: No store that this job knows has such a URI, or a setting does not fit it.
    """
    if (folder := local_folder(uri)) is not None:
        return DirectoryObjectStore(folder, uri)
    scheme, _, rest = uri.partition(":/")
    bucket, _, prefix = rest.removeprefix("/").partition("/")
    if scheme == "s3" and rest.startswith("/") and bucket:
        return _open_bucket(bucket, prefix.strip("/"), config)
    raise ConfigError(f"{uri} names no store: s3://BUCKET/PREFIX, file:///FOLDER and folders are supported")


def local_folder(uri: str) -> Path | None:
    """The folder that `uri` names; None when it names something else."""
    scheme, slash, rest = uri.partition(":/")  # not "://": s3:/bucket is a slip, not a folder
    if not slash or "/" in scheme:
        return Path(uri).expanduser()
    return Path(unquote(rest[1:])) if scheme == "file" and rest.startswith("//") else None


def _open_bucket(bucket: str, prefix: str, config: StorageConfig) -> ObjectStore:
    from job.infra.s3 import S3ObjectStore, connect  # noqa: PLC0415 - boto3 loads only when there is a bucket

    return S3ObjectStore(connect(config), bucket, prefix, config)
