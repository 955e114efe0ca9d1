"""The `report` command: a run's page and pictures, or several runs in one page, from their event logs alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.config import StorageConfig
from job.errors import NotFoundError
from job.infra.object_store import ObjectStore
from job.infra.storage import open_store
from job.report.compare import render_comparison
from job.report.page import Run, draw_pictures, read_run, render_page
from job.uris import local_folder

EVENTS = "events.jsonl"
FOLDER = "report"


@dataclass(frozen=True, slots=True)
class Source:
    """An event log that was read, and where the run's files lie."""

    objects: ObjectStore
    content: bytes
    run: Run


def report(
    run_uri: str, compared: Sequence[str], storage: StorageConfig, to: str | None = None, *, tensorboard: bool = False
) -> dict[str, Any]:
    """Write the report of a run, or of several beside each other; says where it is.

    Args:
        run_uri: Where the run is kept, or its `events.jsonl` itself.
        compared: More runs, for a page that shows all of them.
        to: Folder or s3:// address for the files; unset: `report/` in the run.
        tensorboard: Write event files of TensorBoard too.

    Raises:
        NotFoundError: There is no event log.
        DataError: It is empty, or none of a run.
        AccessError, StorageError: It cannot be read, or the report cannot be stored.
    """
    sources = [read_source(uri, storage) for uri in dict.fromkeys((run_uri, *compared))]
    objects, folder = (open_store(to, storage), "") if to else (sources[0].objects, f"{FOLDER}/")
    files = report_files(sources[0].run)
    page = "report.html"
    if len(sources) > 1:
        page = "compare.html"
        files |= render_comparison([source.run for source in sources])
    if tensorboard:
        from job.report.tensorboard import export  # noqa: PLC0415 - torch loads only for this

        files |= export(sources[0].content, run_uri)
    for name, content in files.items():
        objects.put(f"{folder}{name}", [content])
    history = sources[0].run.history
    at = f"{objects.uri.rstrip('/')}/{folder}"
    return {
        "report": f"{at}{page}",
        "files": [f"{at}{name}" for name in files],
        "step": history.step,
        "events": history.events,
        "evaluations": len(history.evaluations),
        "attempts": len(history.attempts),
        "notes": list(history.oddities),
    }


def report_files(run: Run, processes: int = 1) -> dict[str, bytes]:
    """The page of a run and its pictures, by name; drawn by so many processes that are copies of this one."""
    pictures = draw_pictures(run, processes)
    return {"report.html": render_page(run, pictures), **{f"{shown.name}.png": shown.png for shown in pictures}}


def read_source(uri: str, storage: StorageConfig) -> Source:
    """The run whose address this is, or whose event log."""
    path = local_folder(uri)
    folder, key, where = uri, EVENTS, f"{uri.rstrip('/')}/{EVENTS}"
    if path is not None and path.is_file():
        folder, key, where = str(path.parent), path.name, uri
        uri = folder if key == EVENTS else uri
    objects = open_store(folder, storage)
    try:
        content = objects.read(key)
    except KeyError:
        raise NotFoundError(_absent(uri, path)) from None
    return Source(objects, content, read_run(content, uri, where))


def _absent(uri: str, path: Path | None) -> str:
    """What is not there: the run, or only its event log."""
    if path is not None and not path.exists():
        return f"{uri}: no such folder (expected a run with {EVENTS} in it)"
    return f"{uri}: no {EVENTS} here; a run writes it when it starts, into a bucket with its first checkpoint"
