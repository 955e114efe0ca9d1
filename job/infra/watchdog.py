"""Notices a transfer that stands still, and cuts its connection so that who waits for it can go on.

What counts is what the kernel's TCP says: bytes that the other side acknowledged and bytes that arrived. That lies
below TLS and below every buffer, so that neither a full send buffer nor a chunk that fills slowly is taken for what it
is not. Where the kernel does not say (Linux does), botocore's own time-outs stand alone.
"""

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

TRIES = 3  # stalls of one part before it is given up
_LOOKS = 8  # per stall_seconds: a stall is cut at most an eighth later
_TCP_INFO_ACKED = 120  # offset of tcpi_bytes_acked, which tcpi_bytes_received follows
_TCP_INFO_SIZE = 136


class Watch:
    """One part on its way, over whichever connections it takes."""

    def __init__(self, stall_seconds: float) -> None:
        self.stalls = 0
        self._stall_seconds = stall_seconds
        self._connection: socket.socket | None = None
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    def attach(self, connection: object) -> None:
        """From here on the part travels through `connection`."""
        if isinstance(connection, socket.socket):
            self._connection, self._seen, self._since = connection, _moved(connection), time.monotonic()

    def detach(self) -> None:
        """The part is on no connection: it waits for its next attempt, which is not standing still."""
        self._connection = None

    def check(self) -> bool:
        """Whether bytes moved since the last look; cuts the connection after too long without any."""
        if self._connection is None or (found := _moved(self._connection)) is None:
            return False
        if found != self._seen:
            self._seen, self._since = found, time.monotonic()
            return True
        if time.monotonic() - self._since >= self._stall_seconds:
            self.stalls += 1
            with suppress(OSError):
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)  # an SSLSocket's own would drop its state
            self._connection = None
        return False

    def give_up(self) -> None:
        """TimeoutError when the part has stood still too often."""
        if self.stalls >= TRIES:
            raise TimeoutError(f"stood still {self.stalls} times: no byte moved for {self._stall_seconds:g} s")


class Watchdog:
    """Looks at every transfer under way from one thread, which lives only as long as there is one.

    Args:
        stall_seconds: Without a byte for this long a connection is cut.
        moved: Called when bytes moved, from any thread; must not raise.
    """

    def __init__(self, stall_seconds: float, moved: Callable[[], None]) -> None:
        self._stall_seconds = stall_seconds
        self._watches: set[Watch] = set()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._own = threading.local()
        self.moved = moved

    @property
    def watch(self) -> Watch | None:
        """The watch over what this thread transfers."""
        found: Watch | None = getattr(self._own, "watch", None)
        return found

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch what this thread transfers inside the block, which may lie in another such block.

        Raises:
            TimeoutError: The block failed because it stood still too often.
        """
        if self.watch:
            yield self.watch
            return
        watch = self._own.watch = Watch(self._stall_seconds)
        self._begin(watch)
        try:
            yield watch
        except Exception as error:
            try:
                watch.give_up()
            except TimeoutError as stalled:
                raise stalled from error
            raise
        finally:
            self._own.watch = None
            self._end(watch)

    def attach(self, connection: object) -> None:
        """What this thread transfers now travels through `connection`."""
        if self.watch:
            with self._change:
                self.watch.attach(connection)

    def detach(self) -> None:
        """What this thread transfers is on no connection for now."""
        if self.watch:
            with self._change:
                self.watch.detach()

    def _begin(self, watch: Watch) -> None:
        with self._change:
            self._watches.add(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
                self._thread.start()

    def _end(self, watch: Watch) -> None:
        with self._change:
            self._watches.remove(watch)
            if not self._watches:
                self._change.notify()

    def _look(self) -> None:
        with self._change:
            while self._watches:
                self._change.wait(self._stall_seconds / _LOOKS)
                found = [watch.check() for watch in self._watches]
                if any(found):
                    self.moved()
            self._thread = None


def _moved(connection: socket.socket) -> tuple[int, int] | None:
    """Bytes acknowledged and bytes received so far; None where the kernel does not say."""
    if sys.platform != "linux":
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:  # closed meanwhile
        return None
    return struct.unpack_from("=QQ", info, _TCP_INFO_ACKED) if len(info) >= _TCP_INFO_SIZE else None
