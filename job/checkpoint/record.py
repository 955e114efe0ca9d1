"""One line of a run's commit log: a small JSON value that carries its own hash.

Canonical form: UTF-8, sorted keys, no spaces, no NaN. `record_sha256` covers every other field, so a record that was
cut, bent or mixed up is noticed before anything in it is believed.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from job.infra.object_store import is_key

FORMAT = 1
Kind = Literal["fence", "checkpoint", "prune", "complete"]
_TERM = re.compile(r"(?:data|events)/(\d{10})-|log/(\d{12})\.json$")
_LARGEST = 4 << 20  # bytes of one record; a real one has a few thousand


class DamagedRecord(ValueError):
    """The bytes are not a record of this format, or not the ones that were written."""


def canonical(value: Any) -> bytes:
    """JSON bytes that are the same for equal values; numbers that JSON lacks become null."""
    return json.dumps(
        _finite(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One data object that a checkpoint consists of."""

    key: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """File name without the folders."""
        return self.key.rpartition("/")[2]

    @property
    def kind(self) -> str:
        """File name without the number of the rank that wrote it."""
        return re.sub(r"-\d+\.safetensors$", ".safetensors", self.name)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"key": self.key, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the log.

    Args:
        kind: fence (an attempt begins), checkpoint, prune (names records whose data goes) or complete.
        seq: Place in the log, dense from 1.
        term: seq of the fence of the attempt that wrote it.
        attempt: Random id of that attempt.
        facts: All other fields, JSON values.
    """

    kind: Kind
    seq: int
    term: int
    attempt: str
    facts: Mapping[str, Any]

    @property
    def content(self) -> bytes:
        """The bytes to store."""
        return canonical({**self._fields(), "record_sha256": self.sha256})

    @property
    def sha256(self) -> str:
        """Hash of every field but itself, in hex."""
        return hashlib.sha256(canonical(self._fields())).hexdigest()

    def _fields(self) -> dict[str, Any]:
        own = {"format": FORMAT, "kind": self.kind, "seq": self.seq, "term": self.term, "attempt": self.attempt}
        return {**self.facts, **own}

    @property
    def step(self) -> int:
        """Steps taken at a checkpoint or at completion."""
        return int(self.facts["step"])

    @property
    def chain(self) -> str:
        """The chain of steps up to here, in hex."""
        return str(self.facts["chain"])

    @property
    def val_loss(self) -> float | None:
        """Validation loss measured at this checkpoint's step, nats per token."""
        loss = self.facts["eval"].get("val_loss")
        return None if loss is None else float(loss)

    @property
    def objects(self) -> list[StoredObject]:
        """The data objects of a checkpoint."""
        return [StoredObject(**entry) for entry in self.facts.get("objects", [])]

    @property
    def size(self) -> int:
        """Bytes of all data objects."""
        return sum(stored.size for stored in self.objects)


def log_key(seq: int) -> str:
    """Key of record `seq`."""
    return f"log/{seq:012d}.json"


def term_of(key: str) -> int | None:
    """Term of the attempt that wrote, or would have written, an object of the run; None: the key is nobody's.

    A record's number is a term too: whoever meant to write it came before the fence of that number.
    """
    found = _TERM.match(key)
    return int(found[1] or found[2]) if found else None


def parse(content: bytes, seq: int) -> Record:
    """The record stored as number `seq`.

    Raises:
        DamagedRecord: Not JSON, not this format, a wrong number or hash, or not what a record of its kind says.
    """
    if len(content) > _LARGEST:
        raise DamagedRecord(f"record {seq} has {len(content)} bytes")
    try:
        fields = json.loads(content)
        claimed = fields.pop("record_sha256")
        record_format = fields.pop("format")
        known = {name: fields.pop(name) for name in ("kind", "seq", "term", "attempt")}
        record = Record(**known, facts=fields)
        own = record.sha256
        written = canonical({**record._fields(), "record_sha256": own})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRecord(f"record {seq} is not a record: {type(error).__name__}") from error
    if record_format != FORMAT:
        raise DamagedRecord(f"record {seq} has format {record_format}, this job reads {FORMAT}")
    if record.kind not in get_args(Kind) or record.seq != seq:
        raise DamagedRecord(f"record {seq} says it is {record.kind} {record.seq}")
    if own != claimed or written != content:  # the second: a name twice, a NaN for a null
        raise DamagedRecord(f"record {seq} does not match its own hash")
    if wrong := _wrong_facts(record):
        raise DamagedRecord(f"record {seq}: {', '.join(wrong)} cannot be what this job wrote")
    return record


def _wrong_facts(record: Record) -> list[str]:
    """Names of the fields that a record of its kind has not, or with a value of another kind."""
    facts = record.facts
    wrong = [name for name, fits in _REQUIRED[record.kind].items() if name not in facts or not fits(facts[name])]
    wrong += [name for name, fits in _OPTIONAL.items() if name in facts and not fits(facts[name])]
    own = {"seq": _is_count(record.seq), "term": _is_count(record.term), "attempt": isinstance(record.attempt, str)}
    return wrong + [name for name, fits in own.items() if not fits]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # a bool is an int too


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _is_object(value: Any, below: str) -> bool:
    """Whether it describes an object below this prefix, so that no record can have others deleted."""
    if not isinstance(value, Mapping) or value.keys() != {"key", "size", "sha256"}:
        return False
    key, sha256 = value["key"], value["sha256"]
    is_text = isinstance(key, str) and isinstance(sha256, str)
    return is_text and key.startswith(below) and is_key(key) and _is_count(value["size"])


def _are_files(value: Any) -> bool:
    if not isinstance(value, list) or not all(_is_object(entry, "data/") for entry in value):
        return False
    names = [StoredObject(**entry).name for entry in value]
    return bool(names) and len(set(names)) == len(names)


_REQUIRED: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "fence": {"reset": lambda value: type(value) is bool},
    "checkpoint": {
        "step": _is_count,
        "chain": lambda value: isinstance(value, str),
        "objects": _are_files,
        "events": lambda value: _is_object(value, "events/"),
        "prev_checkpoint_seq": lambda value: value is None or _is_count(value),
        "eval": lambda value: _is_mapping(value) and _is_number(value.get("val_loss")),
    },
    "prune": {"pruned": lambda value: isinstance(value, list) and all(map(_is_count, value))},
    "complete": {"step": _is_count},
}
_OPTIONAL: Mapping[str, Callable[[Any], bool]] = {
    "identity": _is_mapping,
    "config": lambda value: _is_mapping(value) and _is_mapping(value.get("checkpoint")),
    "numerics": _is_mapping,
    "imported": _is_mapping,
    "corpus": lambda value: _is_mapping(value) and _is_count(value.get("windows")),
    "data_offset": _is_count,
    "tokens": _is_count,
    "seconds": _is_number,
    "train_loss": _is_number,
    "val_loss": _is_number,
}
