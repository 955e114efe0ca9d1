"""`gpt-job serve` in a process of its own: started on a free port, waited for, and taken down again."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from job.errors import JobError
from job.serving.testing.client import AnswerError, ServeClient

Found = TypeVar("Found")

TAIL_LINES, TAIL_BYTES = 12, 8192  # of its log, in an error
POLL_SECONDS = 0.05
STOP_SECONDS = 30.0  # for its running requests; then it is killed


class ServerProcess:
    """A server that lives as long as the block it is used in.

    Args:
        arguments: Of `serve`, but for host and port.
        log: File that takes what it says.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._arguments, self._log = list(arguments), log
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "job", "--log-format", "json", "serve"]
        self._file = self._log.open("wb")
        # A session of its own: Ctrl-C on a terminal is for the test, which then takes the server down.
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, "--host", "127.0.0.1", "--port", "0", *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.kill()
        if self._file:
            self._file.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def wait_for_url(self, seconds: float, check: Callable[[], None]) -> str:
        """Where it listens, once it does. Raises as `wait_until_ready` does."""

        def listening() -> str | None:
            lines = [line for line in self._log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            events = [json.loads(line) for line in lines if line.startswith(b"{")]
            return next((str(event["url"]) for event in events if event.get("event") == "listening"), None)

        return _wait(listening, f"the server does not listen after {seconds:g} s", self, seconds, check)

    def require_alive(self) -> None:
        """JobError with its last lines, and its exit code, when it has ended."""
        if self._process is None or (code := self._process.poll()) is None:
            return
        error = next((kind for kind in JobError.__subclasses__() if kind.exit_code == code), JobError)
        raise error(f"the server ended with {code}; it said last:\n{self.tail()}")

    def peak_memory(self) -> int | None:
        """The most memory that it has held so far, in bytes; None where the system does not tell."""
        with suppress(OSError, ValueError, IndexError):
            status = Path(f"/proc/{self._process.pid if self._process else 0}/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
        return None

    def stop(self) -> int:
        """Ask it to end, as Kubernetes does, and wait; its exit code (negative: the signal that killed it)."""
        if self._process is None:
            raise RuntimeError("it was never started")
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self, _: str = "") -> None:
        """End it at once; nothing happens when it has ended. Any thread may."""
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.wait()

    def tail(self) -> str:
        """The last lines that it said."""
        content = self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        return "\n".join(content.splitlines()[-TAIL_LINES:]) or "(nothing)"


def wait_until_ready(
    client: ServeClient, server: ServerProcess | None, seconds: float, check: Callable[[], None]
) -> float:
    """Seconds that pass until /readyz says 200.

    Args:
        server: That is started for it; None for one that is there already.
        check: Called meanwhile; may raise to stop.

    Raises:
        JobError: It ended, or is not ready after so many seconds; with the last lines that it said.
    """
    started = time.monotonic()
    _wait(lambda: is_ready(client) or None, f"{client.url} is not ready after {seconds:g} s", server, seconds, check)
    return time.monotonic() - started


def _wait(
    look: Callable[[], Found | None],
    otherwise: str,
    server: ServerProcess | None,
    seconds: float,
    check: Callable[[], None],
) -> Found:
    """What `look` finds, as soon as it does."""
    started = time.monotonic()
    while (found := look()) is None:
        check()
        if server:
            server.require_alive()
        if time.monotonic() - started > seconds:
            raise JobError(otherwise + (f"; it said last:\n{server.tail()}" if server else ""))
        time.sleep(POLL_SECONDS)
    return found


def is_ready(client: ServeClient) -> bool:
    """Whether the server answers, and says that it is ready."""
    try:
        return client.request("GET", "/readyz").status == 200
    except AnswerError:
        return False
