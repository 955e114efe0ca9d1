"""Tokenizers beside weights: those that are published, and those that ours become for others."""

import json

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from job.data.alphabets import ByteTokenizer, CharTokenizer
from job.data.bpe import BpeTokenizer, merged_from
from job.data.gpt2_files import BYTE_TOKENS, PATTERN, gpt2_tokenizer
from job.data.huggingface_tokenizer import huggingface_files
from job.data.weight_tokenizers import read_tokenizer
from job.errors import DataError
from tests.unit.data_support import config_for, published, still


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2's own, from its published files."""
    folder = published("vocab.bpe").parent
    return gpt2_tokenizer(config_for(tmp_path_factory.mktemp("gpt2"), "unused", tokenizer_dir=str(folder)), still)


@pytest.fixture(scope="module")
def oracle():
    """tiktoken's own gpt2, built from the same files."""
    return tiktoken.Encoding(
        "gpt2",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=tiktoken.load.data_gym_to_mergeable_bpe_ranks(
            str(published("vocab.bpe")), str(published("encoder.json"))
        ),
        special_tokens={"<|endoftext|>": 50256},
    )


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return {name: folder / name for name in files}


FORMS = {
    "OpenAI's two": ("encoder.json", "vocab.bpe"),
    "Hugging Face's two": ("vocab.json", "merges.txt"),
    "Hugging Face's one": ("tokenizer.json",),
}


@pytest.fixture(scope="module", params=FORMS)
def read_back(request, gpt2, tmp_path_factory):
    """GPT-2's tokenizer out of each form of files."""
    files = huggingface_files(gpt2, 1024)
    files |= {name: published(name).read_bytes() for name in ("encoder.json", "vocab.bpe")}
    chosen = {name: files[name] for name in FORMS[request.param]}
    return read_tokenizer(write(tmp_path_factory.mktemp("files"), chosen), 50257, "here")


def test_the_same_tokenizer(read_back, gpt2):
    """Each form gives the very tokenizer that the setting gpt2 gives, by its hash."""
    assert (read_back.kind, read_back.sha256) == ("gpt2", gpt2.sha256)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_tokens_of_any_text(read_back, oracle, text):
    """Any text has tiktoken's tokens, and comes back."""
    tokens = read_back.encode_ordinary(text)

    assert tokens.tolist() == oracle.encode_ordinary(text)
    assert read_back.decode(tokens) == text


def test_merges_are_the_published(gpt2):
    """The list of merges that ranks imply is the published one, line by line."""
    files = huggingface_files(gpt2, 1024)

    assert files["merges.txt"] == published("vocab.bpe").read_bytes()
    assert json.loads(files["vocab.json"]) == json.loads(published("encoder.json").read_bytes())


NUMBERS = {token: number for number, token in enumerate(BYTE_TOKENS)}
SMALL = NUMBERS | {"th": 256, "the": 257, "<|endoftext|>": 258}
MERGES = b"#version: 0.2\nt h\nth e\n"


def small():
    ranks = {bytes([byte]): number for number, byte in enumerate(b for b in range(256))}
    return BpeTokenizer("small", PATTERN, ranks | {b"th": 256, b"the": 257}, {"<|endoftext|>": 258})


def test_another_tokenizer(tmp_path):
    """A smaller byte-level BPE is read as what it is."""
    found = read_tokenizer(write(tmp_path, {"vocab.json": SMALL, "merges.txt": MERGES}), 259, "here")

    assert found.encode("the<|endoftext|>th").tolist() == [257, 258, 256]
    assert (found.kind, found.vocab_size) == ("bpe", 259)


