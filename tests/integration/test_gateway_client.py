"""The gateway client against real sockets: what it sends, and what it makes of every way to answer badly."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from db.queries.batches import Recipient, Standing, TakenBatch
from db.windows import Window
from sender.answers import Verdict
from sender.clock import DatabaseClock
from sender.delivery import Call, Called, Delivery, Result, Skip, Skipped
from sender.gateway import MAILING_SHARE, GatewayClient
from sender.limit import FIRST
from sender.outcomes import Terms
from sender.pacer import Pacer
from simulator.client import Simulator
from tools.processes import free_port

SHARE_OF_TEN = int(10 * MAILING_SHARE)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator.start(token="right") as running:
        yield running


@contextmanager
def client_for(
    url: str, timeout: float = 1.0, concurrency: int = 50, token: str | None = "right"
) -> Iterator[GatewayClient]:
    # A pacer that was told no rate sets no limit, and needs no database.
    client = GatewayClient(url, token, timeout, concurrency, Pacer(sa.create_engine("postgresql+psycopg2://")))
    client.start()
    try:
        yield client
    finally:
        client.close()


def delivery(
    first_id: int,
    count: int = 1,
    *,
    mailing_id: int = 1,
    ends_in: float = 60.0,
    lease: float = 60.0,
    text: str = "Hello",
    window: Window | None = None,
) -> Delivery:
    ends_at = datetime.now(UTC) + timedelta(seconds=ends_in)
    recipients = [
        Recipient(first_id + i, 1000 + i, 0, "+79161234567", "Europe/Moscow", {}, opted_out=False) for i in range(count)
    ]
    batch = TakenBatch(first_id, mailing_id, text, Standing(True, ends_at, window), False, recipients)
    calls = [Call(recipient, 79161234567, text) for recipient in recipients]
    return Delivery(batch, Terms(ends_at, window, False, 20), calls, DatabaseClock(), lease, Collector())


class Collector:
    """Takes results as the recorder does, and tells the client at once that they are recorded, unless asked not to."""

    def __init__(self) -> None:
        self.client: GatewayClient | None = None
        self.results: list[Result] = []
        self.changed = threading.Condition()

    def put(self, sent: Delivery, results: Sequence[Result]) -> None:
        with self.changed:
            self.results.extend(results)
            sent.note_recorded(len(results))
            self.changed.notify_all()
        if self.client:
            self.client.recorded(Counter(sent.mailing_id for result in results if isinstance(result, Called)))

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.results) >= count, 20)


def collector(sent: Delivery) -> Collector:
    """The collector that `delivery` has given it."""
    sink = sent._sink
    assert isinstance(sink, Collector)
    return sink


def results(client: GatewayClient, sent: Delivery) -> list[Result]:
    """Run a delivery to its end."""
    collected = collector(sent)
    collected.client = client
    client.submit(sent)
    assert sent.done.wait(30)
    return collected.results


def only(found: list[Result]) -> Called:
    (result,) = found
    assert isinstance(result, Called)
    return result


def test_the_request_is_what_the_contract_says(simulator: Simulator) -> None:
    simulator.forget()
    with client_for(f"{simulator.url}/v1/") as client:
        result = only(results(client, delivery(41, text='Привет "Anna" \U0001f600')))
    assert result.judgement.verdict is Verdict.ACCEPTED
    (seen,) = simulator.ids()
    assert (seen["id"], seen["phone"], seen["text"]) == (41, 79161234567, 'Привет "Anna" \U0001f600')
    assert simulator.received()["bad_requests"] == simulator.received()["unauthorized"] == 0


def test_a_text_larger_than_every_buffer_arrives_whole(simulator: Simulator) -> None:
    simulator.forget()
    text = "".join(f"{number:07} " for number in range(25_000))
    with client_for(simulator.url, timeout=10) as client:
        result = only(results(client, delivery(43, text=text)))
    assert result.judgement.verdict is Verdict.ACCEPTED
    (seen,) = simulator.ids()
    assert seen["text"] == text


def test_a_wrong_token_blocks(simulator: Simulator) -> None:
    with client_for(simulator.url, token="wrong") as client:
        result = only(results(client, delivery(42)))
    assert (result.judgement.verdict, result.answer.http_status) == (Verdict.BLOCKED, 401)


@pytest.mark.parametrize(
    ("fault", "verdict", "reason", "status"),
    [
        ({"kind": "status", "status": 500}, Verdict.TROUBLE, "http_500", 500),
        ({"kind": "status", "status": 404}, Verdict.REFUSED, "http_404", 404),
        ({"kind": "unauthorized", "status": 403}, Verdict.BLOCKED, "http_403", 403),
        ({"kind": "status", "status": 429, "retry_after": "7"}, Verdict.DEFERRED, "http_429", 429),
        ({"kind": "status", "status": 503, "retry_after": "7"}, Verdict.DEFERRED, "http_503", 503),
        ({"kind": "status", "status": 503}, Verdict.TROUBLE, "http_503", 503),
        ({"kind": "html"}, Verdict.UNKNOWN, "not_json", 200),
        ({"kind": "empty"}, Verdict.UNKNOWN, "empty_body", 200),
        ({"kind": "truncated"}, Verdict.UNKNOWN, "truncated", 200),
        ({"kind": "wrong_shape", "body": ["OK"]}, Verdict.UNKNOWN, "wrong_shape", 200),
        ({"kind": "wrong_code", "code": 7}, Verdict.UNKNOWN, "wrong_code", 200),
        ({"kind": "huge"}, Verdict.UNKNOWN, "body_too_large", 200),
        ({"kind": "drip", "seconds": 0.3}, Verdict.UNKNOWN, "timeout_body", 200),
        ({"kind": "hang"}, Verdict.UNKNOWN, "timeout", None),
        ({"kind": "reset"}, Verdict.UNKNOWN, "connection_reset", None),
        ({"kind": "close"}, Verdict.UNKNOWN, "connection_closed", None),
        ({"kind": "redirect"}, Verdict.TROUBLE, "redirect", 302),
    ],
    ids=lambda value: str(value.get("kind")) if isinstance(value, dict) else "",
)
def test_a_bad_answer_gets_its_own_reason(
    simulator: Simulator, fault: dict[str, Any], verdict: Verdict, reason: str, status: int | None
) -> None:
    simulator.control(fault)
    try:
        with client_for(simulator.url) as client:
            result = only(results(client, delivery(43)))
    finally:
        simulator.calm()
    assert (result.judgement.verdict, result.judgement.reason) == (verdict, reason)
    assert result.answer.http_status == status


@pytest.mark.parametrize("header", [{"retry_after": "90"}, {"retry_after_date": 90}], ids=["seconds", "date"])
def test_retry_after_is_read_in_both_forms(simulator: Simulator, header: dict[str, Any]) -> None:
    simulator.control({"kind": "status", "status": 429, **header})
    try:
        with client_for(simulator.url) as client:
            result = only(results(client, delivery(44)))
    finally:
        simulator.calm()
    assert result.answer.retry_after == pytest.approx(90, abs=3)


def test_nobody_listening_is_refused_and_unambiguous() -> None:
    with client_for(f"http://127.0.0.1:{free_port()}") as client:
        result = only(results(client, delivery(45)))
    assert (result.judgement.verdict, result.judgement.reason) == (Verdict.TROUBLE, "connection_refused")


def test_a_handshake_without_answer_is_a_connect_timeout(simulator: Simulator) -> None:
    simulator.control({"kind": "refuse", "how": "silence", "for_seconds": 3})
    try:
        with client_for(simulator.url, timeout=0.5) as client:
            result = only(results(client, delivery(47)))
    finally:
        simulator.calm()
    assert (result.judgement.verdict, result.judgement.reason) == (Verdict.TROUBLE, "timeout_connect")


@pytest.mark.parametrize(
    ("speak", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{", "body_too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "not_json"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not_http"),
    ],
    ids=["banner", "promise", "encoding", "chunks"],
)
def test_what_is_no_http_answer_is_never_taken_for_one(speak: bytes, reason: str) -> None:
    with talker(speak) as url, client_for(url) as client:
        result = only(results(client, delivery(48)))
    assert (result.judgement.verdict, result.judgement.reason) == (Verdict.UNKNOWN, reason)


@contextmanager
def talker(speak: bytes) -> Iterator[str]:
    """A server that reads a request, says these bytes and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(speak)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(timeout=5)


