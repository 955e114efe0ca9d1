"""From corpus to token files: what is in them, how they are kept, and what they cost."""

import json
import multiprocessing
import random
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from structlog.testing import capture_logs

from job.data import prepare as preparation
from job.data import tokenizing
from job.data.alphabets import ByteTokenizer, CharTokenizer
from job.data.prepare import prepare
from job.data.shards import ShardWriter, token_type
from job.data.splits import cut_points
from job.data.token_files import TokenFiles, require_windows
from job.data.tokenizer import build_tokenizer
from job.errors import ConfigError, DataError, Interrupted
from tests.unit.data_support import config_for, published, pulled, still


def prepared(tmp_path, *corpus, tokenizer="byte", **settings):
    config = config_for(tmp_path, *corpus, tokenizer=tokenizer, **settings)
    found = pulled(config)
    return prepare(found, build_tokenizer(config, found, still), config, still)


def tokens(split):
    return split.open().window(0, split.tokens).tolist() if split.tokens else []


@pytest.fixture
def text(tmp_path):
    """A file of 1,000 characters, 1,500 bytes."""
    path = tmp_path / "a.txt"
    path.write_text("aé" * 500, encoding="utf-8")
    return path


@pytest.fixture
def lines(tmp_path):
    """A file of 400 documents, "0" to "399"."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(number)}) + "\n" for number in range(400)))
    return path


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.9, 0.1), [18431, 20479]),
        ((0.9, 0.05, 0.05), [18431, 19455, 20479]),
        ((0.9, 0.1, 0.0), [18431, 20479, 20479]),
        ((1.0, 0.0), [20479, 20479]),
        ((0.0, 1.0), [0, 20479]),
    ],
)
def test_cut_points(shares, expected):
    """A text is cut at int(share * characters), and its last character is used."""
    assert cut_points(20479, shares) == expected


def test_cut_points_add_up():
    """0.7 and 0.2 of ten characters are nine, whatever binary fractions say."""
    assert cut_points(10, (0.7, 0.2, 0.1)) == [7, 9, 10]


@pytest.mark.parametrize("batch", [1, 7, 1 << 20])
def test_one_text_is_cut_by_characters(tmp_path, text, monkeypatch, batch):
    """One text goes to train, validation and test in this order, cut between characters, every one used."""
    monkeypatch.setattr(tokenizing, "BATCH", batch)
    files = prepared(tmp_path, text, split=(0.7, 0.2, 0.1))
    whole = text.read_bytes()

    assert [split.characters for split in files.splits] == [700, 200, 100]
    assert [split.bytes for split in files.splits] == [1050, 300, 150]
    assert tokens(files.train) + tokens(files.validation) + tokens(files.test) == list(whole)


def test_one_text_has_no_end_of_text(tmp_path, text):
    """Parts of one text do not end where they are cut."""
    assert 256 not in tokens(prepared(tmp_path, text).train)


@pytest.fixture
def gpt2_dir():
    published("encoder.json")
    return str(published("vocab.bpe").parent)


def test_the_verdict_has_the_tutorials_tokens(tmp_path, gpt2_dir):
    """Each part of The Verdict has the tokens of the tutorial's own slicing."""
    file = published("the-verdict.txt")
    config = config_for(tmp_path, file, tokenizer="gpt2", tokenizer_dir=gpt2_dir, split=(0.9, 0.1))
    corpus = pulled(config)
    tokenizer = build_tokenizer(config, corpus, still)
    files = prepare(corpus, tokenizer, config, still)
    whole = file.read_text()

    assert tokens(files.train) == tokenizer.encode_ordinary(whole[: int(0.9 * len(whole))]).tolist()
    assert tokens(files.validation) == tokenizer.encode_ordinary(whole[int(0.9 * len(whole)) :]).tolist()
    assert files.test.tokens == 0


def test_shakespeare_has_the_lectures_tokens(tmp_path):
    """tiny-shakespeare by characters has 1,003,854 tokens to train on and 111,540 to validate."""
    files = prepared(tmp_path, published("tinyshakespeare.txt"), tokenizer="char", split=(0.9, 0.1))

    assert [split.tokens for split in files.splits] == [1_003_854, 111_540, 0]


def test_documents_stay_whole(tmp_path, lines):
    """Of several documents each goes whole to one split, in their order, followed by end_of_text."""
    files = prepared(tmp_path, lines, split=(0.8, 0.1, 0.1))
    found = []
    for split in files.splits:
        *documents, rest = ByteTokenizer().decode(tokens(split)).split("<|endoftext|>")
        assert rest == ""
        assert documents == sorted(documents, key=int)
        assert len(documents) == split.documents
        found += documents

    assert sorted(found, key=int) == [str(number) for number in range(400)]
    assert 280 <= files.train.documents <= 360
    assert files.test.documents > 10


