"""The `check` command: every question that would otherwise be answered after the GPU is billed, in seconds."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

import structlog

from job.checks import machine, text
from job.checks.finding import Finding, problem
from job.checks.storage import storage
from job.checks.text import Outlook
from job.config import Config
from job.config_file import ResolvedConfig
from job.data.reachable import Reached
from job.errors import ConfigError, JobError, StorageError
from job.infra.place import Place, crew_of, place_of

if TYPE_CHECKING:
    from job.infra.device import Numerics
    from job.training.memory import Memory

_NETWORK_SECONDS = 8.0  # after which whoever has not answered is said not to

log = structlog.get_logger(__name__)


def check(
    resolved: ResolvedConfig | ConfigError, single_writer_unsafe: bool = False, processes: str | None = None
) -> Iterator[Finding]:
    """Findings as they are made, all of them: none keeps the others from being made.

    What waits for others runs meanwhile in threads; torch is imported after the first answers.

    Args:
        resolved: The run's config, or all that is wrong with it; the machine is looked at all the same.
        processes: What `train --processes` would be given.
    """
    if isinstance(resolved, ConfigError):
        yield from (problem("settings", ConfigError(said), "change the setting") for said in resolved.problems)
        yield from _of_torch()
        return
    config = resolved.config
    yield Finding(about="settings", said=f"preset {resolved.preset}, run {config.run_uri}")
    reached: list[Reached] = []
    asked = [_Asked("corpus", lambda: text.corpus(config, reached))]
    asked.append(_Asked("storage", lambda: storage("storage", config.run_uri, config.storage, single_writer_unsafe)))
    if cache_uri := config.data.cache_uri:
        asked.append(_Asked("cache", lambda: storage("cache", cache_uri, config.storage, True)))
    if code_uri := config.runtime.compile_cache_uri:
        asked.append(_Asked("compile cache", lambda: storage("compile cache", code_uri, config.storage, True)))
    yield from _made("driver", lambda: machine.driver(config))
    yield from _made("shared memory", lambda: machine.shared_memory(config))
    yield from asked[0].answer()
    outlooks: list[Outlook] = []
    tokenizer = _Asked("tokenizer", partial(_tokenizer, config, reached, outlooks))
    yield from tokenizer.answer()
    outlook = outlooks[0] if outlooks else Outlook(text.GPT2, False, None, None)
    yield from _computing(config, outlook, processes)
    for one in asked[1:]:
        yield from one.answer()


def _tokenizer(config: Config, reached: list[Reached], outlooks: list[Outlook]) -> Iterator[Finding]:
    finding, outlook = text.tokenizer(config, reached)
    outlooks.append(outlook)
    yield finding


def _of_torch() -> Iterator[Finding]:
    """What can be said without a config."""
    import torch  # noqa: PLC0415

    from job.checks.compute import autograd  # noqa: PLC0415

    yield from _made("autograd", lambda: [autograd(torch.device("cpu"))])


def _computing(config: Config, outlook: Outlook, asked: str | None) -> Iterator[Finding]:
    """What needs torch: gradients, device, memory, disk for what a run saves, and time."""
    import torch  # noqa: PLC0415 - the first answers come without it

    from job.checks import compute  # noqa: PLC0415

    chosen: list[Numerics] = []
    places: list[Place] = []

    def device() -> Iterator[Finding]:
        places.append(_place(asked))
        finding, numerics = compute.device(config, places[0])
        chosen.extend([numerics] if numerics else [])
        yield finding

    yield from _made("device", device)
    yield from _made("autograd", lambda: [compute.autograd(torch.device(chosen[0].device if chosen else "cpu"))])
    if not chosen:
        yield from _made("disk", lambda: machine.disk(config, compute.state_bytes(config, outlook), outlook.bytes))
        return
    [numerics], [place] = chosen, places
    yield from _made("processes", lambda: compute.processes(config, place, numerics))
    needed: list[Memory] = []

    def memory() -> Iterator[Finding]:
        judged, need = compute.memory(config, outlook, numerics, place)
        needed.append(need)
        yield from judged

    fitting = _made("memory", memory)
    yield from fitting
    fits = all(finding.level == "ok" for finding in fitting)
    saved = needed[0].snapshot if needed else compute.state_bytes(config, outlook)
    yield from _made("disk", lambda: machine.disk(config, saved, outlook.bytes))
    yield from _made("time", lambda: [compute.step(config, outlook, numerics, fits)])


def _place(processes: str | None) -> Place:
    """The first place among those that train would start, or the one that this process has."""
    from job.infra.device import processes_of  # noqa: PLC0415 - torch is there by now

    crew = crew_of(processes, os.environ)
    if crew is None:
        return place_of(os.environ)
    here = processes_of(crew)
    return Place(world_size=crew.nodes * here, local_world_size=here)


@contextmanager
def _told(about: str) -> Iterator[list[Finding]]:
    """A list for findings; what is raised meanwhile becomes one."""
    found: list[Finding] = []
    try:
        yield found
    except JobError as error:
        found.append(problem(about, error))
    except Exception as error:
        log.exception("bug", check=about)
        found.append(Finding(about=about, level="error", said=f"{type(error).__name__}: {error}", code=1))


def _made(about: str, make: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What `make` finds, whatever happens on the way."""
    with _told(about) as found:
        found.extend(make())  # those before an error stay
    return found


class _Asked:
    """A question to somebody else, who may take long to answer."""

    def __init__(self, about: str, make: Callable[[], Iterable[Finding]]) -> None:
        self._about, self._found = about, list[Finding]()
        self._until = time.monotonic() + _NETWORK_SECONDS
        self._thread = Thread(target=lambda: self._found.extend(_made(about, make)), daemon=True)
        self._thread.start()

    def answer(self) -> list[Finding]:
        """What was found; that nobody answered, once it has taken too long."""
        self._thread.join(max(0.0, self._until - time.monotonic()))
        if not self._thread.is_alive():
            return self._found
        return [problem(self._about, StorageError(f"no answer within {_NETWORK_SECONDS:.0f} s"))]
