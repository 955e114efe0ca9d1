"""From a URI to the object store it names."""

from collections.abc import Callable

from job.config import Config, StorageConfig
from job.errors import ConfigError
from job.infra.directory_store import DirectoryObjectStore
from job.infra.object_store import ObjectStore
from job.uris import local_folder

TRIES = 8  # of a request that gets no answer, with growing pauses


def open_store(
    uri: str,
    config: StorageConfig,
    moved: Callable[[], None] = lambda: None,
    single_writer_unsafe: bool = False,
    tries: int = TRIES,
) -> ObjectStore:
    """The store that `uri` names. Nothing is read or written yet.

    Args:
        uri: A folder, `file:///FOLDER` or `s3://BUCKET/PREFIX`.
        config: Settings of the store.
        moved: Called whenever bytes moved, from any thread; must not raise.
        single_writer_unsafe: A person's word that nobody else writes: a store without conditional writes will do.
        tries: Of a request that gets no answer.

    Raises:
        ConfigError: No store that this job knows has such a URI, or a setting does not fit it.
    """
    if (folder := local_folder(uri)) is not None:
        return DirectoryObjectStore(folder, uri, moved, single_writer_unsafe)
    scheme, _, rest = uri.partition(":/")
    bucket, _, prefix = rest.removeprefix("/").partition("/")
    if scheme == "s3" and rest.startswith("/") and bucket:
        from job.infra.s3 import S3ObjectStore  # noqa: PLC0415 - boto3 loads only when there is a bucket
        from job.infra.s3_connection import connect  # noqa: PLC0415

        return S3ObjectStore(connect(config, moved, tries), bucket, prefix.strip("/"), config, single_writer_unsafe)
    raise ConfigError(f"{uri} names no store: s3://BUCKET/PREFIX, file:///FOLDER and folders are supported")


def open_cache(config: Config) -> ObjectStore | None:
    """The store of `data.cache_uri`; None when that is unset. It need not have conditional writes."""
    return _open_cache(config.data.cache_uri, config.storage)


def open_compile_cache(config: Config, moved: Callable[[], None] = lambda: None) -> ObjectStore | None:
    """The store of `runtime.compile_cache_uri`; None when that is unset. It need not have conditional writes."""
    return _open_cache(config.runtime.compile_cache_uri, config.storage, moved)


def _open_cache(uri: str | None, config: StorageConfig, moved: Callable[[], None] = lambda: None) -> ObjectStore | None:
    return None if uri is None else open_store(uri, config, moved, single_writer_unsafe=True)
