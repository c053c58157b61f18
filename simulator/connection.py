"""One connection of a caller: HTTP/1.1 in, answers out, in order, with all the ways an answer can go wrong."""

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from simulator.answers import Answer, Then, refusal

MAX_BODY_BYTES = 1_000_000
MAX_WAITING = 64  # Pipelined requests read ahead of their turn.


@dataclass(slots=True)
class Request:
    """A request as it came; the target still holds the query string."""

    method: bytes = b""
    target: bytes = b""
    authorization: bytes = b""
    content_type: bytes = b""
    body: bytes = b""
    keep_alive: bool = True


class Application(Protocol):
    """What a connection needs from the gateway behind it."""

    def answer(self, request: Request) -> tuple[float, Answer]:
        """Return how many seconds to wait, and what to answer then."""

    def started(self, request: Request) -> None:
        """Hear that a request was read and waits for its answer."""

    def finished(self, request: Request, abandoned: bool) -> None:
        """Hear that it was answered, or given up by its caller."""


class Connection(asyncio.Protocol):
    """The parser calls the on_* methods; one request is answered at a time, later ones wait."""

    transport: asyncio.Transport

    def __init__(self, application: Application, connections: set["Connection"]) -> None:
        self.application = application
        self.connections = connections
        self.loop = asyncio.get_running_loop()
        self.parser = HttpRequestParser(self)
        self.arriving = Request()
        self.current: Request | None = None
        self.waiting: deque[Request] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.closing = False

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the caller is gone either way
        self.closing = True
        self.connections.discard(self)
        self._stop_timer()
        for request in (self.current, *self.waiting):
            if request is not None:
                self.application.finished(request, abandoned=True)
        self.current = None
        self.waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        try:
            self.parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._give_up(400, "this is not HTTP/1.1")

    # Called by the parser.

    def on_message_begin(self) -> None:
        self.arriving = Request()

    def on_url(self, part: bytes) -> None:
        self.arriving.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"authorization":
                self.arriving.authorization = value
            case b"content-type":
                self.arriving.content_type = value
            case b"expect":
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self.arriving.body += part
        if len(self.arriving.body) > MAX_BODY_BYTES:
            self._give_up(413, "the body is too long")

    def on_message_complete(self) -> None:
        if self.closing:
            return
        request = self.arriving
        request.method = self.parser.get_method()
        request.keep_alive = self.parser.should_keep_alive()
        self.application.started(request)
        if self.current is None:
            self._begin(request)
            return
        self.waiting.append(request)
        if len(self.waiting) >= MAX_WAITING:
            self.transport.pause_reading()

    # Answering.

    def _begin(self, request: Request) -> None:
        self.current = request
        delay, answer = self.application.answer(request)
        if delay > 0:
            self.timer = self.loop.call_later(delay, self._send, request, answer)
        else:
            self._send(request, answer)

    def _send(self, request: Request, answer: Answer) -> None:
        if answer.seconds_per_byte:
            head, separator, body = answer.payload.partition(b"\r\n\r\n")
            self.transport.write(head + separator)
            self._drip(request, answer, body)
        elif answer.then is not Then.HANG:
            self.transport.write(answer.payload)
            self._end(request, answer)

    def _drip(self, request: Request, answer: Answer, body: bytes) -> None:
        self.transport.write(body[:1])
        if len(body) > 1:
            self.timer = self.loop.call_later(answer.seconds_per_byte, self._drip, request, answer, body[1:])
        else:
            self._end(request, answer)

    def _end(self, request: Request, answer: Answer) -> None:
        self.current = None
        self.application.finished(request, abandoned=False)
        if answer.then is Then.RESET:
            self.reset()
        elif answer.then is Then.CLOSE or not request.keep_alive:
            self._close()
        elif self.waiting:
            # A fresh call, not a nested one: a long pipeline must not run into the recursion limit.
            self.current = self.waiting.popleft()
            self.loop.call_soon(self._resume, self.current)
            if not self.waiting:
                self.transport.resume_reading()

    def _resume(self, request: Request) -> None:
        if not self.closing:
            self._begin(request)

    def _give_up(self, status: int, reason: str) -> None:
        if not self.closing:
            self.transport.write(refusal(status, reason).payload)
            self._close()

    def _close(self) -> None:
        self.closing = True
        self._stop_timer()
        self.transport.close()

    def _stop_timer(self) -> None:
        if self.timer:
            self.timer.cancel()

    def reset(self) -> None:
        """Drop the connection at once."""
        self.closing = True
        self._stop_timer()
        reset(self.transport)


def reset(transport: asyncio.Transport) -> None:
    """Close a connection with a RST, dropping what was not sent yet."""
    connected = transport.get_extra_info("socket")
    if connected is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
