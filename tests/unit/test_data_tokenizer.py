"""Text to tokens and back, for every kind of tokenizer."""

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tiktoken_ext import openai_public

from job.data import builtin, download, gpt2_files
from job.data.alphabets import ByteTokenizer, CharTokenizer
from job.data.bpe import BpeTokenizer
from job.data.splits import safe_pieces
from job.data.tokenizer import build_tokenizer, load_tokenizer
from job.errors import ConfigError, DataError, NotFoundError, StorageError
from tests.unit.data_support import SHARED, Plan, config_for, published, pulled, serving, still


def build(tmp_path, kind, *corpus, **settings):
    config = config_for(tmp_path, *(corpus or ["builtin:python-docs"]), tokenizer=kind, **settings)
    return build_tokenizer(config, pulled(config), still)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2's tokenizer, from its published files."""
    folder = published("vocab.bpe").parent
    return build(tmp_path_factory.mktemp("gpt2"), "gpt2", tokenizer_dir=str(folder))


@pytest.fixture(scope="module")
def small():
    """A byte-pair encoding that needs no files: bytes, and every pair of some, so that any word's end shows."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pair in itertools.product(b"ndohestlgiX12'/!,.\t\r\n ", repeat=2):
        ranks[bytes(pair)] = len(ranks)
    return BpeTokenizer("small", gpt2_files.PATTERN, ranks, {"<|endoftext|>": len(ranks)})


@pytest.fixture(params=["char", "byte", "small", "gpt2"])
def tokenizer(request):
    """One of every kind."""
    if request.param == "char":
        return CharTokenizer("abcdefghi the\nñ漢😀")
    if request.param == "byte":
        return ByteTokenizer()
    return request.getfixturevalue(request.param)


def test_text_comes_back(tokenizer):
    """Decoding gives the encoded text back."""
    text = "the big head\n\nñ 漢😀 defg"
    tokens = tokenizer.encode_ordinary(text)

    assert tokenizer.decode(tokens) == text
    assert tokens.dtype == np.uint32
    assert tokens.max() < tokenizer.vocab_size


def test_nothing_is_nothing(tokenizer):
    """No text is no tokens, and the other way round."""
    assert tokenizer.encode("").shape == tokenizer.encode_ordinary("").shape == (0,)
    assert tokenizer.decode([]) == ""


def test_a_saved_tokenizer_is_the_same(tokenizer):
    """What `to_json` writes loads as an equal tokenizer with equal bytes."""
    loaded = load_tokenizer(tokenizer.to_json())

    assert loaded.to_json() == tokenizer.to_json()
    assert loaded.sha256 == hashlib.sha256(tokenizer.to_json()).hexdigest()
    assert (loaded.kind, loaded.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
    assert loaded.end_of_text == tokenizer.end_of_text
    assert loaded.encode("the big head").tolist() == tokenizer.encode("the big head").tolist()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"format":1,"kind":"gpt2"}',
        b'{"format":1,"kind":"char","characters":3}',
        b'{"format":2,"kind":"byte"}',
        b'{"format":1,"kind":"x","pattern":"a","ranks":{"*":1},"special_tokens":{}}',
        b'{"format":1,"kind":"x","pattern":"(","ranks":{"YQ==":0},"special_tokens":{}}',
    ],
)
def test_a_damaged_tokenizer(content):
    """What is no saved tokenizer is refused."""
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(content)


def test_characters_of_the_corpus(tmp_path):
    """`char` numbers the sorted characters of the whole corpus and has no end_of_text."""
    (tmp_path / "a.txt").write_text("hello\r\n", newline="")
    tokenizer = build(tmp_path, "char", tmp_path / "a.txt")

    assert json.loads(tokenizer.to_json())["characters"] == "\n\rehlo"
    assert tokenizer.encode("hole").tolist() == [3, 5, 4, 2]
    assert tokenizer.end_of_text is None


def test_characters_between_documents(tmp_path):
    """With several documents the newline that will part them is a character."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)

    assert build(tmp_path, "char", tmp_path / "a.txt", tmp_path / "b.txt").decode([0, 1, 2]) == "\nab"


def test_shakespeare_has_65_characters(tmp_path):
    """tiny-shakespeare has 1,115,394 characters, 65 of them different."""
    file = published("tinyshakespeare.txt")
    tokenizer = build(tmp_path, "char", file)

    assert tokenizer.vocab_size == 65
    assert len(tokenizer.encode(file.read_text())) == 1_115_394


