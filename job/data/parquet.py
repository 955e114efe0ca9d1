"""The rows of a .parquet file, each the text of a document; read by pyarrow, an extra."""

from collections.abc import Iterator
from typing import Any

from job.data.cache import Advance
from job.data.corpus import CorpusFile
from job.data.lines import Refuse, require_text
from job.errors import ConfigError, DataError

ROWS = 256  # at once
BUFFER = 1 << 20  # bytes of a column read at once, so that a row group need not fit into memory


def read_rows(
    file: CorpusFile, column: str, max_bytes: int, advance: Advance, refuse: Refuse
) -> Iterator[tuple[str, str]]:
    """Where each row stands, and the text in `column`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: The file is damaged, has no such column or another kind of it, or grows past `max_bytes`.
    """
    arrow = _pyarrow(file.uri)
    number, size = 0, 0
    try:
        with arrow.parquet.ParquetFile(file.path, buffer_size=BUFFER, pre_buffer=False) as table:
            _require_texts(arrow, table.schema_arrow, column, file.uri)
            for batch in table.iter_batches(ROWS, columns=[column], use_threads=False):
                size += batch.nbytes
                if size > max_bytes:
                    raise DataError(f"{file.uri}: more than data.max_bytes={max_bytes} after decompression")
                for value in batch.column(0):
                    number += 1
                    where = f"{file.uri}, row {number}"
                    try:
                        text = require_text(value.as_py(), where, column)
                    except DataError as error:
                        refuse(error)
                    else:
                        yield where, text
                advance()
    except (arrow.lib.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.uri}: damaged parquet after row {number}: {error}") from error


def _require_texts(arrow: Any, schema: Any, column: str, uri: str) -> None:
    if column not in schema.names:
        raise DataError(f"{uri}: no column {column!r} (data.text_field); it has {', '.join(schema.names) or 'none'}")
    kind = schema.field(column).type
    inner = kind.value_type if arrow.types.is_dictionary(kind) else kind
    if not (arrow.types.is_string(inner) or arrow.types.is_large_string(inner) or arrow.types.is_string_view(inner)):
        raise DataError(f"{uri}: column {column!r} (data.text_field) holds {kind}, not text")


def _pyarrow(uri: str) -> Any:
    try:
        import pyarrow  # noqa: PLC0415  # an extra, asked for only by .parquet files
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"{uri}: reading .parquet needs a module: pip install 'gpt-pretrain-job[parquet]'") from error
    return pyarrow
