"""`bpe:N`: a tokenizer trained on the corpus, the same wherever it is read."""

import hashlib
import json
import subprocess
import sys

import pytest
import tiktoken
import tokenizers
from tiktoken.load import load_tiktoken_bpe

from job.data import bpe_training
from job.data.alphabets import ByteTokenizer
from job.data.builtin import python_docs
from job.data.tokenizer import build_tokenizer, load_tokenizer
from job.data.tokenizer_files import save_trained
from job.errors import ConfigError, DataError
from job.infra.directory_store import DirectoryObjectStore
from tests.unit.data_support import config_for, pulled, still

ODD = "Zażółć gęślą jaźń 漢字 🙂🙃 \x00\u200b <|endoftext|> it's 1234567\n\n   \t x  "


def trained(folder, corpus, name="bpe:500"):
    config = config_for(folder, corpus, tokenizer=name)
    return build_tokenizer(config, pulled(config), still)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(python_docs()[:200_000])
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cache"), corpus)


def test_it_has_n_entries(tokenizer, corpus):
    """N entries, the last for the end of a text; text comes back, and takes fewer tokens than bytes."""
    text = corpus.read_text()
    tokens = tokenizer.encode_ordinary(text)

    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.end_of_text) == ("bpe:500", 500, 499)
    assert sorted([*tokenizer.ranks.values(), 499]) == list(range(500))
    assert tokenizer.decode(tokens) == text
    assert len(tokens) < 0.6 * len(text.encode())


def test_every_text_can_be_written(tokenizer):
    """Characters that training never saw come back too."""
    assert tokenizer.decode(tokenizer.encode_ordinary(ODD)) == ODD


def test_it_travels_in_a_checkpoint(tokenizer):
    """What a checkpoint keeps of it is all of it."""
    assert load_tokenizer(tokenizer.to_json()).sha256 == tokenizer.sha256


def test_it_is_trained_once(tmp_path, corpus, tokenizer, monkeypatch):
    """The second time it comes from the cache."""
    first = trained(tmp_path, corpus)
    monkeypatch.setattr(bpe_training, "_train", None)

    assert trained(tmp_path, corpus).sha256 == first.sha256 == tokenizer.sha256


AGAIN = """
import sys
from pathlib import Path
from tests.unit.test_data_bpe import trained
print(trained(Path(sys.argv[1]), sys.argv[2]).sha256)
"""


@pytest.mark.parametrize("threads", ["1", "3"])
def test_another_process_trains_the_same(tmp_path, corpus, tokenizer, pytestconfig, threads):
    """Threads and hash seeds of the process do not show in what is trained."""
    environ = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PATH": ""}
    command = [sys.executable, "-c", AGAIN, str(tmp_path), str(corpus)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=pytestconfig.rootpath, env=environ)

    assert run.stdout.split()[-1] == tokenizer.sha256


def test_tiktoken_and_tokenizers_read_its_files(tmp_path, corpus, tokenizer):
    """The files beside a run give the same tokens by tiktoken and by Hugging Face's library."""
    save_trained(DirectoryObjectStore(tmp_path), tokenizer, 64)
    folder = tmp_path / "tokenizer"
    arguments = json.loads((folder / "tiktoken.json").read_bytes())
    vocab = folder / "vocab.tiktoken"
    ranks = load_tiktoken_bpe(str(vocab), hashlib.sha256(vocab.read_bytes()).hexdigest())  # or it keeps one by its path
    theirs = tiktoken.Encoding(**arguments, mergeable_ranks=ranks)
    other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    for text in (corpus.read_text()[:50_000], ODD.replace("<|endoftext|>", "")):
        expected = tokenizer.encode_ordinary(text).tolist()
        assert theirs.encode_ordinary(text) == expected
        assert other.encode(text, add_special_tokens=False).ids == expected


def test_published_tokenizers_are_not_written(tmp_path):
    """A tokenizer that was not trained for the run has files elsewhere."""
    save_trained(DirectoryObjectStore(tmp_path / "run"), ByteTokenizer(), 64)

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["bpe:", "bpe:256", "bpe:x", "bpe:-1", "bpe:1e3", "bpe:99999999"])
def test_odd_numbers(tmp_path, corpus, name):
    """What is no number of entries from 257 on is refused."""
    with pytest.raises(ConfigError, match="bpe:N takes a number of entries from 257 to"):
        trained(tmp_path, corpus, name)


def test_too_little_text(tmp_path):
    """A corpus that gives fewer entries is refused with how many it gives, which then works."""
    (tmp_path / "a.txt").write_text("abc abc abc")
    with pytest.raises(DataError, match="this corpus gives 260 entries at most; set bpe:260"):
        trained(tmp_path, tmp_path / "a.txt", "bpe:300")

    assert trained(tmp_path, tmp_path / "a.txt", "bpe:260").vocab_size == 260


def test_without_the_library(tmp_path, corpus, monkeypatch):
    """Without the module that trains the error has the command that installs it."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'gpt-pretrain-job\[bpe\]'"):
        trained(tmp_path, corpus)


def test_the_sample_is_spread_over_the_text(monkeypatch):
    """Of a long text every n-th piece is taken, from its start to its end, within the limit."""
    monkeypatch.setattr(bpe_training, "SAMPLE", 100)
    kept = [int(piece) for piece in bpe_training._spread(f"{number:010}" for number in range(1000))]

    assert len(kept) <= 10
    assert kept == list(range(0, 1000, kept[1]))