def test_equal_documents_share_a_split(tmp_path, lines):
    """A document's split depends on its text alone, not on its file, format or neighbours."""
    config = config_for(tmp_path, lines, tokenizer="byte", split=(0.5, 0.5))
    alone = [tmp_path / f"{number}.txt" for number in range(60, 40, -1)]
    for path in alone:
        path.write_text(path.stem)
    all_of_them = TokenFiles.load(folder_of(prepared(tmp_path, lines, split=config.split)))
    few = prepared(tmp_path, *alone, split=config.split)

    def documents(split):
        return set(ByteTokenizer().decode(tokens(split)).split("<|endoftext|>"))

    assert documents(few.train) <= documents(all_of_them.train)
    assert documents(few.validation) <= documents(all_of_them.validation)
    assert few.validation.documents > 0


def folder_of(files):
    return files.train.paths[0].parent


def test_a_newline_parts_documents_of_characters(tmp_path, lines):
    """Where a tokenizer has no end_of_text, a newline follows each document, and is counted as text."""
    files = prepared(tmp_path, lines, tokenizer="char", split=(1.0, 0.0))

    assert tokens(files.train)[:4] == [1, 0, 2, 0]  # 0 \n 1 \n
    assert files.train.characters == files.train.bytes == sum(len(f"{number}\n") for number in range(400))


def test_end_of_text_is_no_text(tmp_path, lines):
    """end_of_text adds tokens, but neither characters nor bytes."""
    train = prepared(tmp_path, lines, split=(1.0, 0.0)).train

    assert train.tokens == train.bytes + train.documents
    assert train.characters == train.bytes == sum(len(str(number)) for number in range(400))


def test_the_second_time_is_free(tmp_path, text, monkeypatch):
    """What was prepared before is found by its fingerprint; nothing is tokenized again."""
    first = prepared(tmp_path, text)
    monkeypatch.setattr(preparation, "tokenize", None)

    assert prepared(tmp_path, text) == first


def test_each_choice_has_its_own_files(tmp_path, text):
    """Another corpus, tokenizer or split is another fingerprint."""
    other = tmp_path / "b.txt"
    other.write_text("bé" * 500)
    found = [
        prepared(tmp_path, text),
        prepared(tmp_path, other),
        prepared(tmp_path, text, tokenizer="char"),
        prepared(tmp_path, text, split=(0.8, 0.2)),
    ]

    assert len({files.fingerprint for files in found}) == 4


@pytest.mark.parametrize("damage", ["shorter shard", "no shard", "no facts", "facts cut short", "other facts"])
def test_damaged_files_are_made_again(tmp_path, text, damage):
    """Token files that do not fit their facts are made again, with a warning."""
    files = prepared(tmp_path, text)
    shard, facts = files.train.paths[0], folder_of(files) / "meta.json"
    before = tokens(files.train)
    if damage == "shorter shard":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "no shard":
        shard.unlink()
    elif damage == "no facts":
        facts.unlink()
    elif damage == "facts cut short":
        facts.write_bytes(facts.read_bytes()[:-10])
    else:
        facts.write_text(facts.read_text().replace('"tokens"', '"token"'))
    with capture_logs() as logs:
        again = prepared(tmp_path, text)

    assert tokens(again.train) == before
    assert "cached token files are damaged and are made again" in [log["event"] for log in logs]


