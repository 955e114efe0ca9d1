"""Records of the commit log: canonical, self-hashed, refused when anything is off."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.checkpoint.record import DamagedRecord, Record, canonical, log_key, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def record(seq=3, **facts):
    return Record("fence", seq, seq, "ab" * 16, {"reset": False, **facts})


@given(st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=4))
def test_a_record_comes_back_as_it_was_written(facts):
    """Parsing the content of a record gives an equal content and hash."""
    facts = {f"x{name}": value for name, value in facts.items()}
    written = record(**facts)
    read = parse(written.content, 3)

    assert (read.content, read.sha256) == (written.content, written.sha256)


def test_every_flipped_bit_is_noticed():
    """No single bit of a record can change without it being rejected."""
    content = record(step=7, chain="00").content
    for position in range(len(content) * 8):
        bent = bytearray(content)
        bent[position // 8] ^= 1 << position % 8
        with pytest.raises(DamagedRecord):
            parse(bytes(bent), 3)


def test_every_cut_is_noticed():
    """No beginning of a record is taken for a record."""
    content = record(step=7).content
    for length in range(len(content)):
        with pytest.raises(DamagedRecord):
            parse(content[:length], 3)


def test_a_record_in_another_place_is_rejected():
    """A record copied to another number of the log is not that record."""
    with pytest.raises(DamagedRecord, match="says it is fence 3"):
        parse(record(seq=3).content, 4)


def test_another_format_is_named():
    """A record of a later format is refused with both numbers."""
    later = json.loads(record().content) | {"format": 2}
    with pytest.raises(DamagedRecord, match="format 2, this job reads 1"):
        parse(canonical(later), 3)


def test_deep_nesting_is_rejected():
    """JSON nested beyond reason is damage, not a crash."""
    with pytest.raises(DamagedRecord):
        parse(b"[" * 100_000, 3)


def test_numbers_json_lacks_become_null():
    """A loss that is not finite is written as null."""
    assert canonical({"loss": float("nan"), "all": [float("inf")]}) == b'{"all":[null],"loss":null}'


def test_log_keys_sort_by_number():
    """Names of records sort as their numbers do."""
    assert sorted([log_key(10), log_key(9), log_key(100)]) == [log_key(9), log_key(10), log_key(100)]


CHECKPOINT = {
    "step": 7,
    "chain": "00",
    "objects": [{"key": "data/1-a/s7/model.safetensors", "size": 5, "sha256": "00"}],
    "events": {"key": "events/1-a/s7.jsonl", "size": 0, "sha256": "00"},
    "prev_checkpoint_seq": None,
    "eval": {"val_loss": 1.5},
}


def written(**facts):
    """The bytes of a checkpoint's record that says this too; its hash is right."""
    return Record("checkpoint", 3, 1, "ab" * 16, {**CHECKPOINT, **facts}).content


def an_object(**changed):
    return [{**CHECKPOINT["objects"][0], **changed}]


def test_a_whole_checkpoint_record_is_read():
    """What the tests below spoil is a record as it should be."""
    assert parse(written(), 3).step == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "7"),
        ("step", True),
        ("step", -1),
        ("step", 7.0),
        ("chain", 7),
        ("objects", []),
        ("objects", {}),
        ("objects", an_object(key="log/000000000001.json")),
        ("objects", an_object(key="data/../log/000000000001.json")),
        ("objects", an_object(key=["data/a"])),
        ("objects", an_object(size=-1)),
        ("objects", an_object(etag="0")),
        ("objects", an_object() + an_object(key="data/1-a/s8/model.safetensors")),
        ("events", an_object(key="events")[0]),
        ("prev_checkpoint_seq", "2"),
        ("eval", None),
        ("eval", {"val_loss": "1.5"}),
        ("identity", []),
        ("config", {"checkpoint": 3}),
        ("numerics", "cpu"),
        ("corpus", {"windows": None}),
    ],
)
def test_a_record_with_a_right_hash_must_say_what_records_say(name, value):
    """Fields of another kind are damage, and so is a checkpoint that names others' objects or two of one name."""
    with pytest.raises(DamagedRecord, match=f"record 3: {name} cannot be"):
        parse(written(**{name: value}), 3)


@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_record_lacks_nothing(name):
    """Each of the fields that a resume needs must be there."""
    facts = {key: value for key, value in CHECKPOINT.items() if key != name}
    with pytest.raises(DamagedRecord, match=f"record 3: {name} cannot be"):
        parse(Record("checkpoint", 3, 1, "ab" * 16, facts).content, 3)


@pytest.mark.parametrize(
    "other",
    [
        lambda content: content.replace(b":null", b":NaN"),
        lambda content: content.replace(b":null", b":1e999"),
        lambda content: content.replace(b'"step":7', b'"step":6,"step":7'),
        lambda content: content + b"\n",
        lambda content: content.replace(b'"seq":3', b'"seq":3.0'),
        lambda content: content.replace(b'"chain":"00"', b'"chain":"\\ud800"'),
        lambda content: content.replace(b'"chain":"00"', b'"chain":' + b"[" * 800 + b"]" * 800),
    ],
)
def test_a_record_is_the_bytes_that_were_written(other):
    """Another text for the same values is damage: what was read would not be what was hashed."""
    content = other(written())
    assert content != written()
    with pytest.raises(DamagedRecord):
        parse(content, 3)
