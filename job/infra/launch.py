"""Starts the processes of this machine through torch elastic, hands signals on to them, and ends as they did.

The agent's own habits would lose what this job promises: it answers a signal by ending its workers within 30 seconds
and every failure with 1. Here it only starts them and watches; a signal goes on to each of them, they have the grace
they were given, and their code is the launcher's.
"""

import json
import logging
import math
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from job.config import RuntimeConfig
from job.errors import (
    AccessError,
    ConfigError,
    DataError,
    DivergedError,
    FencedError,
    Interrupted,
    NotFoundError,
    UnreachableError,
)
from job.infra.device import processes_of
from job.infra.meeting import wait_for_all, wait_for_first
from job.infra.peers import tell
from job.infra.place import Crew
from job.infra.relay import Relay, held_back

log = structlog.get_logger(__name__)
FINAL = {2} | {
    error.exit_code
    for error in (ConfigError, DataError, NotFoundError, DivergedError, FencedError, Interrupted, AccessError)
}
PATIENCE = 20.0  # seconds that workers may take to end by themselves once one of them has
_UNUSED = "SIGXFSZ"  # what the agent may have, so that it leaves the others to us


@dataclass(frozen=True, slots=True)
class Ended:
    """How the workers ended.

    Args:
        code: The exit code, as a shell says it: 128 and the signal's number for one that was killed.
        said: What the worker wrote as its termination message; of one that was killed, only `reason`.
    """

    code: int
    said: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """Why."""
        return str(self.said.get("reason", f"ended with {self.code}"))


def launch(crew: Crew, command: list[str], runtime: RuntimeConfig, relay: Relay) -> Ended:
    """Run `command` in every process of the crew, until all have succeeded or nothing is to be gained any more.

    Args:
        command: A Python command line without the interpreter.
        runtime: Says how often all are started again after one failed, on one machine; on several the cluster does
            that.
        relay: Hears requests to stop.

    Raises:
        Interrupted: Asked to stop before any process had begun.
        ConfigError: There are no GPUs to count.
        UnreachableError: The other machines have not come.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what it says, is said here
    left = runtime.restarts if crew.nodes == 1 else 0
    with tempfile.TemporaryDirectory(prefix="gpt-job-") as folder:
        while True:
            ended = _run(crew, command, Path(folder), runtime, relay)
            if ended.code in {0, *FINAL} or left == 0 or relay.asked:
                return ended
            log.warning("processes are started again", code=ended.code, reason=ended.reason, restarts_left=left)
            left -= 1


def _run(crew: Crew, command: list[str], folder: Path, runtime: RuntimeConfig, relay: Relay) -> Ended:
    count = processes_of(crew)
    termination = folder / "termination"
    termination.unlink(missing_ok=True)
    relay.check()
    log.info("processes start", processes=count, nodes=crew.nodes, node_rank=crew.node_rank)
    spec = _spec(crew, count, command, runtime.join_seconds, relay)
    agent = _Agent(spec, DefaultLogsSpecs(log_dir=str(folder / uuid.uuid4().hex)), relay)
    with _environment(TERMINATION_LOG=str(termination), TORCHELASTIC_SIGNALS_TO_HANDLE=_UNUSED):
        try:
            result = agent.run()
        except DistError as error:  # its own store's: workers say how they end
            where = crew.master or "one of its own ports"
            raise UnreachableError(f"cannot meet at {where}: {str(error).splitlines()[0]}; start again") from error
    if not result.is_failed():
        return Ended(0, _read(termination))
    code, dead = agent.first_death or (0, "")
    if code == 0:
        code = max(failure.exitcode for failure in result.failures.values())
    said = _read(termination)
    return Ended(code, said if said.get("code") == code else {**said, "reason": dead or f"ended with {code}"})


def _spec(crew: Crew, count: int, command: list[str], patience: float, relay: Relay) -> WorkerSpec:
    alone = RendezvousParameters("c10d", "localhost:0", uuid.uuid4().hex, 1, 1, local_addr="127.0.0.1")
    meeting = _Meeting(crew, patience, relay) if crew.master else get_rendezvous_handler(alone)
    host, _, port = (crew.master or "").rpartition(":")
    return WorkerSpec(
        role="train",
        local_world_size=count,
        entrypoint=sys.executable,
        args=tuple(command),
        rdzv_handler=meeting,
        max_restarts=0,
        monitor_interval=0.1,
        master_addr=host or None,
        master_port=int(port) if port else None,
        local_addr=None if crew.master else "127.0.0.1",
    )


class _Meeting(StaticTCPRendezvous):
    """Machines that meet in a store of the first one, and hear requests to stop while they wait."""

    def __init__(self, crew: Crew, patience: float, relay: Relay) -> None:
        self._master = crew.master or ""
        host, _, port = self._master.rpartition(":")
        super().__init__(host, int(port), crew.node_rank, crew.nodes, "gpt-job", math.ceil(patience))
        self._patience, self._relay = patience, relay

    def next_rendezvous(self) -> RendezvousInfo:
        first, check = self.rank == 0, self._relay.check
        if not first:
            wait_for_first(self._master, self._patience, check)
        here = (self.master_addr, self.master_port, self.world_size, first, self.timeout)
        store = TCPStore(*here, wait_for_workers=False, multi_tenant=True)
        machines = [f"machine {number}" for number in range(self.world_size)]
        wait_for_all(PrefixStore("machines", store), self.rank, machines, self._patience, check)
        self._store = store
        return super().next_rendezvous()


class _Agent(LocalElasticAgent):
    """Elastic's agent, which hands signals on, says who has died, and lets the others end by themselves."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, relay: Relay) -> None:
        super().__init__(spec, logs, shutdown_timeout=15)
        self._relay = relay
        self._since: float | None = None  # a worker has failed
        self.first_death: tuple[int, str] | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        with held_back():
            found: dict[int, Any] = super()._start_workers(worker_group)
        return found

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        pids = {worker.global_rank: int(worker.id) for worker in worker_group.workers}
        codes = {rank: _code(pid) for rank, pid in pids.items()}
        self._relay.hand_on([pid for rank, pid in pids.items() if codes[rank] is None])
        if failed := {rank: code for rank, code in codes.items() if code}:
            self._note(failed, worker_group)
            waiting = any(code is None for code in codes.values())
            if waiting and time.monotonic() - (self._since or 0.0) < PATIENCE:
                return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _note(self, failed: Mapping[int, int], worker_group: WorkerGroup) -> None:
        """Remember who failed first, and tell the others of one that cannot do so itself."""
        if self._since is not None:
            return
        self._since = time.monotonic()
        rank, code = next(((r, c) for r, c in failed.items() if c < 0), next(iter(failed.items())))
        if code >= 0:
            self.first_death = code, ""
            return
        reason = f"was killed by {signal.Signals(-code).name}; start again to continue"
        self.first_death = 128 - code, f"rank {rank} {reason}"
        host, port = worker_group.master_addr or "", worker_group.master_port or 0
        with suppress(RuntimeError):  # they find out by themselves, later
            tell(TCPStore(host, port, wait_for_workers=False), rank, {"code": 1, "reason": reason, "dead": True})


def _code(pid: int) -> int | None:
    """How a child has ended, minus the signal that killed it; None while it lives. It is left to be waited for."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _read(termination: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(termination.read_bytes())
        return found
    return {}


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that workers inherit, inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
