"""How the gateway is spoken to, byte by byte: servers of every manner, addresses, proxies and TLS sessions."""

from __future__ import annotations

import multiprocessing
import os
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from common.settings import SettingsError
from sender import exchanges, origin
from sender.answers import Verdict
from sender.delivery import Called, Delivery, Skip
from sender.worker import _allow_many_connections
from simulator.client import Simulator
from tests.integration.test_gateway_client import client_for, delivery, only, results
from tools.processes import free_port, wait_until
from tools.usage import memory_mb

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


def wait_for_rest(client: Any) -> bool:
    """Whether the client holds no connection any more, soon."""
    deadline = time.monotonic() + 5
    while client._exchanges._connections and time.monotonic() < deadline:
        time.sleep(0.005)
    return not client._exchanges._connections


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


def test_address_that_refuses_is_looked_up_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "DOUBTED_SECONDS", 0.0)
    with addresses(monkeypatch, free_port()) as asked:
        assert verdicts("http://gateway.example", 2) == [(Verdict.TROUBLE, "connection_refused")] * 2
    assert len(asked) == 2


def test_second_answer_to_one_request_is_never_that_of_the_next() -> None:
    def serve(peer: Peer) -> None:
        while peer.read():
            peer.say(OK + REFUSED)

    with Server(serve) as server:
        assert verdicts(server.url, 3) == [ACCEPTED] * 3


def test_second_answer_in_a_record_of_its_own_is_never_that_of_the_next(tls: ssl.SSLContext) -> None:
    def serve(peer: Peer) -> None:
        peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while peer.read():
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
        peer.say(OK)
        peer.stream.close()
        peer.connection.close()

    with (
        Server(serve, tls=tls if over_tls else None) as server,
        client_for(secure(server) if over_tls else server.url, concurrency=1) as client,
    ):
        found = [result for result in results(client, delivery(340, 40)) if isinstance(result, Called)]
    # Now and then the end comes too late to be seen.
    assert sum(result.judgement.verdict is Verdict.ACCEPTED for result in found) > 30


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
            assert results(client, taken_back)[0].skip is Skip.RETURNED  # type: ignore[union-attr]
        _, resting = client._exchanges._resting[-1]
        begun.set()
        with Server(Peer.answer_all) as good:  # Where a new connection goes.
            client._exchanges._origin.addresses.known = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, ("127.0.0.1", good.port))
            ]
            assert wait_until(lambda: resting.is_closed or resting.received_bytes > 0, 5, pause=0.01)
            assert only(results(client, delivery(391))).judgement.verdict is Verdict.ACCEPTED


def test_answers_that_came_while_the_process_stood_still_are_read_all(simulator: Simulator) -> None:
    """By itself epoll tells of 1,023 connections at a time."""
    _allow_many_connections()
    count = 1100
    simulator.control({"kind": "latency", "milliseconds": 1500})
    try:
        with client_for(simulator.url, timeout=4.0, concurrency=2000) as client:
            client._limit.value = 2000.0
            wait, stood_still = client._exchanges.wait, threading.Event()

            def stand_still(seconds: float) -> list[exchanges.Ended]:
                if not stood_still.is_set() and len(client._exchanges) == count and not client._exchanges._connecting:
                    stood_still.set()
                    time.sleep(4.5)
                return wait(seconds)

            client._exchanges.wait = stand_still  # type: ignore[method-assign]
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


# Addresses --------------------------------------------------------------------------------------------------------


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


def test_next_address_is_tried_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(Peer.answer_all) as server, addresses(monkeypatch, free_port(), server.port) as asked:
        assert verdicts("http://gateway.example", 3) == [ACCEPTED] * 3
    assert asked == ["gateway.example"]


def test_next_address_is_tried_when_the_first_is_silent(monkeypatch: pytest.MonkeyPatch, simulator: Simulator) -> None:
    silent = int(simulator.url.rpartition(":")[2])
    simulator.control({"kind": "refuse", "how": "silence", "for_seconds": 30})
    try:
        with Server(Peer.answer_all) as server, addresses(monkeypatch, silent, server.port):
            began = time.monotonic()
            # The one that worked is the first from then on: the wait is not paid for twice.
            closing = verdicts("http://gateway.example", 3, timeout=1.0)
            assert time.monotonic() - began < 1.0
        assert closing == [ACCEPTED] * 3
    finally:
        simulator.calm()


