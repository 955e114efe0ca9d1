"""Spoilt files: rejected by their hash, and where the hash was made to fit, loaded for what they say or rejected.

The cases are played in another process with a limit on its memory: one that crashes, hangs or grows is named.
"""

import hashlib
import json
import multiprocessing
import resource
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from job.checkpoint import history
from job.checkpoint.events import past_events
from job.checkpoint.record import canonical
from job.checkpoint.store import CheckpointStore
from job.data.alphabets import ByteTokenizer, CharTokenizer
from job.data.bpe import BpeTokenizer
from job.data.tokenizer import load_tokenizer
from job.errors import DataError
from job.infra.logs import configure_logging
from tests.chaos import evidence, reference, small_run
from tests.chaos.cases import ONLY, SCALE, SEED
from tests.chaos.harness import write_corpus
from tests.chaos.mutations import mutate
from tests.memory_store import MemoryObjectStore

MEMORY = 512 << 20  # bytes that a case may add
SECONDS = 2.0  # of CPU, for a case
SILENCE = 120.0  # seconds after which a case hangs
NEWEST = "log/000000000004.json"
_context = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run.make(write_corpus(tmp_path_factory.mktemp("corpus")))


def play(case, run, count):
    """Play this many cases in another process; what went wrong, one line a case."""
    numbers = [int(ONLY)] if ONLY else range(count)
    at, answer = _context.Value("l", -1), _context.SimpleQueue()
    process = _context.Process(target=_work, args=(case, run, numbers, at, answer))
    process.start()
    before = None
    while process.is_alive():
        process.join(timeout=SILENCE if before is None or at.value != before else 0)
        if process.is_alive() and at.value == before:
            process.kill()
            process.join()
        before = at.value
        if not answer.empty():
            break
    wrong = answer.get() if not answer.empty() else [(before, f"the process ended with {process.exitcode}")]
    process.join()
    evidence.add("mutated files", f"{case.__name__}: loaded wrongly or crashed", len(wrong))
    evidence.add("mutated files", f"{case.__name__}: rejected, or loaded as what they say", len(numbers) - len(wrong))
    return [f"{what}; replay: CHAOS_SEED={SEED} CHAOS_CASE={number}" for number, what in wrong]


def _work(case, run, numbers, at, answer):
    """In the child: the cases, one after the other, within limits."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    configure_logging("json", "error")
    learner, wrong = run.learner(), []
    for number in numbers:
        at.value = number
        began = time.process_time()
        try:
            case(run, learner, Random(f"{SEED}/{number}"))
        except AssertionError as error:
            wrong.append((number, str(error)))
        except BaseException as error:
            wrong.append((number, f"{type(error).__name__}: {str(error)[:200]}"))
        if (spent := time.process_time() - began) > SECONDS:
            wrong.append((number, f"took {spent:.1f} s"))
    answer.put(wrong)


def files_of_newest(run):
    """The newest checkpoint's objects, by name."""
    objects = json.loads(run.objects[NEWEST])["objects"]
    return {entry["key"].rpartition("/")[2]: entry["key"] for entry in objects}


def spoilt(run, name, pick):
    """A copy of the store with this file of the newest checkpoint spoilt; None when chance changed nothing."""
    key = files_of_newest(run)[name]
    others = [content for other, content in run.objects.items() if other.startswith("data/") and other != key]
    content = mutate(name, run.objects[key], others, pick)
    return None if content == run.objects[key] else (key, content)


def agreeing(objects, key, content):
    """The same objects with `content` in place, and the record's size and hash made to fit."""
    record = json.loads(objects[NEWEST])
    for entry in record["objects"]:
        if entry["key"] == key:
            entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {**objects, key: content, NEWEST: signed(record)}


def signed(record):
    """A record's bytes with its own hash made to fit."""
    record = {name: value for name, value in record.items() if name != "record_sha256"}
    return canonical({**record, "record_sha256": hashlib.sha256(canonical(record)).hexdigest()})


def with_the_old_hash(run, learner, pick):
    """A spoilt file under an unchanged record: the checkpoint before it is continued."""
    name = pick.choice([*files_of_newest(run), "record"])
    if name == "record":
        content = mutate("record.json", run.objects[NEWEST], [run.objects["log/000000000003.json"]], pick)
        change = None if content == run.objects[NEWEST] else (NEWEST, content)
    else:
        change = spoilt(run, name, pick)
    if change:
        found = small_run.continue_run(MemoryObjectStore({**run.objects, change[0]: change[1]}), learner)
        assert found == run.saved[-2], f"{name} was spoilt, and step {found.step} is continued"


