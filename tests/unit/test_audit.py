"""The audit of a log and of checkpoints: what it holds against a run whose every hash is right."""

import hashlib
import json
from dataclasses import replace

import pytest
from safetensors.numpy import save

from job.checkpoint.audit import log_problems
from job.checkpoint.choice import open_run
from job.checkpoint.record import StoredObject
from job.checkpoint.store import Checkpoint
from job.checkpoints.verify import check_checkpoint, leftovers, verified
from job.config import identity_digest
from tests.memory_store import MemoryObjectStore
from tests.unit.checkpoint_support import Wrapped, claimed

TOKENIZER = b'{"kind":"byte"}'
OWN = {"seed": 1}


@pytest.fixture
def objects():
    return MemoryObjectStore()


def checkpoint_at(step, chain=None, **files):
    """A checkpoint as a run saves it, with other files where they are given."""
    state = {"step": step, "chain": chain or f"{step:064x}", "data_offsets": []}
    whole = {
        "model.safetensors": [save({})],
        "optimizer.safetensors": [save({})],
        "state.json": [json.dumps(state).encode()],
        "tokenizer.json": [TOKENIZER],
        **{name.replace("_", "."): content for name, content in files.items()},
    }
    facts = {"chain": f"{step:064x}", "data_offset": 0, "eval": {"val_loss": None}}
    facts |= {"identity": OWN, "identity_sha256": identity_digest(OWN)}
    facts |= {"tokenizer_sha256": hashlib.sha256(TOKENIZER).hexdigest()}
    events = json.dumps({"event": "step", "step": step, "attempt": 1, "number": step}).encode()
    return Checkpoint(step=step, files=whole, events=events, facts=facts)


@pytest.fixture
def records(objects):
    """Two attempts: fence, two checkpoints; fence, a checkpoint, a prune, completion."""
    first = claimed(objects)
    saved = [first.save(checkpoint_at(step)).record for step in (1, 2)]
    second = claimed(objects)
    second.continue_from(saved[1])
    last = second.save(checkpoint_at(3)).record
    second.prune(saved[:1])
    second.complete({"step": 3, "checkpoint_seq": last.seq, "chain": last.chain})
    return second.records


def test_a_log_as_it_is_written_has_no_problems(records):
    """Fences, saves, a prune and completion by two attempts pass."""
    assert log_problems(records, {}) == []


def bent(records, seq, **facts):
    """The log with other facts in one record; whoever links to it follows."""
    result, moved = [], {}
    for record in records:
        changed = replace(record, facts={**record.facts, **(facts if record.seq == seq else {})})
        if record.seq != seq and (new := moved.get(changed.facts["prev_record_sha256"])):
            changed = replace(changed, facts={**changed.facts, "prev_record_sha256": new})
        moved[record.sha256] = changed.sha256
        result.append(changed)
    return result


