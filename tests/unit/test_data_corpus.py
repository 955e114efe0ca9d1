"""Which files a corpus consists of, and what it is known by."""

import hashlib

import pytest
from structlog.testing import capture_logs

from job.data.builtin import TEXTS, python_docs
from job.data.corpus import pull
from job.errors import ConfigError, DataError, Interrupted, NotFoundError
from tests.memory_store import MemoryObjectStore
from tests.unit.data_support import config_for, no_store, published, pulled, still


def names(corpus):
    return [file.path.name for file in corpus.files]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    """b.txt, a.md, deep/c.jsonl.gz; notes.pdf and hidden files beside them."""
    root = tmp_path / "texts"
    (root / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    for name in ("b.txt", "a.md", "deep/c.jsonl.gz", "notes.pdf", ".hidden.txt", ".git/config.txt"):
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_is_read_whole_and_sorted(tmp_path, folder):
    """A folder stands for every file of a known format in it and below it, sorted; hidden ones are not read."""
    assert names(pulled(config_for(tmp_path, folder))) == ["a.md", "b.txt", "c.jsonl.gz"]


def test_unknown_files_are_named_in_a_warning(tmp_path, folder):
    """What a folder holds in no known format is left out, and the log says so."""
    with capture_logs() as logs:
        pulled(config_for(tmp_path, folder))

    assert [log["files"] for log in logs if log["log_level"] == "warning"] == [[str(folder / "notes.pdf")]]


def test_a_linked_folder_is_read_once(tmp_path, folder):
    """Links to folders are followed, and a circle of them ends."""
    (folder / "deep" / "up").symlink_to(folder)

    assert names(pulled(config_for(tmp_path, folder))) == ["a.md", "b.txt", "c.jsonl.gz"]


def test_glob(tmp_path, folder):
    """A glob stands for the files it matches, sorted; ** crosses folders."""
    assert names(pulled(config_for(tmp_path, folder / "**" / "*.[jt]*"))) == ["b.txt", "c.jsonl.gz"]


def test_entries_keep_their_order(tmp_path, folder):
    """Entries are read in the order they are written in, twice if they are there twice."""
    corpus = pulled(config_for(tmp_path, folder / "b.txt", folder / "a.md", folder / "b.txt"))

    assert names(corpus) == ["b.txt", "a.md", "b.txt"]


def test_missing_file_names_the_nearest(tmp_path, folder):
    """An absent file is an error that says what was looked for and what is there instead."""
    with pytest.raises(NotFoundError, match=r"no file or folder at .*/b\.tx; did you mean .*/b\.txt"):
        pulled(config_for(tmp_path, folder / "b.tx"))


@pytest.mark.parametrize("entry", ["*.parquet", "deep/*.txt"])
def test_glob_without_match(tmp_path, folder, entry):
    """A glob that matches nothing of a known format is an error."""
    with pytest.raises(NotFoundError, match="nothing under"):
        pulled(config_for(tmp_path, folder / entry))


def test_unknown_format(tmp_path, folder):
    """A file that was named but has no known format is refused with the list of those that have."""
    with pytest.raises(ConfigError, match=r"notes\.pdf: the format is told by the name: \.txt \.md \.jsonl"):
        pulled(config_for(tmp_path, folder / "notes.pdf"))


def test_wrong_entries_are_reported_together(tmp_path):
    """Every entry that cannot be understood is in one error."""
    with pytest.raises(ConfigError) as caught:
        pulled(config_for(tmp_path, "ftp://host/a.txt", "a.txt#sha256=12", "https://me:pw@host/a.txt?token=x"))

    assert len(caught.value.problems) == 3
    assert "pw" not in str(caught.value)
    assert "token" not in str(caught.value)


def test_pin_is_met(tmp_path, folder):
    """A local file with the pinned hash is taken, in place."""
    corpus = pulled(config_for(tmp_path, f"{folder / 'b.txt'}#sha256={sha256(b'b.txt').upper()}"))

    assert corpus.files[0].path == folder / "b.txt"


def test_pin_is_not_met(tmp_path, folder):
    """A local file with another hash is an error with both; it stays."""
    with pytest.raises(DataError, match=f"expected sha256 {'0' * 64}, got {sha256(b'b.txt')}"):
        pulled(config_for(tmp_path, f"{folder / 'b.txt'}#sha256={'0' * 64}"))

    assert (folder / "b.txt").exists()


def test_a_pin_is_for_one_file(tmp_path, folder):
    """A folder cannot be pinned."""
    with pytest.raises(ConfigError, match="pins one file, and this is 3"):
        pulled(config_for(tmp_path, f"{folder}#sha256={'0' * 64}"))


def test_fingerprint_follows_content(tmp_path, folder):
    """The same bytes elsewhere are the same corpus; other bytes, another order or format are another."""
    texts = [folder / "b.txt", folder / "a.md"]
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(b"b.txt")
    as_lines = tmp_path / "b.jsonl"
    as_lines.write_bytes(b"b.txt")

    def fingerprint(*corpus):
        return pulled(config_for(tmp_path, *corpus)).fingerprint

    assert fingerprint(*texts) == fingerprint(copy, texts[1])
    assert len({fingerprint(*texts), fingerprint(*texts[::-1]), fingerprint(as_lines, texts[1])}) == 3


def test_text_field_matters_for_jsonl_alone(tmp_path, folder):
    """`data.text_field` changes the fingerprint of a corpus with .jsonl files, and no other."""

    def fingerprint(file, field):
        return pulled(config_for(tmp_path, folder / file, text_field=field)).fingerprint

    assert fingerprint("deep/c.jsonl.gz", "text") != fingerprint("deep/c.jsonl.gz", "body")
    assert fingerprint("b.txt", "text") == fingerprint("b.txt", "body")


def test_python_docs(tmp_path):
    """builtin:python-docs is the text of Python's own topics, the same each time."""
    first, second = (pulled(config_for(tmp_path, "builtin:python-docs")).files[0] for _ in range(2))

    assert first == second
    assert first.path.read_text() == python_docs()
    assert first.size > 400_000


def test_unknown_builtin(tmp_path):
    """An unknown builtin is an error with the nearest name and the list."""
    with pytest.raises(ConfigError, match="nearest is builtin:tiny-shakespeare, known are python-docs, the-verdict"):
        pulled(config_for(tmp_path, "builtin:shakespeare"))


@pytest.mark.parametrize("name", ["the-verdict", "tiny-shakespeare"])
def test_builtin_from_assets(tmp_path, monkeypatch, name):
    """A published text is taken from $GPT_JOB_ASSETS, whose file has the pinned hash."""
    monkeypatch.setenv("GPT_JOB_ASSETS", str(published(TEXTS[name].name).parent))

    assert pulled(config_for(tmp_path, f"builtin:{name}")).files[0].sha256 == TEXTS[name].sha256


def test_wrong_asset_is_passed_over(tmp_path, monkeypatch):
    """An asset that is not the published file is not used; the cache is looked at next."""
    monkeypatch.setenv("GPT_JOB_ASSETS", str(tmp_path))
    (tmp_path / "the-verdict.txt").write_text("something else")
    right = published("the-verdict.txt").read_bytes()
    cached = tmp_path / "cache" / "content" / f"{TEXTS['the-verdict'].sha256}.txt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(right)

    assert pulled(config_for(tmp_path, "builtin:the-verdict")).files[0].path == cached


def test_interrupted_pull(tmp_path, folder):
    """A stop asked for while files are read ends the pull."""

    def stop(*_):
        raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        pull(config_for(tmp_path, folder), no_store, stop)


def bucket(**objects: bytes):
    store = MemoryObjectStore({name.replace("__", "/").replace("_", "."): value for name, value in objects.items()})
    store.uri = "s3://bucket"
    opened = []

    def open_store(uri):
        opened.append(uri)
        return store

    return store, open_store


def test_one_object(tmp_path):
    """s3://bucket/key of an object is that object, in the cache under its hash."""
    _, open_store = bucket(texts__a_txt=b"hello")
    file = pull(config_for(tmp_path, "s3://bucket/texts/a.txt"), open_store, still).files[0]

    assert (file.uri, file.path.read_bytes(), file.sha256) == ("s3://bucket/texts/a.txt", b"hello", sha256(b"hello"))


def test_objects_below_a_prefix(tmp_path):
    """s3://bucket/prefix is every object below it of a known format, sorted; names that only begin so are not."""
    _, open_store = bucket(texts__b_md=b"2", texts__a_txt=b"1", texts__c_pdf=b"3", textsmore_txt=b"4")
    corpus = pull(config_for(tmp_path, "s3://bucket/texts"), open_store, still)

    assert [file.uri for file in corpus.files] == ["s3://bucket/texts/a.txt", "s3://bucket/texts/b.md"]


def test_a_whole_bucket(tmp_path):
    """s3://bucket alone is every object in it."""
    _, open_store = bucket(texts__b_md=b"2", a_txt=b"1")

    assert len(pull(config_for(tmp_path, "s3://bucket"), open_store, still).files) == 2


def test_no_object(tmp_path):
    """A key that is neither an object nor a prefix is an error."""
    _, open_store = bucket(a_txt=b"1")
    with pytest.raises(NotFoundError, match=r"no object s3://bucket/nope"):
        pull(config_for(tmp_path, "s3://bucket/nope"), open_store, still)


def test_object_from_the_cache(tmp_path):
    """The same version of an object is not brought again; another one is, even of the same size."""
    store, open_store = bucket(a_txt=b"hello")
    config = config_for(tmp_path, "s3://bucket/a.txt")
    pull(config, open_store, still)
    got = []
    store.get = lambda key, *to, **how: got.append(key) or MemoryObjectStore.get(store, key, *to, **how)
    pull(config, open_store, still)
    assert got == []
    store.objects["a.txt"] = b"jello"

    assert pull(config, open_store, still).files[0].path.read_bytes() == b"jello"


def test_pinned_object(tmp_path):
    """An object that is not what was pinned is an error with both hashes, and is not kept."""
    _, open_store = bucket(a_txt=b"hello")
    with pytest.raises(DataError, match=f"s3://bucket/a.txt: expected sha256 {'0' * 64}, got {sha256(b'hello')}"):
        pull(config_for(tmp_path, f"s3://bucket/a.txt#sha256={'0' * 64}"), open_store, still)

    assert not any(path.is_file() for path in (tmp_path / "cache" / "partial").iterdir())


def test_object_too_long(tmp_path):
    """An object longer than data.max_bytes is refused before it is brought."""
    _, open_store = bucket(a_txt=b"hello")
    with pytest.raises(DataError, match=r"5 bytes, but data\.max_bytes=4"):
        pull(config_for(tmp_path, "s3://bucket/a.txt", max_bytes=4), open_store, still)
