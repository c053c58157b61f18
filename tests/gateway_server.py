"""Gateways that do with each connection exactly what a test says, and what calls to them come to."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import pytest

from sender.answers import Verdict
from tests.integration.test_gateway_client import client_for, delivery, only, results

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"code": 0}'
REFUSED = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"code": 404}'


class Peer:
    """One accepted connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.stream = connection.makefile("rb")

    def read_head(self) -> bytes:
        """The next request's line and headers; b"" when there is none."""
        head = b""
        while (line := self.stream.readline()) not in (b"", b"\r\n"):
            head += line
        return head

    def read(self) -> bytes:
        """The same, and its body is read, too."""
        if head := self.read_head():
            self.stream.read(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        return head

    def say(self, *pieces: bytes) -> None:
        """Send these bytes, each in a packet of its own."""
        for piece in pieces:
            self.connection.sendall(piece)
            time.sleep(0.01 if len(pieces) > 1 else 0)

    @contextmanager
    def corked(self) -> Iterator[None]:
        """What is said meanwhile arrives at once, and with it the end where the connection is closed."""
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        yield
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def answer_all(self, answer: bytes = OK) -> list[bytes]:
        """Give every request this answer until there are no more; their heads."""
        heads = []
        while head := self.read():
            heads.append(head)
            self.say(answer)
        return heads


class Server:
    """Does with each connection what it is told, on a thread of its own."""

    def __init__(self, serve: Callable[[Peer], Any], *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"):
        self._serve = serve
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self.connections.append(connection)
            self._serve(Peer(connection))


def secure(server: Server) -> str:
    """Its address under the name that is in its certificate."""
    return server.url.replace("127.0.0.1", "localhost")


def verdicts(url: str, count: int = 1, timeout: float = 5.0) -> list[tuple[Verdict, str | None]]:
    """What so many calls come to, one after another, with one client."""
    with client_for(url, timeout=timeout, concurrency=1) as client:
        found = [only(results(client, delivery(100 + number))).judgement for number in range(count)]
    return [(judgement.verdict, judgement.reason) for judgement in found]


ACCEPTED = (Verdict.ACCEPTED, None)


def wait_for_rest(client: Any) -> bool:
    """Whether the client holds no connection any more, soon."""
    deadline = time.monotonic() + 5
    while client._exchanges._connections and time.monotonic() < deadline:
        time.sleep(0.005)
    return not client._exchanges._connections


@contextmanager
def addresses(monkeypatch: pytest.MonkeyPatch, *ports: int) -> Iterator[list[str]]:
    """Have every name stand for these ports of this machine; what was looked up."""
    asked: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", found)) for found in ports]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        yield asked
