"""Every order in which two programs can call one object store, played on a store in memory.

A program is deterministic: what it does next follows from the answers it has had. So its state is the row of those
answers, and running it again with them, up to the call that has no answer yet, shows that call without any thread.
States that were reached before are not entered again, which makes "every order" thousands of states and not 10^30.
A crash needs no move of its own: a program that is never called again has crashed, and every state is looked at.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.errors import StorageError
from job.infra.object_store import Content

Answer = Any
Program = Callable[["ScriptedStore"], str]  # what it came to, in a word


class _NoAnswerYet(BaseException):
    def __init__(self, verb: str, key: str, content: bytes = b"") -> None:
        self.call = (verb, key, content)


class ScriptedStore:
    """Gives the answers of a script; the first call beyond it ends the program."""

    uri = "memory://store"

    def __init__(self, script: list[Answer]) -> None:
        self._script = iter(script)

    def _answer(self, *call: Any) -> Any:
        for answer in self._script:
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise _NoAnswerYet(*call)

    def put(self, key: str, content: Content) -> str:
        whole = b"".join(content)
        self._answer("put", key, whole)
        return hashlib.sha256(whole).hexdigest()

    def create(self, key: str, content: bytes) -> bool:
        return bool(self._answer("create", key, content))

    def read(self, key: str) -> bytes:
        return bytes(self._answer("read", key))

    def get(self, key: str, target: Path) -> str:
        content = self.read(key)
        target.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def digest(self, key: str) -> str:
        return hashlib.sha256(self.read(key)).hexdigest()

    def size(self, key: str) -> int:
        return int(self._answer("size", key))

    def keys(self, prefix: str) -> list[str]:
        return list(self._answer("keys", prefix))

    def delete(self, key: str) -> None:
        self._answer("delete", key)

    def unfinished(self, prefix: str) -> list[str]:
        return []  # a write is one move here

    def abandon(self, key: str) -> None:
        raise AssertionError(f"{key} has no unfinished writes")


@dataclass(eq=False)
class Place:
    """Where a program is: its answers so far, and what follows from them."""

    program: Program
    before: "Place | None" = None
    answer: Answer = None
    call: tuple[str, str, bytes] | None = None
    outcome: str | None = None
    _after: dict[Any, "Place"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        script, place = [], self
        while place.before is not None:
            script.append(place.answer)
            place = place.before
        try:
            self.outcome = self.program(ScriptedStore(script[::-1]))
        except _NoAnswerYet as pause:
            self.call = pause.call

    def after(self, answer: Answer) -> "Place":
        """Where it is once its call has been answered."""
        kind = repr(answer) if isinstance(answer, Exception) else answer
        if kind not in self._after:
            self._after[kind] = Place(self.program, self, answer)
        return self._after[kind]


Objects = dict[str, bytes]
State = tuple[tuple[Place, ...], int, int]  # where each program is, which content the store has, faults left


class Explorer:
    """All states that programs on one store can be in.

    Args:
        programs: What runs at the same time.
        check: Called once with every content of the store that is reached; raises AssertionError.
        objects: What the store holds at first.
        lost_answers: How many conditional writes may be made without their writer being told.
    """

    def __init__(
        self, programs: list[Program], check: Callable[[Objects], None], objects: Objects, lost_answers: int
    ) -> None:
        self._check = check
        self._contents: list[Objects] = []
        self._numbers: dict[frozenset[tuple[str, bytes]], int] = {}
        self._moves: dict[tuple[int, tuple[str, str, bytes]], tuple[int, Answer]] = {}
        self._came_from: dict[State, tuple[State, int] | None] = {}
        self._start: State = (tuple(Place(program) for program in programs), self._number(objects), lost_answers)

    def run(self) -> Iterator[tuple[tuple[str, ...], Objects]]:
        """Every way it can end: what each program came to, and what the store then holds."""
        stack = [self._start]
        self._came_from[self._start] = None
        while stack:
            state = stack.pop()
            places, number, _ = state
            if all(place.outcome is not None for place in places):
                yield tuple(str(place.outcome) for place in places), self._contents[number]
            for who, following in self._following(state):
                if following not in self._came_from:
                    self._came_from[following] = (state, who)
                    stack.append(following)

    @property
    def states(self) -> int:
        """States that were reached."""
        return len(self._came_from)

    @property
    def contents(self) -> list[Objects]:
        """Contents of the store that were reached."""
        return self._contents

    def _following(self, state: State) -> Iterator[tuple[int, State]]:
        places, number, faults = state
        for who, place in enumerate(places):
            if place.call is None:
                continue
            try:
                after, answer = self._move(number, place.call)
            except AssertionError as error:
                raise AssertionError(f"{error}\nafter {self.schedule(state)} {who}") from error
            yield who, ((*places[:who], place.after(answer), *places[who + 1 :]), after, faults)
            if faults and place.call[0] == "create" and place.call[1].startswith("log/"):
                lost = place.after(StorageError("the answer was lost"))
                yield who, ((*places[:who], lost, *places[who + 1 :]), after, faults - 1)

    def _move(self, number: int, call: tuple[str, str, bytes]) -> tuple[int, Answer]:
        if (number, call) not in self._moves:
            objects = dict(self._contents[number])
            answer = _apply(objects, *call)
            self._moves[number, call] = (self._number(objects), answer)
        return self._moves[number, call]

    def _number(self, objects: Objects) -> int:
        content = frozenset(objects.items())
        if content not in self._numbers:
            self._check(objects)
            self._numbers[content] = len(self._contents)
            self._contents.append(objects)
        return self._numbers[content]

    def schedule(self, state: State) -> str:
        """Who was called in which order to get there: the one-line replay."""
        order = []
        while (before := self._came_from[state]) is not None:
            state, who = before
            order.append(str(who))
        return "".join(reversed(order))


def _apply(objects: Objects, verb: str, key: str, content: bytes) -> Answer:
    """What the store answers; `objects` becomes what it then holds."""
    if verb == "keys":
        return tuple(sorted(name for name in objects if name.startswith(key)))
    if verb == "put" or (verb == "create" and key not in objects):
        objects[key] = content
        return True
    if verb == "create":
        return False
    if verb == "delete":
        objects.pop(key, None)
        return None
    if key not in objects:
        return KeyError(key)
    return objects[key] if verb == "read" else len(objects[key])
