"""`gpt-job` in a copy of a process that has imported torch: a command as it is, without most of what a short one costs.

What a test says of imports, of `--processes`, or of the interpreter's own flags and variables needs a process that is
started as a user starts it.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TextIO

from tests.chaos.harness import be_its_own, warm_context


class WarmProcess:
    """What tests use of `subprocess.Popen`; stderr is a pipe.

    Args:
        words: The command's arguments.
        before: Called in the process before the command.
    """

    def __init__(
        self,
        words: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
        stdout: Path,
        before: Callable[[], None] | None = None,
    ) -> None:
        hears, tells = warm_context.Pipe(duplex=False)
        self._process = warm_context.Process(target=_be, args=(words, cwd, environ, stdout, tells, before))
        self._process.start()
        tells.close()
        self.stderr: TextIO = os.fdopen(os.dup(hears.fileno()))
        hears.close()
        assert self._process.pid
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stderr.close()
        self.wait()

    def wait(self) -> int:
        """Exit code, or minus the signal that ended it, once it has ended."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)


def _be(words, cwd, environ, stdout, tells, before):
    from job import cli

    os.chdir(cwd)
    os.dup2(os.open(stdout, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(tells.fileno(), 2)
    tells.close()
    be_its_own(environ)
    sys.argv = ["gpt-job", *words]
    if before:
        before()
    cli.main(list(words), prog_name="gpt-job")
