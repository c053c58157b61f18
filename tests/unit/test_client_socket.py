"""The server's end of a connection: a slow client is waited for, one that stalls is not."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from common import serving
from common.serving import ClientSocket

STALL_SECONDS = 0.6
LARGE = b"x" * 4_000_000


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ClientSocket, socket.socket]]:
    """The server's end, and the client's."""
    monkeypatch.setattr(serving, "STALL_SECONDS", STALL_SECONDS)
    accepted, client = socket.socketpair()
    server = ClientSocket(accepted.family, accepted.type, accepted.proto, accepted.detach())
    server.setblocking(True)
    with contextlib.closing(server), contextlib.closing(client):
        yield server, client


def test_an_answer_may_take_as_long_as_the_client_goes_on_taking_it(pair: tuple[ClientSocket, socket.socket]) -> None:
    server, client = pair
    received = bytearray()

    def take_slowly() -> None:
        while len(received) < len(LARGE):
            received.extend(client.recv(200_000))
            time.sleep(STALL_SECONDS / 10)

    taking = threading.Thread(target=take_slowly)
    taking.start()
    begin = time.monotonic()
    server.sendall(LARGE)
    took = time.monotonic() - begin
    taking.join()

    assert took > STALL_SECONDS
    assert received == LARGE


def test_a_client_that_takes_nothing_has_gone(pair: tuple[ClientSocket, socket.socket]) -> None:
    with pytest.raises(ConnectionResetError):
        pair[0].sendall(LARGE)


def test_a_client_that_sends_nothing_has_gone_and_can_still_be_told(pair: tuple[ClientSocket, socket.socket]) -> None:
    server, client = pair

    with pytest.raises(ConnectionResetError):
        server.recv(1)

    server.sendall(b"HTTP/1.1 400")
    assert client.recv(12) == b"HTTP/1.1 400"
    server.settimeout(STALL_SECONDS / 2)
    assert server.recv(1) == b""  # at once: whoever closes is not kept waiting


def test_whoever_set_another_patience_is_told_when_it_ran_out(pair: tuple[ClientSocket, socket.socket]) -> None:
    server, _ = pair
    server.settimeout(STALL_SECONDS / 2)

    with pytest.raises(TimeoutError):
        server.recv(1)
