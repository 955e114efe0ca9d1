"""A file's bytes in pieces, decompressed on the way and bounded: a small file cannot become a large disk or memory."""

import gzip
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from job.data.cache import READ_BYTES, Advance
from job.data.corpus import CorpusFile
from job.errors import ConfigError, DataError
from job.infra.object_store import folder_errors

RATIO = 200  # bytes out for a byte in, once FREE bytes are out
FREE = 1 << 20
ZSTD_BYTES = 2 << 10  # fed at once: a zstd block of 4 bytes can hold 128 KiB, so this is at most 64 MiB out


def read_bytes(file: CorpusFile, max_bytes: int, advance: Advance) -> Iterator[bytes]:
    """The file's content in pieces of about a megabyte.

    Raises:
        DataError: It is damaged or cut short, or grows past `max_bytes` or 200 times its size.
        ConfigError: It is zstd and no module for that is installed.
    """
    with folder_errors(f"read {file.path}"), file.path.open("rb") as raw:
        if file.format.compression is None:
            pieces = iter(lambda: raw.read(READ_BYTES), b"")
        else:
            unpack = _gunzip if file.format.compression == "gzip" else _unzstd
            pieces = _bounded(unpack(raw, file.uri), raw, file.uri, max_bytes)
        for piece in pieces:
            advance()
            yield piece


def _bounded(pieces: Iterator[bytes], raw: BinaryIO, uri: str, max_bytes: int) -> Iterator[bytes]:
    """The same bytes in larger pieces, as long as they are not too many."""
    size, given = 0, 0
    held: list[bytes] = []
    for piece in pieces:
        size += len(piece)
        if size > max_bytes:
            raise DataError(f"{uri}: more than data.max_bytes={max_bytes} after decompression")
        if size > FREE and size > RATIO * raw.tell():
            raise DataError(f"{uri}: {size} bytes out of the first {raw.tell()}: more than {RATIO} to 1 is refused")
        held.append(piece)
        if size - given >= READ_BYTES:
            yield b"".join(held)
            held, given = [], size
    if held:
        yield b"".join(held)


def _gunzip(raw: BinaryIO, uri: str) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=raw) as file:
        while True:
            try:
                piece = file.read(READ_BYTES)
            except EOFError as error:
                raise DataError(f"{uri}: cut short: the gzip stream does not end") from error
            except (gzip.BadGzipFile, zlib.error) as error:
                raise DataError(f"{uri}: damaged gzip: {error}") from error
            if not piece:
                return
            yield piece


def _unzstd(raw: BinaryIO, uri: str) -> Iterator[bytes]:
    """Frame after frame; pieces as large as what a few input bytes become."""
    zstandard = _zstandard(uri)
    frame: Any = None  # the frame under way
    try:
        while data := raw.read(ZSTD_BYTES):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if piece := frame.decompress(data):
                    yield piece
                data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise DataError(f"{uri}: damaged zstd: {error}") from error
    if frame is not None:
        raise DataError(f"{uri}: cut short: the zstd stream does not end")


def _zstandard(uri: str) -> Any:
    try:
        import zstandard  # noqa: PLC0415  # an extra, asked for only by .zst files
    except ImportError as error:
        raise ConfigError(f"{uri}: reading .zst needs a module: pip install 'gpt-pretrain-job[zstd]'") from error
    return zstandard
