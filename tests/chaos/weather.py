"""Runs of the tiny model through the fault proxy: how each ended, what it said, and what stands in the bucket."""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from job.checkpoint import history
from job.checkpoint.record import Record
from job.checkpoint.store import CheckpointStore
from job.checkpoint.verify import fetch
from job.config import StorageConfig
from job.infra.storage import open_store
from tests.chaos import evidence
from tests.chaos.harness import Plan, run, tiny
from tests.chaos.outcome import Outcome, outcome
from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SCALE = float(os.environ.get("CHAOS_SCALE", "1"))  # of the tests marked slow
PATH = StorageConfig(addressing_style="path")
TIMEOUTS = "storage.timeouts=[1, 0.5]"


class Hurried:
    """The module `time` for those who would sleep: hours pass in no time."""

    def __getattr__(self, name: str) -> Any:
        return (lambda seconds: None) if name == "sleep" else getattr(time, name)


@dataclass(frozen=True)
class Attempt:
    """How a process ended.

    Args:
        log: Its log lines.
        said: Everything else that it wrote to stderr: the error that ended it.
    """

    code: int
    log: tuple[Mapping[str, Any], ...]
    said: str

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """Log lines that say `name`."""
        return [line for line in self.log if line["event"] == name]


class Site:
    """A place for a run in the bucket. Each attempt reaches it through a proxy; what it left is read without one.

    Args:
        pace: Seconds that each step takes longer than it must, so that there is time for several saves.
    """

    def __init__(self, server: S3Server, corpus: Path, folder: Path, *settings: str, pace: float = 0.0) -> None:
        self.uri, self.folder = server.fresh_uri(), folder
        self._corpus, self._settings, self._pace = corpus, settings, pace
        self._attempts = 0
        folder.mkdir(parents=True, exist_ok=True)

    def attempt(self, proxy: FaultProxy, *settings: str, plan: Plan | None = None, **environ: str) -> Attempt:
        """Start, or continue, the run; botocore does not sleep between its tries."""
        self._attempts += 1
        said = self.folder / f"said{self._attempts}"
        path_style = ("storage.addressing_style=path", TIMEOUTS)
        resolved = tiny(self.uri, self._corpus, *path_style, *self._settings, *settings)
        prepare = partial(_set_out, {**proxy.environ, **environ}, said, self.folder, self._pace)
        code = run(resolved, plan or Plan(), prepare=prepare)
        lines = said.read_text().splitlines()
        log = tuple(json.loads(line) for line in lines if line.startswith("{"))
        return Attempt(code, log, "\n".join(line for line in lines if not line.startswith("{")))

    def signal(self, number: int) -> None:
        """Send a signal to the process under way."""
        os.kill(int((self.folder / "pid").read_text()), number)

    def forbid_names(self) -> None:
        """From now on no process of this site resolves a name."""
        (self.folder / "no-dns").touch()

    def allow_names(self) -> None:
        """End what `forbid_names` began."""
        (self.folder / "no-dns").unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """The commit log."""
        checkpoints = CheckpointStore(open_store(self.uri, PATH))
        checkpoints.log.refresh()
        assert not checkpoints.log.damaged
        return checkpoints.log.records

    def saved(self) -> list[Record]:
        """All checkpoints that were ever committed."""
        return [record for record in self.records() if record.kind == "checkpoint"]

    def verified(self) -> int:
        """How many checkpoints stand; each is read back in full, and Rejected raised if one is not what it says."""
        objects, standing = open_store(self.uri, PATH), history.checkpoints(self.records())
        for record in standing:
            folder = self.folder / f"verified{record.seq}"
            folder.mkdir(exist_ok=True)
            fetch(objects, record, folder)
        return len(standing)

    def outcome(self) -> Outcome:
        """What the run came to."""
        return outcome(self.uri, self.folder / "files", PATH)

    def metrics(self) -> str:
        """The run's `metrics.prom`."""
        return open_store(self.uri, PATH).read("metrics.prom").decode()


def _set_out(environ: Mapping[str, str], said: Path, folder: Path, pace: float) -> None:
    """In the process that is to run the job: where the store is, where to write, no sleep, a slower step."""
    import botocore.endpoint

    from job.infra.logs import configure_logging
    from job.training import text

    os.environ.update(environ)
    (folder / "pid").write_text(str(os.getpid()))
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    configure_logging("json", "info")
    botocore.endpoint.time = Hurried()
    socket.getaddrinfo = partial(_resolve, socket.getaddrinfo, folder / "no-dns")
    batches = text.Text.batches
    text.Text.batches = lambda *arguments: _paced(batches(*arguments), pace)  # type: ignore[method-assign]


def _resolve(resolve: Callable[..., Any], forbidden: Path, *arguments: Any, **more: Any) -> Any:
    if forbidden.exists():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return resolve(*arguments, **more)


def _paced(batches: Iterable[Any], pace: float) -> Iterator[Any]:
    for batch in batches:
        time.sleep(pace)
        yield batch


def note_faults(*proxies: FaultProxy) -> Counter[str]:
    """Faults by kind, kept as evidence."""
    counts = sum((proxy.counts for proxy in proxies), Counter())
    del counts["ok"]
    evidence.add_all("faults", counts)
    return counts
