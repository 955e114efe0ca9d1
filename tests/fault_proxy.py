"""A proxy before the tests' S3 server that breaks requests according to a plan, and keeps a log of what it did.

It ends TLS with the server's own certificate and opens TLS to the server for each connection, so that a client finds
the server under another port. Heads travel as they came: signatures hold, and `Expect: 100-continue`, chunked bodies
and connections that are kept alive work as without it.
"""

import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.fault_plans import Fault, Plan, Request, calm
from tests.s3_server import S3Server

_PIECE = 1 << 16  # bytes moved at once
_LINE = 1 << 16  # bytes of a line or a head, at most
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, with RST


@dataclass
class Entry:
    """What the proxy did to a request.

    Args:
        status: Of the server's answer, whether or not the client got it; 0 when there was none.
        seconds: From the request's head to the end of the exchange.
    """

    request: Request
    fault: Fault
    status: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        request = self.request
        return f"{request.number} {request.operation} {request.name}: {self.fault.kind} -> {self.status}"


class FaultProxy:
    """A running proxy; leaving the block ends it and every connection through it."""

    def __init__(self, server: S3Server, plan: Plan = calm) -> None:
        self._server = server
        self.show(server.ca.parent)
        self._connecting = ssl.create_default_context(cafile=server.ca)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.stopping = threading.Event()
        self.plan = plan
        self.log: list[Entry] = []
        self.endpoint = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.close_door()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @property
    def environ(self) -> dict[str, str]:
        """boto3's own variables for the server behind this proxy."""
        return {**self._server.environ, "AWS_ENDPOINT_URL_S3": self.endpoint}

    @property
    def counts(self) -> Counter[str]:
        """How many requests met each kind of fault."""
        with self._lock:
            return Counter(entry.fault.kind for entry in self.log)

    def entries(self, when: Callable[[Request], bool] = lambda _: True, kind: str | None = None) -> list[Entry]:
        """The log, or those of its entries that match."""
        with self._lock:
            return [entry for entry in self.log if when(entry.request) and kind in {None, entry.fault.kind}]

    def close_door(self) -> None:
        """Refuse every connection from now on."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def show(self, folder: Path) -> None:
        """Show the certificate in `folder` to whoever comes from now on."""
        self._accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._accepting.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    def decide(self, head: bytes) -> Entry:
        """The next request's entry in the log, with what the plan says to it."""
        with self._lock:
            request = Request.parse(len(self.log) + 1, head)
            self.log.append(Entry(request, self.plan(request)))
            return self.log[-1]

    def connect(self) -> "Wire":
        """A connection to the server."""
        address = urlsplit(self._server.endpoint)
        raw = socket.create_connection((address.hostname, address.port), timeout=60)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Wire(self._connecting.wrap_socket(raw, server_hostname=address.hostname))

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw,), name="fault-proxy", daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with raw, suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = self._accepting.wrap_socket(raw, server_side=True)
            with self._lock:
                self._sockets.add(client)
            try:
                Conversation(self, Wire(client)).run()
            finally:
                with self._lock:
                    self._sockets.discard(client)
                client.close()


