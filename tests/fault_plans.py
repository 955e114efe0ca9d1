"""What the fault proxy does to a request, and plans that choose it: by predicate, by place in time, or by a seed.

A plan is a function from a request to a fault. It is called for one request at a time, in the order of arrival.
"""

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

Operation = Literal["LIST", "GET", "HEAD", "PUT", "POST", "DELETE"]
_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_BUCKET = re.compile(r"^/[^/]+/?")
_FOLDER = re.compile(r"data/[^/]+/[^/]+/")


@dataclass(frozen=True)
class Request:
    """A request as the proxy sees it.

    Args:
        number: Place among all requests, from 1.
        key: The object's key in its bucket; a listing's prefix.
        headers: Names in lower case.
    """

    number: int
    method: str
    target: str
    key: str
    headers: Mapping[str, str]

    @classmethod
    def parse(cls, number: int, head: bytes) -> "Request":
        """From the bytes of its head."""
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        parts = urlsplit(target)
        key = _BUCKET.sub("", unquote(parts.path)) or parse_qs(parts.query).get("prefix", [""])[0]
        return cls(number, method, target, key, headers)

    @property
    def query(self) -> dict[str, str]:
        """The target's parameters."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def operation(self) -> Operation:
        """The method, or LIST for the listing of a bucket."""
        return "LIST" if self.method == "GET" and "list-type=" in self.target else self.method  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The key below the run's prefix."""
        return self.key.partition("/")[2]

    @property
    def same(self) -> str:
        """What this request has in common with the same one of another run: no random ids."""
        return f"{self.operation} {_ATTEMPT.sub('*', self.name)}"


When = Callable[[Request], bool]
Edit = Callable[[Request, bytes], bytes]


@dataclass(frozen=True)
class Fault:
    """What happens to a request.

    Args:
        kind: Its name in logs and counts.
        way: How the proxy goes about it.
        status: Of the answer given in the server's place.
        code: S3's name for that answer; empty: a page that is not from S3.
        seconds: How long nothing moves; None: until the client hangs up.
        rate: Bytes a second.
        edit: Makes another body of the answer's.
        act: Called with the request when the fault strikes: once the server has done it, or else first of all.
    """

    kind: str
    way: Literal["pass", "refuse", "reset_before", "reset_after", "stall", "truncate", "slow", "edit"] = "pass"
    status: int = 0
    code: str = ""
    seconds: float | None = None
    rate: float = 0.0
    edit: Edit | None = None
    act: Callable[[Request], object] | None = None


def refuse(status: int, code: str) -> Fault:
    """S3 answers with an error; the request is not carried out."""
    return Fault(f"{status} {code}".strip(), "refuse", status=status, code=code)


def stall(seconds: float | None = None) -> Fault:
    """Nothing moves for so long, then all goes well."""
    return Fault("stall", "stall", seconds=seconds)


def slow(rate: float) -> Fault:
    """Bodies move at `rate` bytes a second."""
    return Fault("slow", "slow", rate=rate)


def edited(kind: str, edit: Edit) -> Fault:
    """The answer's body is another one; status and headers stay."""
    return Fault(kind, "edit", edit=edit)


def with_act(fault: Fault, act: Callable[[Request], object]) -> Fault:
    """`fault`, and something else done at its moment."""
    return dataclasses.replace(fault, act=act)


