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
    return Record("checkpoint", seq, 1, "ab" * 16, facts)


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
    with pytest.raises(DamagedRecord, match="says it is checkpoint 3"):
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
