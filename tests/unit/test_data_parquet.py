"""Rows of .parquet files as documents, and rows and lines without text that may be passed over."""

import json
import sys

import pyarrow
import pytest
from pyarrow import parquet
from structlog.testing import capture_logs

from job.data import lines
from job.data.prepare import prepare
from job.data.tokenizer import build_tokenizer
from job.errors import ConfigError, DataError
from tests.unit.data_support import config_for, pulled, still
from tests.unit.test_data_documents import texts


def table(path, column="text", kind=None, values=("one", "", "två", "three"), **settings):
    parquet.write_table(
        pyarrow.table({"id": range(len(values)), column: pyarrow.array(values, kind)}), path, **settings
    )
    return path


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()], ids=str)
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_each_row_is_a_document(tmp_path, kind, compression):
    """Each row's text is a document, whatever the kind of string and the compression inside; empty ones are none."""
    file = table(tmp_path / "a.parquet", kind=kind, compression=compression, row_group_size=2)

    assert texts(tmp_path, file) == ["one", "två", "three"]


def test_repeated_values_are_texts(tmp_path):
    """A column that is stored as a dictionary reads like a plain one."""
    values = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")

    assert texts(tmp_path, tmp_path / "a.parquet") == ["a", "b", "a"]


def test_the_column_is_a_setting(tmp_path):
    """`data.text_field` names the column."""
    assert texts(tmp_path, table(tmp_path / "a.parquet", "content"), text_field="content") == ["one", "två", "three"]


def test_the_same_text_is_the_same_tokens(tmp_path):
    """A .parquet and a .jsonl of the same documents become the same shards."""
    values = [f"document {number}" for number in range(1000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    found = []
    for file in (table(tmp_path / "a.parquet", values=values), tmp_path / "a.jsonl"):
        config = config_for(tmp_path, file, tokenizer="byte")
        corpus = pulled(config)
        files = prepare(corpus, build_tokenizer(config, corpus, still), config, still)
        found.append([path.read_bytes() for split in files.splits for path in split.paths])

    assert found[0] == found[1]


def test_no_text_column(tmp_path):
    """A file without the column is refused with the columns that it has."""
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text' \(data\.text_field\); it has id, content"):
        texts(tmp_path, table(tmp_path / "a.parquet", "content"))


def test_a_column_of_numbers(tmp_path):
    """A column that holds no text is refused with what it holds."""
    with pytest.raises(DataError, match=r"column 'text' \(data\.text_field\) holds int64, not text"):
        texts(tmp_path, table(tmp_path / "a.parquet", values=[1, 2]))


@pytest.mark.parametrize("damage", ["cut", "magic", "middle", "empty", "text"])
def test_damaged_parquet(tmp_path, damage):
    """A file that is cut short, altered or something else is refused with its name."""
    file = table(tmp_path / "a.parquet", values=[f"{number:100}" for number in range(2000)], compression="zstd")
    content = file.read_bytes()
    spoilt = {
        "cut": content[:-100],
        "magic": b"PAR2" + content[4:-4] + b"PAR2",
        "middle": content[: len(content) // 3] + bytes(2000) + content[len(content) // 3 + 2000 :],
        "empty": b"",
        "text": b"no table at all",
    }
    file.write_bytes(spoilt[damage])
    with pytest.raises(DataError, match=r"a\.parquet: damaged parquet after row \d+"):
        texts(tmp_path, file)


def test_parquet_is_bounded(tmp_path):
    """A file may not grow past data.max_bytes as it is unpacked."""
    file = table(tmp_path / "a.parquet", values=["a" * 100_000] * 300)
    assert file.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"more than data\.max_bytes=10000000 after decompression"):
        texts(tmp_path, file, max_bytes=10_000_000)


def test_without_pyarrow(tmp_path, monkeypatch):
    """A .parquet file without the module for it is an error with the command that installs it."""
    file = table(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'gpt-pretrain-job\[parquet\]'"):
        texts(tmp_path, file)


def test_a_row_without_text(tmp_path):
    """A null where text should be is refused with its row."""
    with pytest.raises(DataError, match=r"a\.parquet, row 2: no text under 'text'"):
        texts(tmp_path, table(tmp_path / "a.parquet", values=["one", None]))


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """Three good lines and four that hold no text, one of which is too long; a parquet with a null."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    content = b'{"text": "one"}\nnot JSON\n{"text": 2}\n{"text": "\xff"}\n{"text": "two"}\n{"text": "' + b"a" * 5000
    (tmp_path / "a.jsonl").write_bytes(content + b'"}\n{"text": "three"}')
    return [tmp_path / "a.jsonl", table(tmp_path / "b.parquet", values=["four", None])]


def test_bad_lines_are_skipped_where_that_is_asked_for(tmp_path, spoilt):
    """`data.bad_lines = "skip"` passes over what holds no text, names it in the log, and counts it for good."""
    config = config_for(tmp_path, *spoilt, tokenizer="byte", bad_lines="skip")
    corpus = pulled(config)
    with capture_logs() as logs:
        files = prepare(corpus, build_tokenizer(config, corpus, still), config, still)
    named = [log["reason"] for log in logs if log["event"] == "line passed over"]

    assert sum(split.documents for split in files.splits) == 4
    assert files.skipped_lines == 5
    assert [name.split(":")[0].rpartition("/")[2] for name in named] == [
        *(f"a.jsonl, line {number}" for number in (2, 3, 4, 6)),
        "b.parquet, row 2",
    ]
    assert prepare(corpus, build_tokenizer(config, corpus, still), config, still).skipped_lines == 5


def test_skipped_lines_are_not_taken_over(tmp_path, spoilt):
    """What was made by skipping does not pass for the text once skipping is no longer asked for."""
    config = config_for(tmp_path, *spoilt, tokenizer="byte", bad_lines="skip")
    corpus = pulled(config)
    prepare(corpus, build_tokenizer(config, corpus, still), config, still)
    strict = config_for(tmp_path, *spoilt, tokenizer="byte")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON"):
        prepare(corpus, build_tokenizer(strict, corpus, still), strict, still)


def test_nothing_but_bad_lines(tmp_path):
    """A corpus in which every line was passed over is empty, and says why."""
    (tmp_path / "a.jsonl").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="the corpus is empty but for 2 lines without text"):
        texts(tmp_path, tmp_path / "a.jsonl", bad_lines="skip")