@pytest.mark.parametrize(("stranger", "name"), [("z", "'z' .U.007A."), ("Ω", "'Ω' .U.03A9."), ("\x00", ".U.0000.")])
def test_an_unknown_character(stranger, name):
    """A character outside the alphabet is an error that names it and its code point."""
    with pytest.raises(DataError, match=f"{name} is none of the 3 known characters"):
        CharTokenizer("abc").encode("abc" + stranger + "?")


def test_bytes():
    """`byte` is UTF-8 and one more token; what is not UTF-8 decodes to the replacement character."""
    tokenizer = ByteTokenizer()

    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3, 0x28]) == "\ufffd("
    assert tokenizer.decode([97, 256, 98, 256]) == "a<|endoftext|>b<|endoftext|>"
    assert tokenizer.vocab_size == 257


def test_end_of_text_in_prompt_and_corpus(small):
    """<|endoftext|> is a token in a prompt and mere characters in a corpus."""
    assert small.encode("a<|endoftext|>b").tolist() == [97, small.end_of_text, 98]
    assert small.end_of_text not in small.encode_ordinary("a<|endoftext|>b")
    assert small.decode(small.encode_ordinary("a<|endoftext|>b")) == "a<|endoftext|>b"
    assert small.decode([97, small.end_of_text]) == "a<|endoftext|>"


def test_half_a_character(small):
    """A prompt with half a surrogate pair, as a terminal may pass it, is encoded with a replacement."""
    assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"


def test_gpt2_equals_tiktoken(gpt2, tmp_path, monkeypatch):
    """Our GPT-2 tokenizer is tiktoken's: ranks, pattern, special tokens."""
    for asset in (gpt2_files.MERGES, gpt2_files.NUMBERS):
        name = hashlib.sha1(asset.url.encode()).hexdigest()
        (tmp_path / name).write_bytes((SHARED / asset.name).read_bytes())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    theirs = tiktoken.get_encoding("gpt2")
    ours = gpt2._encoding

    assert ours._mergeable_ranks == theirs._mergeable_ranks
    assert ours._special_tokens == theirs._special_tokens
    assert ours._pat_str == theirs._pat_str
    assert ours.n_vocab == theirs.n_vocab == 50_257


def test_gpt2_counts_the_verdict(gpt2):
    """The Verdict has the 5,145 tokens that the tutorial prints."""
    assert len(gpt2.encode_ordinary(published("the-verdict.txt").read_text())) == 5_145


def test_gpt2_known_tokens(gpt2):
    """A sentence with its end becomes the tokens that GPT-2 was trained with."""
    assert gpt2.encode("Hello, world. <|endoftext|>").tolist() == [15496, 11, 995, 13, 220, 50256]


@pytest.mark.parametrize("place", ["tokenizer_dir", "TIKTOKEN_CACHE_DIR", "GPT_JOB_ASSETS", "hashed names"])
def test_gpt2_files_are_found(tmp_path, monkeypatch, place):
    """GPT-2's files are found in each place they may be in, under both of their names."""
    folder = tmp_path / "files"
    folder.mkdir()
    for asset in (gpt2_files.MERGES, gpt2_files.NUMBERS):
        hashed = hashlib.sha1(asset.url.encode()).hexdigest()
        (folder / (hashed if place == "hashed names" else asset.name)).symlink_to(published(asset.name))
    monkeypatch.delenv("GPT_JOB_ASSETS", raising=False)
    settings = {"tokenizer_dir": str(folder)} if place == "tokenizer_dir" else {}
    if not settings:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR" if place == "hashed names" else place, str(folder))

    assert build(tmp_path, "gpt2", **settings).vocab_size == 50_257


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No GPT-2 files on this machine and a host of theirs that is ours; gives the server."""
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    monkeypatch.setattr(builtin, "IMAGE_ASSETS", tmp_path / "image")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.delenv("GPT_JOB_ASSETS", raising=False)
    with serving() as server:
        for name in ("MERGES", "NUMBERS"):
            asset = getattr(gpt2_files, name)
            there = builtin.Asset(asset.name, server.url(f"/{asset.name}"), asset.sha256)
            monkeypatch.setattr(gpt2_files, name, there)
        yield server


def test_gpt2_files_are_downloaded(tmp_path, nowhere):
    """Files that are nowhere are downloaded once."""
    for name in ("vocab.bpe", "encoder.json"):
        nowhere.plans[f"/{name}"] = Plan(published(name).read_bytes())

    assert build(tmp_path, "gpt2").vocab_size == build(tmp_path, "gpt2").vocab_size == 50_257
    assert len(nowhere.requests) == 2


def test_offline_names_every_place(tmp_path, nowhere):
    """Without the files and without their host the error lists each place and what to do."""
    with pytest.raises(NotFoundError) as caught:
        build(tmp_path, "gpt2", tokenizer_dir="/my/files")
    message = str(caught.value)

    assert message.startswith("GPT-2's vocab.bpe is in none of\n  /my/files\n")
    for folder in ("tiktoken", "image", "tmp/data-gym-cache", "cache/content"):
        assert f"\n  {tmp_path / folder}\n" in message
    assert "name it in data.tokenizer_dir" in message


def test_wrong_gpt2_files_are_passed_over(tmp_path, nowhere):
    """A file of the right name and the wrong hash is not used, and the log says so."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "vocab.bpe").write_text("#version: 0.2\n")
    with capture_logs() as logs, pytest.raises(NotFoundError):
        build(tmp_path, "gpt2", tokenizer_dir=str(tmp_path / "files"))

    assert [log["path"] for log in logs if log["log_level"] == "warning"] == [str(tmp_path / "files" / "vocab.bpe")]