def tensors_with_a_new_hash(run, learner, pick):
    """Spoilt tensors under a record that agrees with them: what the reference reads, or the checkpoint before."""
    name = pick.choice(["model.safetensors", "optimizer.safetensors"])
    if change := spoilt(run, name, pick):
        objects = agreeing(run.objects, *change)
        found = small_run.continue_run(MemoryObjectStore(objects), learner)
        files = [reference.read_tensors(objects[files_of_newest(run)[which]]) for which in
                 ("model.safetensors", "optimizer.safetensors")]  # fmt: skip
        likes = [reference.read_tensors(run.objects[files_of_newest(run)[which]]) for which in
                 ("model.safetensors", "optimizer.safetensors")]  # fmt: skip
        if found.step == run.saved[-1].step:
            assert all(map(reference.fits, files, likes)), f"{name} fits no more, and was loaded"
            assert found.tensors == reference.digest(*files), f"{name} was loaded as something else"
        else:
            assert found == run.saved[-2]


def record_with_a_new_hash(run, learner, pick):
    """A record that says something else, its own hash right: read for that, or passed over; never a bug."""
    text = mutate("record.json", run.objects[NEWEST], [run.objects["log/000000000003.json"]], pick)
    try:
        record = json.loads(text)
        content = signed(record)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return
    objects = MemoryObjectStore({**run.objects, NEWEST: content})
    found = small_run.continue_run(objects, learner)
    assert found.tensors in {saved.tensors for saved in run.saved[1:]}
    checkpoints = CheckpointStore(objects)
    checkpoints.log.refresh()
    newest = history.checkpoints(checkpoints.records)[-1]
    past_events(objects, checkpoints.records, newest)
    history.best(checkpoints.records)


def events_spoilt(run, learner, pick):
    """A spoilt segment of events costs its events, no others, and never a start; nothing of it is believed."""
    checkpoints = CheckpointStore(MemoryObjectStore(run.objects))
    checkpoints.log.refresh()
    newest = history.checkpoints(checkpoints.records)[-1]
    whole = past_events(checkpoints.objects, checkpoints.records, newest)
    key = newest.facts["events"]["key"]
    content = mutate("events.jsonl", run.objects[key], [b'{"a":1}\n'], pick)
    if content == run.objects[key]:
        return
    objects = MemoryObjectStore({**run.objects, key: content})
    assert past_events(objects, checkpoints.records, newest) == whole[:-1]
    agreed = {**newest.facts, "events": {"key": key, "size": 0, "sha256": hashlib.sha256(content).hexdigest()}}
    believed = past_events(objects, checkpoints.records, type(newest)("checkpoint", 4, 1, newest.attempt, agreed))
    assert all(type(event["step"]) is int for event in believed)


BPE = BpeTokenizer("tiny", r"\w+|\W", {bytes([n]): n for n in range(256)} | {b"ab": 256}, {"<|endoftext|>": 257})
TOKENIZERS = (ByteTokenizer(), CharTokenizer("héllo wörld 𝄞"), BPE)


def tokenizer_spoilt(run, learner, pick):
    """A spoilt tokenizer is refused as DataError, or is what its JSON says, and works."""
    whole = pick.choice(TOKENIZERS)
    content = mutate("tokenizer.json", whole.to_json(), [other.to_json() for other in TOKENIZERS], pick)
    try:
        tokenizer = load_tokenizer(content)
    except DataError:
        return
    assert tokenizer.to_json() == content, f"{content[:80]!r} was read as something else"
    with suppress(DataError):  # a character that its alphabet lacks
        assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


SHARES = [
    (with_the_old_hash, 800),
    (tensors_with_a_new_hash, 500),
    (record_with_a_new_hash, 300),
    (events_spoilt, 200),
    (tokenizer_spoilt, 200),
]


@pytest.mark.parametrize(("case", "count"), SHARES, ids=lambda value: getattr(value, "__name__", ""))
def test_spoilt_files(run, case, count):
    """2,000 files: none is loaded for something that it is not; no crash, no hang, no case above its limits."""
    assert play(case, run, count) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("case", "count"), SHARES, ids=lambda value: getattr(value, "__name__", ""))
def test_spoilt_files_at_length(run, case, count):
    """200,000 files, in the same shares."""
    assert play(case, run, int(100 * count * SCALE)) == []