@pytest.mark.parametrize("over_tls", [False, True])
def test_address_that_breaks_off_is_left_for_another(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, over_tls: bool
) -> None:
    with (
        Server(lambda peer: peer.connection.close()) as sick,
        Server(Peer.answer_all, tls=tls if over_tls else None) as good,
        addresses(monkeypatch, sick.port, good.port),
    ):
        found = verdicts(f"{'https' if over_tls else 'http'}://localhost", 8)
    # A request that was written may have been heard: it is not repeated at once.
    assert found[0] == ACCEPTED if over_tls else found[0][0] is Verdict.UNKNOWN
    assert found[1:] == [ACCEPTED] * 7


def test_many_addresses_leave_each_the_time_to_connect(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def shake_hands_late(peer: Peer) -> None:
        time.sleep(0.3)
        peer.stream.close()
        with tls.wrap_socket(peer.connection, server_side=True) as connection:
            Peer(connection).answer_all()

    with Server(shake_hands_late) as server, addresses(monkeypatch, *[server.port] * 20):
        assert verdicts("https://localhost", timeout=5.0) == [ACCEPTED]


def test_time_to_connect_is_each_calls_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has a single address may take longer than one that began later and has two."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as mute, Server(Peer.answer_all) as good:
        mute_port = mute.getsockname()[1]
        filling = [socket.socket() for _ in range(2)]  # No connection is accepted after these.
        for each in filling:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", mute_port))
        with addresses(monkeypatch, mute_port), client_for("http://gateway.example", timeout=4.0) as client:
            client.submit(delivery(600))
            known = client._exchanges._origin.addresses
            assert wait_until(lambda: bool(client._exchanges._connecting), 5, pause=0.01)
            known.known = [*known.known, (socket.AF_INET, socket.SOCK_STREAM, 6, ("127.0.0.1", good.port))]
            began = time.monotonic()
            assert only(results(client, delivery(601))).judgement.verdict is Verdict.ACCEPTED
            assert time.monotonic() - began < 3.0
        for each in filling:
            each.close()


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator.start() as running:
        yield running


def test_name_that_nobody_knows_is_a_dns_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert verdicts("http://gateway.example", 2) == [(Verdict.TROUBLE, "dns")] * 2


def test_name_server_that_does_not_answer_is_a_dns_fault_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def look_up(*_: object, **__: object) -> list[Any]:
        answered.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        assert verdicts("http://gateway.example", timeout=0.2) == [(Verdict.TROUBLE, "dns")]
    finally:
        answered.set()


def test_name_server_in_trouble_leaves_known_addresses_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        failed.set()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with Server(Peer.answer_all) as server, client_for(f"http://localhost:{server.port}", concurrency=1) as client:
        assert only(results(client, delivery(500))).judgement.verdict is Verdict.ACCEPTED
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(exchanges, "REST_SECONDS", 0.0)
        known = client._exchanges._origin.addresses
        known.doubt(known.known[0], -1000.0)
        for number in range(2):
            assert only(results(client, delivery(501 + number))).judgement.verdict is Verdict.ACCEPTED
        assert failed.wait(5)


# TLS and proxies --------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server needs that the client trusts, as localhost."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_new_connection_resumes_the_session_of_the_one_before(tls: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    tls.minimum_version = tls.maximum_version = version
    resumed: list[bool | None] = []

    def serve(peer: Peer) -> None:
        assert isinstance(peer.connection, ssl.SSLSocket)
        resumed.append(peer.connection.session_reused)
        peer.read()
        peer.say(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with Server(serve, tls=tls) as server:
        assert verdicts(secure(server), 3) == [ACCEPTED] * 3
    assert resumed == [False, True, True]


def test_session_that_cannot_be_resumed_is_not_kept(tls: ssl.SSLContext) -> None:
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.num_tickets = 0
    with Server(Peer.answer_all, tls=tls) as server, client_for(secure(server)) as client:
        assert only(results(client, delivery(700))).judgement.verdict is Verdict.ACCEPTED
        assert client._exchanges._origin.session is None


def offers_a_session(hello: bytes) -> bool:
    """Whether a ClientHello ends with the extension `pre_shared_key` (RFC 8446, 4.1.2 and 4.2.11)."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at] + 2
    while at < len(hello):
        if hello[at : at + 2] == b"\x00\x29":
            return True
        at += 4 + int.from_bytes(hello[at + 2 : at + 4], "big")
    return False


def test_session_that_the_gateway_does_not_like_is_given_up(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[bool] = []

    class Fussy(Server):
        """Breaks off every handshake in which a session is offered."""

        def _handle(self, connection: socket.socket) -> None:
            offered.append(offers_a_session(connection.recv(4096, socket.MSG_PEEK)))
            if offered[-1]:
                connection.close()
            else:
                super()._handle(connection)

    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with Fussy(serve, tls=tls) as server, addresses(monkeypatch, server.port):
        assert verdicts("https://localhost", 4) == [ACCEPTED, (Verdict.TROUBLE, "tls"), ACCEPTED, ACCEPTED]
    assert offered == [False, True, False, False]


def test_new_tls_connections_leave_nothing_behind(tls: ssl.SSLContext) -> None:
    """Each copy of a session that Python 3.11 makes keeps some 6 kB for good."""

    def serve(peer: Peer) -> None:
        peer.read()
        peer.say(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    server = Server(serve, tls=tls)
    # Its memory is no matter.
    elsewhere = multiprocessing.get_context("fork").Process(target=server._accept, daemon=True)
    elsewhere.start()
    with client_for(secure(server)) as client:
        assert len(results(client, delivery(1, 300))) == 300
        before = memory_mb(os.getpid(), "VmRSS")
        assert len(results(client, delivery(1001, 1000))) == 1000
        grown = memory_mb(os.getpid(), "VmRSS") - before
    elsewhere.kill()
    elsewhere.join()
    server._listener.close()
    assert grown < 2


def test_certificate_of_another_host_is_refused(tls: ssl.SSLContext) -> None:
    with Server(Peer.answer_all, tls=tls) as server:
        assert verdicts(server.url.replace("127.0.0.1", "127.0.0.2")) == [(Verdict.TROUBLE, "connection_refused")]
        with Server(Peer.answer_all, tls=tls, host="127.0.0.2") as other:
            assert verdicts(other.url) == [(Verdict.TROUBLE, "tls")]


def test_large_text_goes_whole_over_tls(tls: ssl.SSLContext) -> None:
    lengths: list[int] = []

    def serve(peer: Peer) -> None:
        head = peer.read_head()
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        time.sleep(0.2)  # Until its buffers are full, and the client has to wait for room.
        lengths.append(len(peer.stream.read(length)) - length)
        peer.say(OK)

    with Server(serve, tls=tls) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        with client_for(url, timeout=20) as client:
            result = only(results(client, delivery(600, text="x" * 8_000_000)))
    assert result.judgement.verdict is Verdict.ACCEPTED
    assert lengths == [0]


def proxying(heads: list[bytes], port: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Callable[[Peer], None]:
    """A proxy that opens tunnels to this port, whatever it is asked for."""

    def serve(peer: Peer) -> None:
        heads.append(peer.read_head())
        peer.say(answer)
        with socket.create_connection(("127.0.0.1", port)) as target:
            threading.Thread(target=pump, args=(target, peer.connection), daemon=True).start()
            pump(peer.connection, target)

    return serve


def pump(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes until there are no more."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_gateway_over_tls_is_reached_through_the_tunnel_of_a_proxy(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []
    with Server(Peer.answer_all, tls=tls) as server, Server(proxying(heads, server.port)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://anna:s%40fe@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "")
        assert verdicts("https://localhost:9999", 2) == [ACCEPTED] * 2
    (head,) = heads
    assert head.startswith(b"CONNECT localhost:9999 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " + b64encode(b"anna:s@fe") in head
    assert b"Bearer" not in head


def test_proxy_that_refuses_a_tunnel_is_a_gateway_that_was_not_reached(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(Peer.answer_all, tls=tls) as server:
        refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        with Server(proxying([], server.port, refusal)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
            assert verdicts("https://localhost:9999") == [(Verdict.TROUBLE, "connection_refused")]


def test_gateway_without_tls_is_asked_for_at_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    def serve(peer: Peer) -> None:
        heads.append(peer.read())
        peer.say(OK)

    with Server(serve) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        assert verdicts("http://gateway.example/v1") == [ACCEPTED]
    assert heads[0].startswith(b"POST http://gateway.example/v1/send/100 HTTP/1.1\r\nHost: gateway.example\r\n")


def test_host_that_no_proxy_names_is_called_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(Peer.answer_all) as server:
        assert verdicts(server.url) == [ACCEPTED]


@pytest.mark.parametrize("proxy", ["http://proxy:abc", "http://proxy:99999", "http://:3128"])
def test_proxy_that_cannot_be_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(SettingsError, match="HTTP_PROXY"), client_for("http://gateway.example"):
        pass


def test_proxy_that_is_itself_spoken_to_over_tls_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "https://127.0.0.1:1")
    with pytest.raises(SettingsError, match="HTTPS_PROXY"), client_for("https://localhost:1"):
        pass