WRONG = {
    "a link to another record": (3, {"prev_record_sha256": "0" * 64}, "prev_record_sha256"),
    "another identity than its own": (5, {"identity": {"seed": 2}}, "identity_sha256"),
    "a checkpoint after one that is none": (5, {"prev_checkpoint_seq": 4}, "prev_checkpoint_seq"),
    "a checkpoint after one to come": (3, {"prev_checkpoint_seq": 5}, "prev_checkpoint_seq"),
    "fewer steps than the one before": (3, {"step": 0}, "step"),
    "a prune of a fence": (6, {"pruned": [1]}, "pruned"),
    "completion of another step": (7, {"step": 4}, "step and chain"),
    "completion of a fence": (7, {"checkpoint_seq": 4}, "checkpoint_seq"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_fact_is_named(records, case):
    """A record with a right hash and a wrong fact is one problem, at its place."""
    seq, facts, what = WRONG[case]
    found = log_problems(bent(records, seq, **facts), {})

    assert [(problem.what, problem.where) for problem in found] == [(what, f"log/{seq:012d}.json")]


def test_a_record_of_an_attempt_that_was_fenced_is_named(records):
    """What the first attempt writes after the second one's fence does not belong there."""
    late = [*records[:4], replace(records[4], term=1, attempt=records[0].attempt)]
    found = log_problems(late, {})

    assert [(p.what, p.expected, p.got) for p in found] == [
        ("term and attempt", [4, records[3].attempt], [1, records[0].attempt])
    ]


@pytest.mark.parametrize("lost", range(1, 8))
def test_a_damaged_record_is_one_problem(records, lost):
    """Whichever record cannot be read, its neighbours are not blamed for it."""
    left = [record for record in records if record.seq != lost]

    assert [problem.got for problem in log_problems(left, {lost: "bent"})] == ["bent"]


def test_a_missing_record_that_nobody_reports_is_noticed(records):
    """Two records that do not follow each other do not link."""
    left = [record for record in records if record.seq != 6]

    assert [problem.what for problem in log_problems(left, {})] == ["prev_record_sha256"]


def checked(objects, **files):
    """What is wrong with a checkpoint that was saved with these files, each with its right hash."""
    record = claimed(objects).save(checkpoint_at(4, **files)).record
    return [(problem.what, problem.where.rpartition("/")[2]) for problem in check_checkpoint(objects, record)]


def test_a_whole_checkpoint_has_no_problems(objects):
    """What was saved as it should be passes."""
    assert checked(objects) == []


def test_tensors_that_were_saved_damaged_are_found(objects):
    """A right hash does not make a tensor file of any bytes."""
    assert checked(objects, optimizer_safetensors=[b"moments"]) == [("safetensors", "optimizer.safetensors")]


def test_state_of_another_step_is_found(objects):
    """state.json and the record must speak of the same step and chain."""
    state = json.dumps({"step": 5, "chain": f"{4:064x}", "data_offsets": []}).encode()

    assert checked(objects, state_json=[state]) == [("step", "state.json")]


def test_another_tokenizer_is_found(objects):
    """The tokenizer must be the one that the record names."""
    record = claimed(objects).save(checkpoint_at(4, tokenizer_json=[b"{}"])).record

    assert [problem.what for problem in check_checkpoint(objects, record)] == ["tokenizer_sha256"]


def test_events_of_later_steps_are_found(objects):
    """A checkpoint carries no event of a step beyond its own."""
    record = claimed(objects).save(checkpoint_at(4)).record
    early = replace(record, facts={**record.facts, "step": 3})

    assert "events" in [problem.what for problem in check_checkpoint(objects, early)]


def test_leftovers_are_of_earlier_attempts_and_named_by_no_record(objects):
    """Cut saves and cut deletions are listed; what stands, what is under way and what is strange is not."""
    first = claimed(objects)
    pruned = first.save(checkpoint_at(1)).record
    second = claimed(objects)
    second.save(checkpoint_at(2))
    second.prune([pruned])
    facts = f"events/0000000001-{first.attempt}/facts.jsonl"
    cut, under_way = "data/0000000001-dead/s000000000009/state.json", f"data/0000000003-{second.attempt}/s9/state.json"
    for key in (facts, cut, under_way, "data/strange/thing"):
        objects.put(key, [b"x"])

    assert leftovers(second) == sorted([cut, *(stored.key for stored in pruned.objects)])


def test_a_segment_is_read_back_like_any_object(objects):
    """Events whose hash is not the record's are damage, and say what was expected and found."""
    record = claimed(objects).save(checkpoint_at(4)).record
    segment = StoredObject(**record.facts["events"])
    objects.objects[segment.key] = b"x" * segment.size
    problem = check_checkpoint(objects, record)[-1]

    assert (problem.what, problem.where, problem.expected) == ("sha256", segment.key, segment.sha256)


def test_what_is_bent_on_the_way_is_no_damage(objects):
    """An object that comes bent at its first read is read again, as it is when a run is continued."""
    record, bent = claimed(objects).save(checkpoint_at(4)).record, []

    def get(key, target):
        if key in bent:
            return objects.get(key, target)
        bent.append(key)
        target.write_bytes(b"bent")
        return hashlib.sha256(b"bent").hexdigest()

    assert check_checkpoint(Wrapped(objects, get=get), record) == []
    assert len(bent) == len(record.objects) + 1  # the events too


def test_a_checkpoint_that_is_pruned_while_it_is_verified_is_no_damage(objects):
    """A job may prune beside the one who looks: what its log no longer holds is left out."""
    owner = claimed(objects)
    saved = [owner.save(checkpoint_at(step)).record for step in (1, 2)]
    reader = open_run(objects)
    owner.prune(saved[:1])
    for stored in saved[0].objects:
        objects.delete(stored.key)

    assert [(record.step, problems) for record, problems in verified(reader, saved)] == [(2, [])]