def _bend(_: Request, body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body


OK = Fault("ok")
RESET_BEFORE = Fault("reset_before", "reset_before")  # the request never reaches the server
RESET_AFTER = Fault("reset_after", "reset_after")  # it is carried out, and the answer is lost
TRUNCATE = Fault("truncate", "truncate")  # the body breaks off in its middle: a read's answer, a write's request
WRONG = edited("wrong", _bend)  # a body of the same length with one bit bent
BUSY = refuse(503, "SlowDown")
FORBIDDEN = refuse(403, "AccessDenied")

Plan = Callable[[Request], Fault]


def calm(request: Request) -> Fault:
    """No fault at all."""
    return OK


def asks(*operations: Operation, key: str = "") -> When:
    """Whether a request is one of these operations, on a name (without the run's prefix) that matches `key`."""
    pattern = re.compile(key)
    return lambda request: request.operation in operations and pattern.match(request.name) is not None


def commits(request: Request) -> bool:
    """Whether this is the PUT of a record."""
    return asks("PUT", key="log/")(request)


class Rule:
    """A fault for requests that match; only for some of them when numbers (from 1) are given."""

    def __init__(self, fault: Fault, when: When, numbers: Iterable[int] | None = None) -> None:
        self._fault, self._when, self._seen = fault, when, 0
        self._numbers = None if numbers is None else set(numbers)

    def __call__(self, request: Request) -> Fault:
        if not self._when(request):
            return OK
        self._seen += 1
        return self._fault if self._numbers is None or self._seen in self._numbers else OK


class First:
    """The fault meets each key once, at its first request that matches; what repeats it comes through."""

    def __init__(self, fault: Fault, when: When) -> None:
        self._fault, self._when = fault, when
        self._met: set[str] = set()

    def __call__(self, request: Request) -> Fault:
        if not self._when(request) or request.key in self._met:
            return OK
        self._met.add(request.key)
        return self._fault


class Since:
    """The fault meets every request from the first that matches."""

    def __init__(self, fault: Fault, when: When) -> None:
        self._fault, self._when, self._begun = fault, when, False

    def __call__(self, request: Request) -> Fault:
        self._begun = self._begun or self._when(request)
        return self._fault if self._begun else OK


class Outage:
    """The store is away from the beginning of save `first` (from 1) until `count` saves have been tried."""

    def __init__(self, fault: Fault, first: int, count: int) -> None:
        self._fault, self._away = fault, range(first, first + count)
        self._folders: set[str] = set()

    def __call__(self, request: Request) -> Fault:
        if request.operation in {"PUT", "POST"} and (folder := _FOLDER.match(request.name)):
            self._folders.add(folder[0])
        return self._fault if len(self._folders) in self._away else OK


class Weather:
    """Faults at a rate, drawn from a seed: what the nth request of a name meets does not depend on the order of others.

    Args:
        seed: Of every draw.
        rate: Part of the requests that meet a fault.
        kinds: Fault -> weight, for requests that the fault can meet.
    """

    def __init__(self, seed: int, rate: float, kinds: Mapping[Fault, float]) -> None:
        self._seed, self._rate, self._kinds = seed, rate, kinds
        self._times: Counter[str] = Counter()

    def __call__(self, request: Request) -> Fault:
        self._times[request.same] += 1
        draw = random.Random(f"{self._seed} {request.same} {self._times[request.same]}")
        if draw.random() >= self._rate:
            return OK
        kinds = {fault: weight for fault, weight in self._kinds.items() if _can_meet(fault, request)}
        return draw.choices(list(kinds), list(kinds.values()))[0]

    def __str__(self) -> str:
        return f"seed {self._seed}, {self._rate:.0%} of requests"


def _can_meet(fault: Fault, request: Request) -> bool:
    """A body is bent only where hashes are promised to notice: an object's, on the way back."""
    if fault.way == "edit":
        return request.operation == "GET"
    return fault.way != "truncate" or request.operation in {"GET", "LIST", "PUT"}


def every_kind(stalled: float = 5.0, rate: float = 400_000) -> dict[Fault, float]:
    """Faults of every kind that a network or a busy store has, and their weights."""
    return {
        BUSY: 1,
        refuse(500, "InternalError"): 1,
        RESET_BEFORE: 1,
        RESET_AFTER: 1,
        stall(stalled): 0.5,
        TRUNCATE: 2,
        slow(rate): 1,
        WRONG: 5,
    }