@pytest.mark.parametrize("kind", ["gpt3", "bpe", "Char"])
def test_unknown_tokenizer(tmp_path, kind):
    """A tokenizer that is not known is an error with the nearest one and the list."""
    with pytest.raises(ConfigError, match=f"data.tokenizer='{kind}' is none of bpe:N, byte, .*gpt2.*; nearest is"):
        build(tmp_path, kind)


def test_another_encoding_offline(tmp_path, monkeypatch):
    """An encoding of tiktoken's whose file cannot be had is a StorageError."""
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr("tiktoken.load.read_file_cached", unreachable)
    with pytest.raises(StorageError, match=r"cl100k_base.*TIKTOKEN_CACHE_DIR"):
        build(tmp_path, "cl100k_base")


def unreachable(*_: object) -> bytes:
    raise ConnectionError("no network")


PARTS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    ".",
    ",",
    "!",
    "'",
    "'s",
    "'ll",
    "don't",
    "the",
    "thing",
    "X",
    "1",
    "12",
]
PARTS += ["é", "漢字", "。", "😀", "\u0301", "\u200d", "\xa0", "<|endoftext|>", "\U0001e900", "/"]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=40).map("".join))


@settings(max_examples=400, deadline=None)
@given(texts, texts)
def test_a_cut_changes_no_token(small, before, after):
    """Text is cut only where the tokens before and after are those of the whole."""
    check_cut(small, before + after)


@settings(max_examples=600, deadline=None)
@given(texts, texts)
def test_a_cut_changes_no_token_of_gpt2(gpt2, before, after):
    """The same for GPT-2's tokens."""
    check_cut(gpt2, before + after)


def shipped_patterns():
    """The patterns of tiktoken's encodings, found without their files."""
    patterns = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
        patch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: {})
        for name, make in openai_public.ENCODING_CONSTRUCTORS.items():
            patterns[make()["pat_str"]] = name
    return sorted(patterns)


@pytest.fixture(
    scope="module", params=shipped_patterns(), ids=lambda pattern: hashlib.md5(pattern.encode()).hexdigest()
)
def shipped(request, small):
    """A tokenizer for each pattern that tiktoken ships."""
    return BpeTokenizer("shipped", request.param, small._ranks, {})


@settings(max_examples=400, deadline=None)
@given(texts, texts)
def test_a_cut_changes_no_token_of_tiktoken(shipped, before, after):
    """The same for every pattern that tiktoken ships."""
    check_cut(shipped, before + after)


def check_cut(tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    cut = tokenizer.cut(text)
    parts = tokenizer.encode_ordinary(text[:cut]).tolist() + tokenizer.encode_ordinary(text[cut:]).tolist()
    assert parts == tokenizer.encode_ordinary(text).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=12))
def test_pieces_have_the_tokens_of_the_whole(small, pieces):
    """However a text is handed over in pieces, it is encoded as if whole."""
    pieces = [piece.encode("utf-8", "replace").decode() for piece in pieces]
    found = [token for piece in safe_pieces(pieces, small) for token in small.encode_ordinary(piece).tolist()]

    assert found == small.encode_ordinary("".join(pieces)).tolist()


def test_prose_is_cut_near_its_end(small):
    """In ordinary text a place to cut is at most a word away."""
    text = "The quick brown fox jumps over the lazy dog " * 10

    assert small.cut(text + "jum") == len(text + "jum") - len(" jum")


def test_tiktoken_loads_only_when_needed():
    """Importing the package and using characters or bytes does not import tiktoken, nor torch."""
    script = (
        "import sys; from job.data.tokenizer import load_tokenizer; import job.data.prepare, job.data.order;"
        'load_tokenizer(b\'{"format":1,"kind":"byte"}\').encode(\'a\');'
        "assert not {'tiktoken', 'torch', 'zstandard', 'boto3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