@pytest.mark.parametrize("call", [1, 3, 8])
def test_an_interruption_leaves_nothing_whole(tmp_path, call):
    """A stop asked for while tokenizing leaves nothing that passes for token files; the next time makes them."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc " * (1 << 20))
    config = config_for(tmp_path, path, tokenizer="byte")
    corpus = pulled(config)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == call:
            raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        prepare(corpus, ByteTokenizer(), config, stop)
    assert [path for path in (tmp_path / "cache" / "tokens").iterdir() if not path.name.startswith(".")] == []

    assert prepare(corpus, ByteTokenizer(), config, still).train.tokens == int(0.9 * (4 << 20))


def test_what_a_killed_process_left_is_replaced(tmp_path, text):
    """A half-made folder of a process that was killed does not get into the way."""
    files = prepared(tmp_path, text)
    partial = folder_of(files).with_name(f".{files.fingerprint}.partial")
    folder_of(files).rename(partial)

    assert tokens(prepared(tmp_path, text).train) == list(text.read_bytes())[:1350]
    assert not partial.exists()


def prepare_and_report(tmp_path, text, queue):
    started = time.monotonic()
    files = prepared(tmp_path, text)
    queue.put((files.fingerprint, time.monotonic() - started))


def test_two_processes_tokenize_once(tmp_path, text, monkeypatch):
    """Of two processes that start together one makes the files, and both have them."""
    made = multiprocessing.get_context("fork").Value("i", 0)
    real = preparation.tokenize

    def counted(*arguments):
        with made.get_lock():
            made.value += 1
        time.sleep(0.3)
        return real(*arguments)

    monkeypatch.setattr(preparation, "tokenize", counted)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=prepare_and_report, args=(tmp_path, text, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {queue.get(timeout=30)[0] for _ in processes}
    for process in processes:
        process.join(10)

    assert len(found) == 1
    assert made.value == 1


def test_unknown_character_in_a_later_corpus(tmp_path, text):
    """A corpus with a character that a given tokenizer lacks is refused, and leaves nothing."""
    config = config_for(tmp_path, text, tokenizer="char")
    with pytest.raises(DataError, match="'é'"):
        prepare(pulled(config), CharTokenizer("abc"), config, still)

    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_enough_windows(tmp_path, text):
    """A split with context_length + 1 tokens is enough; one token less is not."""
    files = prepared(tmp_path, text, split=(0.9, 0.1))
    require_windows(files, (0.9, 0.1), files.validation.tokens - 1)
    with pytest.raises(DataError, match="validation has 150 tokens and needs 151") as caught:
        require_windows(files, (0.9, 0.1), files.validation.tokens)

    for setting in ("data.corpus", "data.split=[0.9, 0.1]", "model.context_length=150"):
        assert setting in str(caught.value)


def test_a_split_without_share_may_be_empty(tmp_path, text):
    """A split that was given nothing needs nothing; train always does."""
    require_windows(prepared(tmp_path, text, split=(1.0, 0.0)), (1.0, 0.0), 10)
    with pytest.raises(DataError, match="train has 0 tokens and needs 11"):
        require_windows(prepared(tmp_path, text, split=(0.0, 1.0)), (0.0, 1.0), 10)


LARGE = """
    import sys
    from pathlib import Path
    from tests.unit.data_support import config_for, peak_memory, pulled, still
    from job.data.gpt2_files import gpt2_tokenizer
    from job.data.prepare import prepare

    folder, megabytes = Path(sys.argv[1]), int(sys.argv[2])
    config = config_for(folder, folder / "large.txt", tokenizer="gpt2", tokenizer_dir=sys.argv[3])
    files = prepare(pulled(config), gpt2_tokenizer(config, still), config, still)
    print(files.train.characters, peak_memory())
"""


@pytest.mark.parametrize("megabytes", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_text(tmp_path, gpt2_dir, megabytes, pytestconfig):
    """One text of 30 or 100 MB is tokenized within 256 MiB of memory."""
    words = published("tinyshakespeare.txt").read_text().split(" ")
    random.Random(megabytes).shuffle(words)
    once = " ".join(words)
    with (tmp_path / "large.txt").open("w") as file:
        for _ in range(megabytes * 1_000_000 // len(once)):
            file.write(once)
    characters, peak = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LARGE), str(tmp_path), str(megabytes), gpt2_dir],
        capture_output=True,
        text=True,
        check=True,
        cwd=pytestconfig.rootpath,
    ).stdout.split()[-2:]

    assert int(characters) > 0.89 * megabytes * 1_000_000 * 0.95
    assert int(peak) < 256  # MiB


def shard(folder, split, tokens, vocab_size=257):
    with ShardWriter(folder, split, token_type(vocab_size)) as writer:
        writer.write(np.array(tokens))
    return writer.paths[0]


def test_published_shards_are_read_as_they_are(tmp_path):
    """A corpus of token files is used in place, each file in the split that its name says."""
    train, validation = shard(tmp_path, "fineweb_train", [1, 2, 256]), shard(tmp_path, "fineweb_val", [3, 4])
    files = prepared(tmp_path, validation, train)

    assert files.train.paths == (train,)
    assert (tokens(files.train), tokens(files.validation)) == ([1, 2, 256], [3, 4])
    assert (files.train.documents, files.test.tokens) == (1, 0)
    assert not (tmp_path / "cache" / "tokens").exists()


def test_published_shards_of_another_tokenizer(tmp_path):
    """Token files with tokens that the tokenizer lacks are refused."""
    with pytest.raises(DataError, match=r"train_000000\.bin: token 300, but byte has 257 tokens"):
        prepared(tmp_path, shard(tmp_path, "train", [1, 300], 1000))


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_token_files_and_text_do_not_mix(tmp_path, text, tokenizer):
    """Token files beside text, or for a tokenizer that is made from text, are refused."""
    with pytest.raises(ConfigError, match="holds tokens"):
        prepared(tmp_path, text, shard(tmp_path, "train", [1, 2]), tokenizer=tokenizer)


def test_names_are_part_of_a_token_corpus(tmp_path):
    """The same shard under a name of another split is another corpus."""
    one, other = shard(tmp_path, "train", [1, 2]), shard(tmp_path, "test", [1, 2])

    assert pulled(config_for(tmp_path, one)).fingerprint != pulled(config_for(tmp_path, other)).fingerprint