class Wire:
    """A connection, read by the line or by the count."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._read = bytearray()

    def _more(self) -> None:
        if not (arrived := self.sock.recv(_PIECE)):
            raise ConnectionError("the other end hung up")
        self._read += arrived

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while (at := self._read.find(mark)) < 0:
            if len(self._read) > _LINE:
                raise ConnectionError("a line without end")
            self._more()
        return self._take(at + len(mark))

    def pieces(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes as they come."""
        while count:
            if not self._read:
                self._more()
            piece = self._take(min(count, len(self._read)))
            count -= len(piece)
            yield piece

    def body(self, head: bytes) -> Iterator[bytes]:
        """The raw bytes of the body that `head` announces, chunks and trailers as they are."""
        length = _header(head, b"content-length")
        if b"chunked" not in _header(head, b"transfer-encoding"):
            yield from self.pieces(int(length or 0))
            return
        while True:
            line = self.until(b"\r\n")
            yield line
            if (size := int(line.split(b";")[0], 16)) == 0:
                break
            yield from self.pieces(size + 2)
        while line != b"\r\n":
            line = self.until(b"\r\n")
            yield line

    def reset(self) -> None:
        """Break the connection off."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def is_gone(self) -> bool:
        """Whether the other end has hung up, whatever of it is still unread."""
        poll = select.poll()
        poll.register(self.sock, _GONE)
        return bool(poll.poll(0))

    def is_idle(self) -> bool:
        """Whether nothing has come, not even an end."""
        return not self._read and not self.sock.pending() and not select.select([self.sock], [], [], 0)[0]

    def _take(self, count: int) -> bytes:
        taken = bytes(self._read[:count])
        del self._read[:count]
        return taken


class Conversation:
    """The requests of one client's connection, one after the other."""

    def __init__(self, proxy: FaultProxy, client: Wire) -> None:
        self._proxy, self._client = proxy, client
        self._server: Wire | None = None

    def run(self) -> None:
        """Serve until either side has had enough."""
        try:
            while self._exchange(self._client.until(b"\r\n\r\n")):
                pass
        finally:
            if self._server:
                self._server.sock.close()

    def _exchange(self, head: bytes) -> bool:
        """One request; whether the connection goes on."""
        entry, started = self._proxy.decide(head), time.monotonic()
        fault = entry.fault
        if fault.act and fault.way != "reset_after":
            fault.act(entry.request)
        try:
            match fault.way:
                case "refuse":
                    return self._refuse(head, fault, entry.request.method)
                case "reset_before":
                    return self._break()
                case "stall":
                    return self._wait(fault.seconds) and self._pass(head, entry)
                case "truncate" if entry.request.method == "PUT":
                    return self._cut_request(head)
                case "pass" | "slow":
                    return self._pass(head, entry, fault.rate)
                case _:
                    return self._spoil(head, entry)
        finally:
            entry.seconds = time.monotonic() - started

    def _pass(self, head: bytes, entry: Entry, rate: float = 0.0) -> bool:
        """The whole exchange, unharmed."""
        answer, spared = self._ask(head, rate)
        entry.status = _status(answer)
        self._client.sock.sendall(answer)
        if entry.request.method != "HEAD" and entry.status not in {204, 304}:
            self._move(self._upstream().body(answer), self._client, rate)
        return not spared and b"close" not in _header(answer, b"connection").lower()

    def _spoil(self, head: bytes, entry: Entry) -> bool:
        """The server does it; its answer is lost, cut or bent."""
        answer, _ = self._ask(head)
        entry.status = _status(answer)
        silent = entry.request.method == "HEAD" or entry.status in {204, 304}
        body = b"" if silent else _plain(answer, self._upstream().body(answer))
        if entry.fault.way == "reset_after":
            if entry.fault.act:
                entry.fault.act(entry.request)
            return self._break()
        if entry.fault.edit:
            if entry.status < 300:  # an error stays the error it is
                body = entry.fault.edit(entry.request, body)
            self._client.sock.sendall(_with_length(answer, len(body)) + body)
            return True
        self._client.sock.sendall(_with_length(answer, len(body)) + body[: len(body) // 2])
        return False

    def _ask(self, head: bytes, rate: float = 0.0) -> tuple[bytes, bool]:
        """Send the request on; the head of the final answer, and whether the body was never asked for."""
        server = self._upstream(fresh=True)
        server.sock.sendall(head)
        if b"100-continue" in _header(head, b"expect").lower():
            answer = server.until(b"\r\n\r\n")
            if _status(answer) != 100:
                return answer, True
            self._client.sock.sendall(answer)
        self._move(self._client.body(head), server, rate)
        while _status(answer := server.until(b"\r\n\r\n")) < 200:
            pass
        return answer, False

    def _refuse(self, head: bytes, fault: Fault, method: str) -> bool:
        """Answer in the server's place. A client that asked whether to send its body does not send it."""
        spared = b"100-continue" in _header(head, b"expect").lower()
        if not spared:
            for _ in self._client.body(head):
                pass
        page = b"<html>not from S3</html>"
        error = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
        body = error if fault.code else page
        lines = f"HTTP/1.1 {fault.status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        close = "Connection: close\r\n" if spared else ""
        self._client.sock.sendall(f"{lines}{close}\r\n".encode() + (b"" if method == "HEAD" else body))
        return not spared

    def _break(self) -> bool:
        self._client.reset()
        return False

    def _wait(self, seconds: float | None) -> bool:
        """Take no byte for so long; False when the client went away meanwhile."""
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            if self._client.is_gone() or self._proxy.stopping.wait(0.02):
                return False
        return True

    def _cut_request(self, head: bytes) -> bool:
        """Half of the body reaches the server, then both connections break."""
        server = self._upstream(fresh=True)
        if b"100-continue" in _header(head, b"expect").lower():
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join(self._client.body(head))
        server.sock.sendall(head + body[: len(body) // 2])
        server.reset()
        self._server = None
        return self._break()

    def _move(self, pieces: Iterable[bytes], to: Wire, rate: float) -> None:
        """Send `pieces` on, at `rate` bytes a second when there is one; a server may answer before it has read all."""
        for piece in pieces:
            step = max(1, int(rate / 20)) if rate else len(piece)
            for at in range(0, len(piece), step):
                with suppress(OSError):
                    to.sock.sendall(piece[at : at + step])
                if rate:
                    time.sleep(step / rate)

    def _upstream(self, fresh: bool = False) -> Wire:
        """The connection to the server; `fresh`: one on which a request can begin."""
        if self._server and fresh and not self._server.is_idle():
            self._server.sock.close()
            self._server = None
        if not self._server:
            self._server = self._proxy.connect()
        return self._server


def _header(head: bytes, name: bytes) -> bytes:
    """Value of a header; empty when there is none."""
    for line in head.split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.strip().lower() == name:
            return value.strip()
    return b""


def _status(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


def _plain(head: bytes, raw: Iterable[bytes]) -> bytes:
    """A body without the frame of its chunks."""
    body = b"".join(raw)
    if b"chunked" not in _header(head, b"transfer-encoding"):
        return body
    plain = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        if (size := int(line.split(b";")[0], 16)) == 0:
            break
        plain, body = plain + body[:size], body[size + 2 :]
    return plain


def _with_length(head: bytes, length: int) -> bytes:
    """The head, announcing a body of `length` bytes in one piece."""
    framing = (b"content-length:", b"transfer-encoding:")
    lines = [line for line in head.rstrip(b"\r\n").split(b"\r\n") if not line.lower().startswith(framing)]
    return b"\r\n".join([*lines, b"Content-Length: %d" % length]) + b"\r\n\r\n"
