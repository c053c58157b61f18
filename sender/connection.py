"""HTTP/1.1 to one server over sockets that never wait: what a call needs, and no more.

TLS is the standard library's and answers are read by llhttp (httptools), both in C. What is left is a conversation in
turns: one request, one answer, and the connection is free for the next. Why there is no HTTP library here is in
docs/decisions.md.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from sender.answers import Answer, Fault
from sender.origin import Address, Head, Origin

BODY_LIMIT_BYTES = 64 * 1024  # A real answer has some dozen bytes; ten megabytes are not read.
ANSWER_LIMIT_BYTES = 128 * 1024  # with its headers
READ_BYTES = WRITE_BYTES = 16 * 1024  # at once; what a record of TLS holds

_HEADERS = frozenset({b"content-length", b"transfer-encoding", b"retry-after"})  # the ones that are read
_END_OF_HEAD = b"\r\n\r\n"
# Heads of answers are the same but for the second in which they are given: to read each anew is a quarter of a call.
HEADS = 64  # that are remembered
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Progress(Enum):
    """How far a connection has come."""

    NONE = auto()  # it waits for the other side
    READY = auto()  # a request may be sent
    ANSWERED = auto()
    FAILED = auto()  # it is of no use any more


class _Stage(Enum):
    CONNECTING = auto()
    TUNNELLING = auto()
    SHAKING_HANDS = auto()
    OPEN = auto()


class Connection:
    """One connection. Whenever epoll tells that its socket is ready for something, `proceed` does what can be done.

    The parser calls the methods that begin with `on_`.
    """

    __slots__ = (
        "_body",
        "_epoll",
        "_events",
        "_headers",
        "_is_broken",
        "_is_complete",
        "_is_resumable",
        "_origin",
        "_parser",
        "_socket",
        "_stage",
        "_status",
        "_unsent",
        "address",
        "descriptor",
        "fault",
        "has_answered",
        "is_closed",
        "is_reusable",
        "received_bytes",
    )

    def __init__(self, origin: Origin, address: Address, epoll: select.epoll) -> None:
        """Begin to connect. Raises OSError where that cannot even be begun."""
        self.address = address
        self.fault: Fault | None = None
        self.has_answered = False  # ever
        self.is_closed = False
        self._origin = origin
        self._epoll = epoll
        family, kind, protocol, name = address
        self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):  # It is under way then.
                self._socket.connect(name)
            self.descriptor = self._socket.fileno()
            self._events = _WRITE
            epoll.register(self.descriptor, _WRITE)
        except OSError:
            self._socket.close()
            raise
        self._stage = _Stage.CONNECTING
        self._unsent: bytes | memoryview = b""
        self._parser = HttpResponseParser(self)
        # Old and simple servers end lines with a line feed alone (RFC 9112, 2.2).
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        self._is_resumable = False
        self._is_broken = False
        self._forget()

    def close(self) -> None:
        """Close it, whatever it is doing."""
        self.is_closed = True
        self._socket.close()
        del self._parser  # It refers to us, too.

    def ask(self, request: bytes) -> None:
        """Send a request. The connection is READY, or has answered the one before and `is_reusable`."""
        self._forget()
        self._unsent = request
        self._write()
        if self._unsent:
            self._await(_READ | _WRITE)

    def answer(self, milliseconds: int) -> Answer:
        """What came back, or what has been so far; `fault` tells why not more."""
        retry_after = None
        if self._status in (429, 503) and (value := self._headers.get(b"retry-after")) is not None:
            retry_after = _retry_after(value)
        return Answer(milliseconds, self.fault, self._status, self._body, retry_after)

    def proceed(self) -> Progress:
        """Do what can be done without waiting."""
        if self._stage is _Stage.OPEN:
            return self._read()
        if self._stage is _Stage.CONNECTING:
            return self._finish_connecting()
        if self._stage is _Stage.TUNNELLING:
            return self._read_tunnel()
        return self._shake_hands()

    def _forget(self) -> None:
        """Be ready for another answer."""
        self.is_reusable = False
        self.received_bytes = 0
        self._is_complete = False
        self._body = b""
        self._begin_headers()

    def _begin_headers(self) -> None:
        self._status: int | None = None
        self._headers: dict[bytes, bytes] = {}

    def _await(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._epoll.modify(self.descriptor, events)

    def _fail(self, fault: Fault) -> Progress:
        self.fault = fault
        return Progress.FAILED

    # Opening ------------------------------------------------------------------------------------------------------

    def _finish_connecting(self) -> Progress:
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return self._fail(Fault.REFUSED)
        if self._origin.tunnel is None:
            return self._begin_tls()
        self._stage = _Stage.TUNNELLING
        self._unsent = self._origin.tunnel
        self._write()  # some dozen bytes into an empty buffer
        self._await(_READ)
        return Progress.NONE

    def _read_tunnel(self) -> Progress:
        """Read a proxy's answer to CONNECT (RFC 9110, 9.3.6): its headers, after which the server speaks."""
        try:
            # Byte by byte would be right for a server that speaks first; with TLS we do.
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return Progress.NONE
        except OSError:
            data = b""
        self._body += data
        if not data or len(self._body) > ANSWER_LIMIT_BYTES:
            return self._fail(Fault.REFUSED)
        if b"\r\n\r\n" not in self._body:
            return Progress.NONE
        status = self._body.split(None, 2)[1:2]
        if not status or not status[0].startswith(b"2"):
            return self._fail(Fault.REFUSED)
        return self._begin_tls()

    def _begin_tls(self) -> Progress:
        origin = self._origin
        if origin.tls is None:
            return self._be_ready()
        try:
            self._socket = origin.tls.wrap_socket(
                self._socket, server_hostname=origin.host, do_handshake_on_connect=False, session=origin.session
            )
        except (OSError, ValueError):
            return self._fail(Fault.TLS)
        self._is_resumable = True
        self._stage = _Stage.SHAKING_HANDS
        return self._shake_hands()

    def _shake_hands(self) -> Progress:
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._await(_READ)
            return Progress.NONE
        except ssl.SSLWantWriteError:
            self._await(_WRITE)
            return Progress.NONE
        except (OSError, ValueError):
            self._origin.give_up_session()
            return self._fail(Fault.TLS)
        return self._be_ready()

    def _be_ready(self) -> Progress:
        self._stage = _Stage.OPEN
        self._forget()
        self.is_reusable = True
        self._await(_READ)
        return Progress.READY

    # One request, one answer --------------------------------------------------------------------------------------

    def _write(self) -> None:
        try:
            while self._unsent:
                # Piece by piece: TLS wants the very same bytes again after it could not write them.
                sent = self._socket.send(self._unsent[:WRITE_BYTES])
                self._unsent = memoryview(self._unsent)[sent:] if sent < len(self._unsent) else b""
        except _NOT_YET:
            pass
        except OSError:
            # It may have answered before it broke off: a refusal of a request that is too large, for instance.
            self._is_broken = True
            self._unsent = b""

    def _read(self) -> Progress:
        if self._unsent:
            self._write()
            if not self._unsent:
                self._await(_READ)
        try:
            data = self._socket.recv(READ_BYTES)
        except _NOT_YET:
            return Progress.NONE
        except OSError:
            return self._fail(Fault.RESET)
        return self._take_in(data) if data else self._end()

    def _take_in(self, data: bytes) -> Progress:
        is_first = not self.received_bytes
        self.received_bytes += len(data)
        if not (is_first and self._take_in_like_another(data)):
            try:
                self._parser.feed_data(data)
            except (HttpParserError, HttpParserUpgrade):
                if not self._is_complete:
                    return self._fail(Fault.NOT_HTTP)
                self.is_reusable = False  # What follows the answer is none.
            if is_first and self.is_reusable:
                self._remember_head(data)
        if self._is_complete:
            self._keep_session()
            return Progress.ANSWERED
        return self._fail(Fault.TOO_LARGE) if self._is_too_large() else Progress.NONE

    def _take_in_like_another(self, data: bytes) -> bool:
        """Whether this is a whole answer whose head has been read before: then it is that of this request."""
        head, _, body = data.partition(_END_OF_HEAD)
        known = self._origin.heads.get(head)
        if known is None or len(body) != known.body_bytes:
            return False
        self._status, self._headers, self._body = known.status, known.headers, body
        self._complete(keeps_alive=True)
        return True

    def _remember_head(self, data: bytes) -> None:
        """Note what the head of an answer says that came whole, alone, and by its length."""
        head, _, body = data.partition(_END_OF_HEAD)
        if body != self._body or self._headers != {b"content-length": b"%d" % len(body)}:
            return
        if len(self._origin.heads) == HEADS:
            self._origin.heads.clear()
        self._origin.heads[head] = Head(self._status, self._headers, len(body))

    def _end(self) -> Progress:
        """The other side has closed the connection."""
        if not self.received_bytes:
            return self._fail(Fault.RESET if self._is_broken else Fault.CLOSED)
        chunked = self._headers.get(b"transfer-encoding", b"").rstrip().lower().endswith(b"chunked")
        if self._status is None or b"content-length" in self._headers or chunked:
            return self._fail(Fault.TRUNCATED)
        return Progress.ANSWERED  # The end of the connection is that of the body (RFC 9112, 6.3).

    def _is_too_large(self) -> bool:
        announced = self._headers.get(b"content-length", b"").lstrip(b"0")[:9]  # Python reads 4,300 digits at most.
        return (
            self.received_bytes > ANSWER_LIMIT_BYTES
            or len(self._body) > BODY_LIMIT_BYTES
            or int(announced if announced.isdigit() else 0) > BODY_LIMIT_BYTES
        )

    def _keep_session(self) -> None:
        """Keep what the next connection can resume: tickets come with the first answer (RFC 8446, 4.6.1)."""
        if self._is_resumable:
            assert isinstance(self._socket, ssl.SSLSocket)
            self._is_resumable = False
            self._origin.keep_session(self._socket)

    # The parser's callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A second answer to one request: it is nobody's, and must not become that of the next."""
        if self._is_complete:
            raise ValueError("an answer without a request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of an answer."""
        if (known := name.lower()) in _HEADERS:
            self._headers[known] = value

    def on_headers_complete(self) -> None:
        """The status and all headers are there."""
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._body += data

    def on_message_complete(self) -> None:
        """An answer is there, be it an interim one (RFC 9110, 15.2)."""
        if self._status is not None and self._status < 200:
            self._begin_headers()
            return
        self._complete(keeps_alive=self._parser.should_keep_alive())

    def _complete(self, *, keeps_alive: bool) -> None:
        self._is_complete = self.has_answered = True
        self.is_reusable = keeps_alive and not self._unsent and not self._is_broken


def _retry_after(value: bytes) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3); None when it says nothing, or "now"."""
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text) or None
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    seconds = (at - datetime.now(UTC)).total_seconds()
    return seconds if seconds > 0 else None