@pytest.mark.parametrize(
    ("numbers", "merges", "said"),
    [
        (SMALL, b"th e\nt h\n", "makes token 256, expected one above 257"),
        (SMALL, b"t h\nt he\n", "but (b'th', b'e') are merged before that"),
        (SMALL, b"t h\nth e\nx y\n", "'x y' makes token None"),
        (SMALL | {"th": 5}, MERGES, "two tokens have the same number"),
        (SMALL | {"th": -1}, MERGES, "none from 0 to"),
        (SMALL | {"th": "256"}, MERGES, "none from 0 to"),
        ({"a": 0}, b"", "255 of the 256 bytes are no tokens"),
        (SMALL | {"漢e": 300}, MERGES + "漢 e\n".encode(), "stands for no byte"),
        ([], MERGES, "not a JSON object"),
        (b"{", MERGES, "not JSON"),
        (SMALL, b"\xff", "not UTF-8"),
    ],
)
def test_files_that_do_not_fit(tmp_path, numbers, merges, said):
    """Files of which no tokenizer can be made are refused, with the token or line that does not fit."""
    files = write(tmp_path, {"vocab.json": numbers, "merges.txt": merges})
    with pytest.raises(DataError) as refused:
        read_tokenizer(files, 1000, "here")

    assert said in str(refused.value)


def test_merges_that_tiktoken_would_not_follow(tmp_path):
    """A token listed as another pair than the one that is merged first is refused: texts would differ."""
    numbers = NUMBERS | {"ab": 256, "bc": 257, "abc": 258}
    files = write(tmp_path, {"vocab.json": numbers, "merges.txt": b"a b\nb c\na bc\n"})
    with pytest.raises(DataError, match=r"b'abc' is listed as \(b'a', b'bc'\)"):
        read_tokenizer(files, 1000, "here")


def facts(**changes):
    before = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": SMALL, "merges": ["t h", ["th", "e"]]}
    return {"model": model, "pre_tokenizer": before, "added_tokens": [], "normalizer": None} | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}, "merges": []}}, "model.type is 'WordPiece'"),
        ({"normalizer": {"type": "NFC"}}, "normalizer is set"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is ['Whitespace']"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space is true"),
        ({"model": {"type": "BPE", "vocab": SMALL, "merges": [], "byte_fallback": True}}, "model has one of"),
        ({"model": None}, "not a tokenizer.json that is known"),
        ({"added_tokens": [{"content": "x"}]}, "not a tokenizer.json that is known"),
    ],
)
def test_tokenizers_of_another_kind(tmp_path, changes, said):
    """A tokenizer.json that says more than byte-level BPE is refused with what it says."""
    with pytest.raises(DataError) as refused:
        read_tokenizer(write(tmp_path, {"tokenizer.json": facts(**changes)}), 1000, "here")

    assert said in str(refused.value)


def test_merges_in_both_forms(tmp_path):
    """Merges are read as text and as pairs, which newer files have."""
    found = read_tokenizer(write(tmp_path, {"tokenizer.json": facts()}), 259, "here")

    assert found.encode_ordinary("the").tolist() == [257]


def test_more_tokens_than_the_model(tmp_path):
    """A tokenizer that knows more tokens than the model is refused."""
    with pytest.raises(DataError, match="259 tokens, the model 258"):
        read_tokenizer(write(tmp_path, {"vocab.json": SMALL, "merges.txt": MERGES}), 258, "here")


def test_no_tokenizer():
    """A folder without one says what it could be."""
    with pytest.raises(DataError, match=r"encoder.json with vocab.bpe or vocab.json with merges.txt, or t"):
        read_tokenizer({}, 1, "here")


def test_merges_follow_from_ranks():
    """A token comes of the two that its bytes have become when its turn is there; one that no merge makes is out."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"cd": 257, b"abcd": 258, b"xyz": 259}

    assert merged_from(ranks) == {b"ab": (b"a", b"b"), b"cd": (b"c", b"d"), b"abcd": (b"ab", b"cd")}


OURS = {"char": CharTokenizer("abc \n漢😀"), "byte": ByteTokenizer(), "small": small()}


@pytest.mark.parametrize("kind", OURS)
def test_ours_come_back(tmp_path, kind):
    """What an export writes for each kind of tokenizer is read back as one with the same tokens."""
    found = read_tokenizer(write(tmp_path, huggingface_files(OURS[kind], 16)), 1000, "here")
    text = "abc \n"

    assert np.array_equal(found.encode_ordinary(text), OURS[kind].encode_ordinary(text))
    assert found.vocab_size == OURS[kind].vocab_size