def test_a_kept_connection_that_ends_costs_an_attempt_and_no_call_that_nobody_decided() -> None:
    """A request repeated in silence would be past the end, a pause, the pace, and the history."""
    with forgetful_gateway() as (url, requests), client_for(url, concurrency=1) as client:
        found = results(client, delivery(51, 2))
    assert [(only([result]).judgement.reason) for result in found] == [None, "connection_closed"]
    assert requests == [51, 52]


@contextmanager
def forgetful_gateway() -> Iterator[tuple[str, list[int]]]:
    """A server that answers the first request of each connection, and closes upon the second; the ids it was sent."""
    requests: list[int] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.take()
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"code": 0}')
            self.take()

        def take(self) -> None:
            if line := self.rfile.readline():
                requests.append(int(line.split()[1].rpartition(b"/")[2]))
                headers = dict(header.lower().split(b":", 1) for header in iter(self.rfile.readline, b"\r\n"))
                self.rfile.read(int(headers[b"content-length"]))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
        server.shutdown()


def test_tls_is_verified(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Simulator.start(tls_cert=certificate / "cert.pem", tls_key=certificate / "key.pem") as secure:
        url = secure.url.replace("127.0.0.1", "localhost")
        with client_for(url, token=None) as client:
            result = only(results(client, delivery(49)))
        assert (result.judgement.verdict, result.judgement.reason) == (Verdict.TROUBLE, "tls")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        with client_for(url, token=None) as client:
            result = only(results(client, delivery(50)))
        assert result.judgement.verdict is Verdict.ACCEPTED


@contextmanager
def answers_after(simulator: Simulator, milliseconds: int) -> Iterator[None]:
    simulator.forget()
    simulator.control({"kind": "latency", "milliseconds": milliseconds})
    try:
        yield
    finally:
        simulator.calm()


def test_hundreds_are_in_flight_at_once_and_never_more_than_allowed(simulator: Simulator) -> None:
    with answers_after(simulator, 300), client_for(simulator.url, timeout=10, concurrency=200) as client:
        began = time.monotonic()
        # Two mailings: one alone may use four fifths of the places.
        sent = [delivery(1000, 300, mailing_id=1), delivery(2000, 300, mailing_id=2)]
        threads = [threading.Thread(target=results, args=(client, each)) for each in sent]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    assert simulator.received()["accepted"] == 600
    assert 100 < simulator.received()["max_in_flight"] <= 200
    assert seconds < 30  # one after another would take three minutes


def test_a_gateway_is_not_met_by_a_thousand_connections_at_once(simulator: Simulator) -> None:
    with answers_after(simulator, 2000), client_for(simulator.url, timeout=10, concurrency=1000) as client:
        sent = delivery(9000, 1000)
        collector(sent).client = client
        client.submit(sent)
        first = FIRST * MAILING_SHARE
        simulator.wait_for(lambda received: received["requests"] >= first)
        time.sleep(0.2)  # the absence of more calls is what is looked for
        assert simulator.received()["in_flight"] == first
        assert simulator.wait_for(lambda received: received["in_flight"] > 4 * FIRST)
        sent.stop()


def test_a_mailing_whose_calls_all_hang_leaves_room_for_another_from_the_start(simulator: Simulator) -> None:
    simulator.forget()
    simulator.control({"kind": "hang", "ids": list(range(9100, 9300))})
    try:
        with client_for(simulator.url, timeout=20, concurrency=1000) as client:
            hanging, other = delivery(9100, 200, mailing_id=1), delivery(9300, 200, mailing_id=2)
            client.submit(hanging)
            assert simulator.wait_for(lambda received: received["in_flight"] >= FIRST * MAILING_SHARE)
            assert all(isinstance(result, Called) for result in results(client, other))
            assert not collector(hanging).results
    finally:
        simulator.calm()


def test_what_is_not_recorded_keeps_its_place(simulator: Simulator) -> None:
    """Otherwise a kill could repeat more than the calls in flight."""
    simulator.forget()
    with client_for(simulator.url, concurrency=10) as client:
        sent = delivery(3000, 50)
        client.submit(sent)
        collector(sent).wait_for(SHARE_OF_TEN)
        time.sleep(0.3)  # the absence of more calls is what is looked for
        assert simulator.received()["requests"] == len(collector(sent).results) == SHARE_OF_TEN
        client.recorded(Counter({1: SHARE_OF_TEN}))
        collector(sent).wait_for(2 * SHARE_OF_TEN)
        sent.stop()


@pytest.mark.parametrize(
    "stop",
    [
        lambda sent: sent.stop(),
        lambda sent: sent.renewed(None, 60.0, time.monotonic()),
        lambda sent: sent.renewed(Standing(False, sent.terms.ends_at, None), 60.0, time.monotonic()),
        lambda sent: sent.renewed(Standing(True, datetime.now(UTC), None), 60.0, time.monotonic()),
    ],
    ids=["stopped", "lease lost", "mailing paused", "end moved"],
)
def test_a_delivery_that_lost_its_right_returns_the_rest(
    simulator: Simulator, stop: Callable[[Delivery], None]
) -> None:
    simulator.forget()
    sent = delivery(4000, 30)
    stop(sent)
    with client_for(simulator.url) as client:
        found = results(client, sent)
    assert [result.skip for result in found if isinstance(result, Skipped)] == [Skip.RETURNED] * 30
    assert simulator.received()["requests"] == 0


def test_a_lease_that_ran_out_stops_a_process_that_slept(simulator: Simulator) -> None:
    simulator.forget()
    sent = delivery(5000, 30, lease=-1.0)
    with client_for(simulator.url) as client:
        assert all(isinstance(result, Skipped) for result in results(client, sent))
    assert simulator.received()["requests"] == 0


def test_a_withdrawn_client_is_not_called(simulator: Simulator) -> None:
    simulator.forget()
    sent = delivery(6000, 3)
    sent.withdrawn.add(1001)
    with client_for(simulator.url) as client:
        found = results(client, sent)
    assert [type(result) for result in sorted(found, key=lambda r: r.recipient.message_id)] == [Called, Skipped, Called]


@contextmanager
def deaf(simulator: Simulator, seconds: float) -> Iterator[None]:
    """Have nobody answer a connection's first packet; it is sent again after a second, and after two more."""
    simulator.forget()
    simulator.control({"kind": "refuse", "how": "silence", "for_seconds": seconds})
    try:
        yield
    finally:
        simulator.calm()


def test_a_pause_takes_back_what_is_still_being_connected(simulator: Simulator) -> None:
    with deaf(simulator, 60), client_for(simulator.url, timeout=20) as client:
        sent = delivery(6100, 3)
        client.submit(sent)
        assert sent.begun.wait(5)
        sent.stop()
        assert sent.done.wait(3)  # Connecting itself may take five seconds.
    assert [result.skip for result in collector(sent).results if isinstance(result, Skipped)] == [Skip.RETURNED] * 3


def test_a_client_withdrawn_while_a_call_was_being_connected_is_not_called(simulator: Simulator) -> None:
    with deaf(simulator, 0.9), client_for(simulator.url, timeout=20) as client:
        sent = delivery(6200, 2)
        collector(sent).client = client
        client.submit(sent)
        assert sent.begun.wait(5)
        sent.withdrawn.add(1000)
        assert sent.done.wait(10)
    assert {result.recipient.client_id: type(result) for result in collector(sent).results} == {
        1000: Skipped,
        1001: Called,
    }
    assert [seen["id"] for seen in simulator.ids()] == [6201]


def test_a_gateway_that_is_down_stops_the_process_within_some_dozen_calls() -> None:
    with client_for(f"http://127.0.0.1:{free_port()}", concurrency=20) as client:
        found = results(client, delivery(7000, 2000))
    called = sum(isinstance(result, Called) for result in found)
    assert len(found) == 2000
    assert called < 100


def test_draining_finishes_what_is_on_the_wire_and_returns_the_rest(simulator: Simulator) -> None:
    with answers_after(simulator, 300), client_for(simulator.url, timeout=5, concurrency=10) as client:
        sent = delivery(8000, 100)
        client.submit(sent)
        assert simulator.wait_for(lambda received: received["requests"] >= SHARE_OF_TEN)
        client.drain()
        assert sent.done.wait(10)
        found = collector(sent).results
    assert sum(isinstance(result, Called) for result in found) == simulator.received()["requests"] == SHARE_OF_TEN
    assert len(found) == 100
