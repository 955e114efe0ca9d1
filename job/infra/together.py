"""Several processes that train a run, and what they say to each other: JSON values, never pickles."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from job.errors import Interrupted, JobError, UnreachableError
from job.infra.meeting import wait_for_all, wait_for_first
from job.infra.peers import TOGETHER, Peers, Store, error_of, plain
from job.infra.place import Place
from job.infra.ranks import ALONE, Ranks, Vote
from job.infra.signals import StopSignal

T = TypeVar("T")
_FOREVER = timedelta(days=30)  # a collective may wait for a download; whether the others live is said elsewhere
_LOOK = 0.01  # seconds between two looks into the store


class _Asked:
    """A vote among several: an all-reduce on the CPU, under way beside the step."""

    def __init__(self, flag: bool, group: dist.ProcessGroup) -> None:
        self._flags = torch.tensor(int(flag), dtype=torch.int32)
        self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=group, async_op=True)

    def any(self) -> bool:
        self._work.wait()
        return bool(self._flags)


class Together:
    """Processes that have found each other; collectives of theirs are on the CPU.

    Args:
        store: A connection for `confer` alone.
        group: For everything else here; torch's own group is the model's.
    """

    def __init__(self, place: Place, store: Store, group: dist.ProcessGroup, peers: Peers) -> None:
        self.place, self.leads = place, place.rank == 0
        self._store, self._group, self._peers = store, group, peers

    def led(self, work: Callable[[], T]) -> T:
        content = _to_bytes(work()) if self.leads else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor(len(content))
        dist.broadcast(size, 0, group=self._group)
        if not self.leads:
            content = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(content, 0, group=self._group)
        value: T = _from_bytes(content)
        return value

    def gather(self, value: T) -> list[T]:
        own = _to_bytes(value)
        sizes = [torch.zeros((), dtype=torch.int64) for _ in range(self.place.world_size)]
        dist.all_gather(sizes, torch.tensor(len(own)), group=self._group)
        longest = int(max(sizes))
        room = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(room, torch.cat([own, own.new_zeros(longest - len(own))]), group=self._group)
        return [_from_bytes(content[: int(size)]) for content, size in zip(room, sizes, strict=True)]

    def total(self, number: float) -> float:
        value = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(value, group=self._group)
        return float(value)

    def vote(self, flag: bool) -> Vote:
        return _Asked(flag, self._group)

    def confer(self, topic: str, give: Callable[[], Any], unite: Callable[[list[Any]], T]) -> T:
        said, problem = _attempt(give)
        if not self.leads:
            self._store.set(f"{topic}/{self.place.rank}", json.dumps(said))
            answer = self._hear(f"{topic}/answer")
        else:
            all_said = [said, *(self._hear(f"{topic}/{rank}") for rank in range(1, self.place.world_size))]
            answer = next((each for each in all_said if "error" in each), {})
            if not answer:
                answer, problem = _attempt(lambda: unite([each["value"] for each in all_said]))
            self._store.set(f"{topic}/answer", json.dumps(answer))
        if problem is not None:
            raise problem
        if "error" in answer:
            raise error_of(answer["error"])
        value: T = answer["value"]
        return value

    @contextmanager
    def explaining(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            own = isinstance(error, JobError | MemoryError) or not _is_broken(error)
            cause = self._peers.cause if own else self._peers.after_break()
            if cause is None:
                raise
            cause.adopted = True  # type: ignore[attr-defined]
            raise cause from error

    def _hear(self, key: str) -> dict[str, Any]:
        while not self._store.check([key]):
            self._peers.check()
            time.sleep(_LOOK)
        found: dict[str, Any] = json.loads(self._store.get(key))
        return found


@contextmanager
def join(place: Place, stop: StopSignal, patience: float, ended: Callable[[JobError], None]) -> Iterator[Ranks]:
    """The ranks of this run inside the block, which all of them leave together and for the same reason.

    Args:
        place: Which of them this process is.
        stop: Heard while the others are waited for.
        patience: Seconds that the others may take to come.
        ended: Called with the reason of another rank, when this process hangs and is ended at once.

    Raises:
        UnreachableError: They have not come.
        JobError: Another rank has ended; the reason names it, the code is its own. `adopted` is set on
            what the first rank says too.
    """
    if place.world_size == 1:
        yield ALONE
        return
    ranks, peers = _meet(place, stop, patience, ended)
    try:
        with ranks.explaining():
            yield ranks
            ranks.total(0)  # nobody goes before the last one is done
    except Exception as error:
        leisure = TOGETHER if ranks.leads else 0.0  # the others break the connections on which this one may wait
        if isinstance(error, Interrupted) and stop.requested:
            leisure = min(stop.remaining(), 1e9)
        if peers.leave(error, leisure):
            error.adopted = True  # type: ignore[attr-defined]
        raise
    peers.close()
    dist.destroy_process_group()


def _meet(place: Place, stop: StopSignal, patience: float, ended: Callable[[JobError], None]) -> tuple[Together, Peers]:
    try:
        store = _all_here(place, stop, patience)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise UnreachableError(f"the first rank has gone before all had come; start again ({said})") from error
    peers = Peers(store.clone(), place.rank, place.world_size, ended)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = PrefixStore("group", store)
    dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.world_size, timeout=_FOREVER)
    group = dist.new_group(backend="gloo", timeout=_FOREVER)
    return Together(place, store.clone(), group, peers), peers


def _all_here(place: Place, stop: StopSignal, patience: float) -> Any:
    """The TCPStore in which all ranks have met."""
    if place.rank > 0:
        wait_for_first(f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", patience, stop.check)
    # As the only one: it would wait for the others, and hear no signal.
    store = next(rendezvous("env://", place.rank, 1, timeout=timedelta(seconds=patience)))[0]
    wait_for_all(store, place.rank, [f"rank {rank}" for rank in range(place.world_size)], patience, stop.check)
    return store


def _is_broken(error: BaseException) -> bool:
    """Whether this may be what a collective raises when another rank has gone."""
    text = str(error).lower()
    words = ("gloo", "nccl", "connection", "broken pipe", "socket")
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or any(w in text for w in words))


def _attempt(work: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    """What comes of `work` as JSON, and its own error."""
    try:
        return {"value": work()}, None
    except Exception as error:
        return {"error": plain(error)}, error


def _to_bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(content: Tensor) -> Any:
    return json.loads(content.numpy().tobytes())
