"""`python -m job.report EVENTS URI FOLDER`: draws in a process of its own, so that it cannot harm a training.

It makes itself ready at once and draws when it reads a line: the log may still grow until then.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from job.infra.cores import cores

_NICE = 19  # training goes first
_MOST = 4  # processes, of which each draws two pictures


def main(events: str, uri: str, folder: str) -> None:
    """Write the report of the run at `uri`, whose event log lies in the file `events`, into `folder`."""
    with suppress(AttributeError, OSError):  # not on Windows
        os.nice(_NICE)
    import matplotlib.backends.backend_agg  # noqa: PLC0415
    import matplotlib.backends.backend_svg  # noqa: PLC0415
    import matplotlib.figure  # noqa: F401, PLC0415 - slow, so after stepping back

    from job.report.command import report_files  # noqa: PLC0415
    from job.report.page import read_run  # noqa: PLC0415

    if not sys.stdin.readline():
        return  # whoever was to say when has ended
    run = read_run(Path(events).read_bytes(), uri, events)
    processes = min(_MOST, cores()) if sys.platform == "linux" else 1  # elsewhere a copy of a process is no safe thing
    for name, content in report_files(run, processes).items():
        (Path(folder) / name).write_bytes(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
