"""`gpt-job` in a copy of a process that has imported torch: a command as it is, without most of what a short one costs.

What a test says of imports, of `--processes`, or of the interpreter's own flags and variables needs a process that is
started as a user starts it.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TextIO

from tests.chaos.harness import warm_context


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

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} did not end within {timeout} s")
        return self._process.exitcode

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()

    def terminate(self) -> None:
        """Ask it to stop."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)


def _be(words, cwd, environ, stdout, tells, before):
    from job import cli

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    os.dup2(os.open(stdout, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(tells.fileno(), 2)
    tells.close()
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own, not this one's
    sys.argv = ["gpt-job", *words]
    if before:
        before()
    cli.main(list(words), prog_name="gpt-job")
