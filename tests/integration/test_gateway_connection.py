"""How the gateway is spoken to, byte by byte: answers of every form, and connections that are kept."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from sender import connection, exchanges
from sender.answers import Verdict
from sender.delivery import Called, Delivery, Skip, Skipped
from sender.worker import _allow_many_connections
from simulator.client import Simulator
from tests.gateway_server import ACCEPTED, OK, REFUSED, Peer, Server, secure, verdicts, wait_for_rest
from tests.integration.test_gateway_client import client_for, delivery, only, results
from tools.processes import wait_until


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator.start() as running:
        yield running


@pytest.mark.parametrize(
    "pieces",
    [
        [b'HTTP/1.0 200 OK\r\n\r\n{"code": 0}'],
        [b'HTTP/1.1 200 OK\nContent-Length: 11\n\n{"code": 0}'],
        [b"HTTP/1.1 200\r\nContent-Length: 11\r\n\r\n", b'{"code": 0}'],
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n", b'{"co\r\n7\r\nde": 0', b"}\r\n0\r\n\r\n"],
        [bytes([byte]) for byte in OK],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", b'{"code": 0}'],
        [b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 5000 + b"11\r\n\r\n", b'{"code": 0}'],
    ],
    ids=["until the end", "line feeds", "no reason", "interim", "chunks", "bytes", "identity", "padded length"],
)
def test_every_form_of_an_answer_is_understood(pieces: Sequence[bytes]) -> None:
    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(*pieces)

    with Server(serve) as server:
        assert verdicts(server.url) == [ACCEPTED]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Le", "truncated"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"code": 0}', "truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b'b\r\n{"code": 0}', "truncated"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Noise: " + b"x" * 200_000 + b"\r\n\r\n", "body_too_large"),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n", "not_http"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "not_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n", "not_http"),
    ],
)
def test_what_is_no_whole_answer_may_have_been_accepted(answer: bytes, reason: str) -> None:
    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(answer)

    with Server(serve) as server:
        assert verdicts(server.url) == [(Verdict.UNKNOWN, reason)]


def test_request_names_the_host_and_the_path_as_the_address_has_them() -> None:
    heads: list[bytes] = []

    def serve(peer: Peer) -> None:
        heads.append(peer.read())
        peer.say(OK)

    with Server(serve) as server:
        assert verdicts(f"{server.url}/v1/ключ%20a") == [ACCEPTED]
    line, *headers = heads[0].decode().splitlines()
    assert line == "POST /v1/%D0%BA%D0%BB%D1%8E%D1%87%20a/send/100 HTTP/1.1"
    assert f"Host: 127.0.0.1:{server.port}" in headers
    assert "Authorization: Bearer right" in headers


def test_address_of_the_sixth_version_is_called() -> None:
    heads: list[bytes] = []
    with Server(lambda peer: heads.extend(peer.answer_all()), host="::1") as server:
        assert verdicts(server.url) == [ACCEPTED]
        assert f"Host: [::1]:{server.port}".encode() in server_said(heads)


def server_said(heads: list[bytes]) -> bytes:
    """The first head, once the connection has ended."""
    deadline = time.monotonic() + 10
    while not heads and time.monotonic() < deadline:
        time.sleep(0.01)
    return heads[0]


# Connections that are kept ----------------------------------------------------------------------------------------


def test_connection_is_kept_for_the_next_call() -> None:
    with Server(Peer.answer_all) as server:
        assert verdicts(server.url, 20) == [ACCEPTED] * 20
        assert len(server.connections) == 1


def test_answer_with_the_head_of_another_has_a_body_and_an_end_of_its_own() -> None:
    head, accepted, refused = REFUSED[:-13], b'{"code": 0  }', REFUSED[-13:]

    def serve(peer: Peer) -> None:
        for pieces in ((accepted,), (refused,), (accepted[:5], accepted[5:]), (accepted + refused,)):
            peer.read()
            peer.say(head + pieces[0], *pieces[1:])

    with Server(serve) as server:
        found = [verdict for verdict, _ in verdicts(server.url, 5)]
        # The surplus is nobody's: the fifth call is the first of another connection.
        assert len(server.connections) == 2
    assert found == [Verdict.ACCEPTED, Verdict.REFUSED, Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED]

    def cut(peer: Peer) -> None:
        peer.read()
        peer.say(OK)
        peer.read()
        peer.say(OK[:-3])

    with Server(cut) as server:
        assert [verdict for verdict, _ in verdicts(server.url, 2)] == [Verdict.ACCEPTED, Verdict.UNKNOWN]


def test_few_heads_are_remembered_and_none_that_says_more_than_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADS", 3)
    fields = [b"Date: %d" % second for second in range(8)] + [b"Retry-After: 1", b"Connection: close"]
    later = iter(fields)

    def serve(peer: Peer) -> None:
        while peer.read():
            peer.say(OK.replace(b"\r\n", b"\r\n%b\r\n" % next(later), 1))

    with Server(serve) as server, client_for(server.url, concurrency=1) as client:
        found = [only(results(client, delivery(400 + number))).judgement.verdict for number in range(len(fields))]
        heads = client._exchanges._origin.heads
    assert found == [Verdict.ACCEPTED] * len(fields)
    assert [head.splitlines()[1] for head in heads] == [b"Date: 6", b"Date: 7"]


def test_connection_that_the_server_will_close_is_not_used_again() -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with Server(lambda peer: peer.answer_all(closing)) as server:
        assert verdicts(server.url, 3) == [ACCEPTED] * 3
        assert len(server.connections) == 3


def test_connection_that_was_closed_while_it_rested_costs_no_attempt() -> None:
    ended = threading.Event()

    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(OK)
        peer.connection.shutdown(socket.SHUT_RDWR)
        ended.set()

    with Server(serve) as server, client_for(server.url, concurrency=1) as client:
        for number in range(3):
            assert only(results(client, delivery(200 + number))).judgement.verdict is Verdict.ACCEPTED
            assert ended.wait(5)
            ended.clear()
            # The client's loop, not ours, has to have heard of it.
            assert wait_for_rest(client)
        assert len(server.connections) == 3


def test_connection_that_nobody_needs_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "REST_SECONDS", 0.0)
    with Server(Peer.answer_all) as server:
        assert verdicts(server.url, 3) == [ACCEPTED] * 3
        assert len(server.connections) == 3


def test_connection_that_nobody_needs_is_closed_without_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "REST_SECONDS", 0.0)
    with Server(Peer.answer_all) as server, client_for(server.url) as client:
        assert only(results(client, delivery(250))).judgement.verdict is Verdict.ACCEPTED
        assert wait_for_rest(client)


def test_second_answer_to_one_request_is_never_that_of_the_next() -> None:
    def serve(peer: Peer) -> None:
        while peer.read():
            peer.say(OK + REFUSED)

    with Server(serve) as server:
        assert verdicts(server.url, 3) == [ACCEPTED] * 3


def test_second_answer_in_a_record_of_its_own_is_never_that_of_the_next(tls: ssl.SSLContext) -> None:
    def serve(peer: Peer) -> None:
        while peer.read():
            with peer.corked():
                peer.say(OK)
                peer.say(REFUSED)

    with Server(serve, tls=tls) as server, client_for(secure(server), concurrency=1) as client:
        found = [result for result in results(client, delivery(310, 20)) if isinstance(result, Called)]
    assert [result.judgement.verdict for result in found] == [Verdict.ACCEPTED] * 20


@pytest.mark.parametrize("over_tls", [False, True])
def test_connection_that_ends_with_its_answer_is_not_used_again(tls: ssl.SSLContext, over_tls: bool) -> None:
    """The server says nowhere that it will close it."""

    def serve(peer: Peer) -> None:
        peer.read()
        with peer.corked():
            peer.say(OK)
            peer.stream.close()
            peer.connection.close()

    with (
        Server(serve, tls=tls if over_tls else None) as server,
        client_for(secure(server) if over_tls else server.url, concurrency=1) as client,
    ):
        found = [result for result in results(client, delivery(340, 40)) if isinstance(result, Called)]
    assert [result.judgement.verdict for result in found] == [Verdict.ACCEPTED] * 40


def test_connection_that_speaks_before_it_is_asked_is_not_used() -> None:
    begun = threading.Event()

    def serve(peer: Peer) -> None:
        assert begun.wait(5)
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n")
        peer.read()
        peer.say(b'\r\n{"code": 404}')

    with Server(serve) as server, client_for(server.url, concurrency=1) as client:
        taken_back = delivery(390)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Delivery, "objection", lambda *_: Skip.RETURNED)
            [result] = results(client, taken_back)
            assert isinstance(result, Skipped)
            assert result.skip is Skip.RETURNED
        _, resting = client._exchanges._resting[-1]
        begun.set()
        with Server(Peer.answer_all) as good:  # Where a new connection goes.
            client._exchanges._origin.addresses.known = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, ("127.0.0.1", good.port))
            ]
            assert wait_until(lambda: resting.is_closed or resting.received_bytes > 0, 5, pause=0.01)
            assert only(results(client, delivery(391))).judgement.verdict is Verdict.ACCEPTED


def test_answers_that_came_while_the_process_stood_still_are_read_all(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself epoll tells of 1,023 connections at a time."""
    _allow_many_connections()
    count = 1100
    simulator.control({"kind": "latency", "milliseconds": 3000})
    try:
        with client_for(simulator.url, timeout=6.0, concurrency=2000) as client:
            client._limit.value = 2000.0
            wait, stood_still = client._exchanges.wait, threading.Event()

            def stand_still(seconds: float) -> list[exchanges.Exchange]:
                if not stood_still.is_set() and len(client._exchanges) == count and not client._exchanges._connecting:
                    stood_still.set()
                    time.sleep(6.5)
                return wait(seconds)

            monkeypatch.setattr(client._exchanges, "wait", stand_still)
            found = [result for result in results(client, delivery(10_000, count)) if isinstance(result, Called)]
    finally:
        simulator.calm()
    assert stood_still.is_set()
    assert Counter(result.judgement.verdict for result in found) == {Verdict.ACCEPTED: count}


def test_late_second_answer_is_never_that_of_the_next_call() -> None:
    said = threading.Event()

    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(OK, REFUSED)
        said.set()
        peer.answer_all()

    with Server(serve) as server, client_for(server.url, concurrency=1) as client:
        for number in range(2):
            assert only(results(client, delivery(300 + number))).judgement.verdict is Verdict.ACCEPTED
            assert said.wait(5)
            assert wait_for_rest(client)


def test_refusal_before_the_whole_request_was_read_is_one() -> None:
    def serve(peer: Peer) -> None:
        peer.read_head()
        peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with Server(serve) as server, client_for(server.url, timeout=10) as client:
        result = only(results(client, delivery(400, text="x" * 5_000_000)))
    assert (result.judgement.verdict, result.judgement.reason) == (Verdict.REFUSED, "http_413")
