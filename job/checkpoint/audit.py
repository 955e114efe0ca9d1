"""What is wrong with a log, as a pure function over its records: order, ownership, links and what they name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from job.checkpoint.record import Record, log_key
from job.config import identity_digest


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage: what it is, where it is, what should be there and what is."""

    what: str
    where: str
    expected: Any
    got: Any

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.what}: {self.where}: expected {self.expected}, got {self.got}"


def log_problems(records: Sequence[Record], damaged: Mapping[int, str]) -> list[Problem]:
    """What is wrong with the log, in its order.

    A record that cannot be read takes away what its neighbours say about it; nothing else is forgiven.

    Args:
        records: Those that could be read, by rising seq.
        damaged: seq -> what is wrong, for the others.
    """
    unread = [(seq, Problem("record", log_key(seq), "a whole record", reason)) for seq, reason in damaged.items()]
    found: list[tuple[int, Problem]] = list(unread)
    before: Record | None = None
    fence: Record | None = None
    earlier: dict[int, Record] = {}
    for record in records:
        fence = record if record.kind == "fence" else fence
        problems = [
            *([] if record.seq - 1 in damaged else _link(record, before)),
            *_owner(record, fence, damaged),
            *_named(record, earlier, damaged),
        ]
        found += [(record.seq, problem) for problem in problems]
        earlier[record.seq] = before = record
    return [problem for _, problem in sorted(found, key=lambda pair: pair[0])]


def _link(record: Record, before: Record | None) -> list[Problem]:
    wanted = before.sha256 if before else None
    return _unequal("prev_record_sha256", record, wanted, record.facts.get("prev_record_sha256"))


def _owner(record: Record, fence: Record | None, damaged: Mapping[int, str]) -> list[Problem]:
    """A record belongs to the newest fence before it, which may be one that cannot be read."""
    owned_since = fence.seq if fence else 0
    if any(owned_since < seq < record.seq for seq in damaged) and record.term in damaged:
        return []
    if fence is None:
        return [Problem("term", log_key(record.seq), "a fence before it", record.term)]
    wanted, got = [fence.seq, fence.attempt], [record.term, record.attempt]
    return _unequal("term and attempt", record, wanted, got)


def _named(record: Record, earlier: Mapping[int, Record], damaged: Mapping[int, str]) -> list[Problem]:
    """What a record says about others, and about itself."""
    facts = record.facts
    if record.kind == "prune":
        return [
            problem for seq in facts["pruned"] for problem in _is_checkpoint("pruned", record, seq, earlier, damaged)
        ]
    if record.kind == "complete":
        return _completes(record, earlier, damaged)
    if record.kind != "checkpoint":
        return []
    found = _unequal("identity_sha256", record, identity_digest(facts["identity"]), facts["identity_sha256"])
    before = facts["prev_checkpoint_seq"]
    if before is None:
        return found
    found += _is_checkpoint("prev_checkpoint_seq", record, before, earlier, damaged)
    if before in earlier and not found and earlier[before].step > record.step:
        found.append(Problem("step", log_key(record.seq), f"at least {earlier[before].step}", record.step))
    return found


def _completes(record: Record, earlier: Mapping[int, Record], damaged: Mapping[int, str]) -> list[Problem]:
    seq = record.facts["checkpoint_seq"]
    if (found := _is_checkpoint("checkpoint_seq", record, seq, earlier, damaged)) or seq in damaged:
        return found
    last = earlier[seq]
    return _unequal("step and chain", record, [last.step, last.chain], [record.step, record.chain])


def _is_checkpoint(
    field: str, record: Record, seq: int, earlier: Mapping[int, Record], damaged: Mapping[int, str]
) -> list[Problem]:
    kind = earlier[seq].kind if seq in earlier else "none"
    if kind == "checkpoint" or (seq in damaged and seq < record.seq):
        return []
    return [Problem(field, log_key(record.seq), "a checkpoint before it", f"{seq}, which is {kind}")]


def _unequal(field: str, record: Record, expected: Any, got: Any) -> list[Problem]:
    return [] if got == expected else [Problem(field, log_key(record.seq), expected, got)]
