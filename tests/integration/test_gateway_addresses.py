"""Where the gateway is: several addresses, some of no use, and name servers in trouble."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sender import exchanges, origin
from sender.answers import Verdict
from simulator.client import Simulator
from tests.gateway_server import ACCEPTED, Peer, Server, addresses, verdicts
from tests.integration.test_gateway_client import client_for, delivery, only, results
from tools.processes import free_port, wait_until


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator.start() as running:
        yield running


def test_address_that_refuses_is_looked_up_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "DOUBTED_SECONDS", 0.0)
    with addresses(monkeypatch, free_port()) as asked:
        assert verdicts("http://gateway.example", 2) == [(Verdict.TROUBLE, "connection_refused")] * 2
    assert len(asked) == 2


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
            closing = verdicts("http://gateway.example", 3, timeout=3.0)
            assert time.monotonic() - began < 3.0
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
