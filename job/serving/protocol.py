"""HTTP connections that cannot be held for ever: deadlines that uvicorn's own protocol does not have."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from job.serving.refusal import Refusal, unavailable
from job.serving.settings import ServingConfig


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol with an end to everything that a client can draw out.

    Headers and body have each a deadline that no further byte moves; what is sent has to be read; of a body that
    nobody wants a part is passed over, so that the client hears why; and of the next request so much is taken while
    an answer is under way that the end of a connection is noticed.
    """

    def __init__(self, limits: ServingConfig, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._phase = ""  # what the deadline is for
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._unwanted = 0  # bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for headers, or refuse a connection too many."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self._limits.max_connections:
            self._answer(unavailable(f"more than {self._limits.max_connections} connections", "busy", 1))
            return
        self._enter("header")

    def connection_lost(self, exc: Exception | None) -> None:
        """No deadline outlives its connection."""
        self._enter("")
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in, and see which deadline they are under."""
        if self.cycle and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._unwanted += len(data)
            if self._unwanted > 4 * self._limits.max_body_bytes:
                self._close()
                return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request, or close."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        else:
            self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._close()

    def pause_writing(self) -> None:
        """The client does not read: give it until the deadline."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or more than the limits."""
        self._answer(Refusal(400, f"{msg} Or its headers are larger than {self._limits.max_header_bytes} bytes."))

    def _watch(self) -> None:
        if self.transport.is_closing():
            return
        theirs, ahead = self.conn.their_state, len(self.conn.trailing_data[0])
        if theirs is h11.IDLE:
            if ahead or self._phase == "header":
                self._enter("header")
        else:
            self._enter("body" if theirs is h11.SEND_BODY else "")
        if ahead < self._limits.max_header_bytes and theirs not in (h11.IDLE, h11.SEND_BODY):
            self.flow.resume_reading()

    def _enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._phase, self._unwanted = phase, 0
        if phase == "header":
            self._deadline = self.loop.call_later(self._limits.header_seconds, self._header_is_late)
        if phase == "body":  # a second later than the application, which can say why
            self._deadline = self.loop.call_later(self._limits.body_seconds + 1, self._close)

    def _header_is_late(self) -> None:
        if not self.conn.trailing_data[0]:
            self._close()
            return
        self._answer(Refusal(408, f"the headers took longer than {self._limits.header_seconds:g} s"))

    def _answer(self, refusal: Refusal) -> None:
        """Answer without the application, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or (self.cycle and self.cycle.response_started):
            self._close()
            return
        body = json.dumps(refusal.plain()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head = h11.Response(
            status_code=refusal.status,
            headers=list({**headers, **refusal.headers}.items()),
            reason=STATUS_PHRASES[refusal.status],
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._close()

    def _close(self) -> None:
        """Close, at the latest when a client has had its time to read the rest."""
        self._enter("")
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self.loop.call_later(self._limits.write_seconds, self.transport.abort)
