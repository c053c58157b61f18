"""The simulator as callers meet it: a process of its own, real sockets, real outages."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from simulator.client import Simulator, SimulatorError
from tools.processes import look_up, wait_until

TOKEN = "right"
PHONE = 79161234567
ACCEPTED = {"code": 0, "message": "OK"}


@pytest.fixture(scope="module")
def running() -> Iterator[Simulator]:
    with Simulator.start(token=TOKEN) as simulator:
        yield simulator


@pytest.fixture
def simulator(running: Simulator) -> Iterator[Simulator]:
    yield running
    running.control(token=TOKEN)
    running.forget()


def connect(simulator: Simulator, timeout: float = 10) -> http.client.HTTPConnection:
    parts = urlsplit(simulator.url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)


def post(
    connection: http.client.HTTPConnection,
    path: str,
    body: Any,
    token: str = TOKEN,
    content_type: str = "application/json",
) -> http.client.HTTPResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Authorization": f"Bearer {token}", "Content-Type": content_type})
    return connection.getresponse()


def send(simulator: Simulator, message_id: int, *, phone: int = PHONE, text: str = "Hello", timeout: float = 10) -> Any:
    """Send one message and return the status and the body, read as JSON where it is JSON."""
    with closing(connect(simulator, timeout)) as connection:
        response = post(connection, f"/send/{message_id}", {"id": message_id, "phone": phone, "text": text})
        body = response.read()
        try:
            return response.status, json.loads(body)
        except ValueError:
            return response.status, body


def raw_request(message_id: int) -> bytes:
    body = json.dumps({"id": message_id, "phone": PHONE, "text": "Hello"}).encode()
    head = f"POST /send/{message_id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_a_message_is_accepted_and_a_repeat_is_answered_alike(simulator: Simulator) -> None:
    assert send(simulator, 1) == (200, ACCEPTED)
    assert send(simulator, 1) == (200, ACCEPTED)
    assert send(simulator, 1, text="Something else") == (200, ACCEPTED)

    summary = simulator.received()
    assert (summary["requests"], summary["accepted"], summary["repeats"], summary["conflicts"]) == (3, 1, 2, 1)
    assert [attempt["answer"] for attempt in simulator.one(1)["log"]] == ["200", "200", "200"]


def test_any_prefix_before_send_will_do(simulator: Simulator) -> None:
    with closing(connect(simulator)) as connection:
        response = post(connection, "/some/v1/send/7", {"id": 7, "phone": PHONE, "text": "Привет 🙂"})
        assert json.loads(response.read()) == ACCEPTED

    assert simulator.ids()[0]["text"] == "Привет 🙂"


def test_a_wrong_token_is_401_and_the_right_one_can_be_changed(simulator: Simulator) -> None:
    with closing(connect(simulator)) as connection:
        body = {"id": 1, "phone": PHONE, "text": "Hello"}
        statuses = []
        for token in ("wrong", TOKEN, "new"):
            response = post(connection, "/send/1", body, token)
            response.read()
            statuses.append(response.status)
        simulator.control(token="new")
        response = post(connection, "/send/1", body, "new")
        response.read()

    assert [*statuses, response.status] == [401, 200, 401, 200]
    assert simulator.received()["unauthorized"] == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/send/1", b"{"),
        ("/send/1", b"[" * 100_000),
        ("/send/1", b"\xff\xfe\x00"),
        ("/send/1", [1]),
        ("/send/1", {"id": 1, "phone": PHONE}),
        ("/send/1", {"id": 1, "phone": PHONE, "text": "Hello", "extra": 1}),
        ("/send/1", {"id": 2, "phone": PHONE, "text": "Hello"}),
        ("/send/01", {"id": 1, "phone": PHONE, "text": "Hello"}),
        ("/send/1/", {"id": 1, "phone": PHONE, "text": "Hello"}),
        ("/send/1", {"id": "1", "phone": PHONE, "text": "Hello"}),
        ("/send/1", {"id": True, "phone": PHONE, "text": "Hello"}),
        ("/send/0", {"id": 0, "phone": PHONE, "text": "Hello"}),
        (f"/send/{2**63}", {"id": 2**63, "phone": PHONE, "text": "Hello"}),
        ("/send/1", {"id": 1, "phone": str(PHONE), "text": "Hello"}),
        ("/send/1", {"id": 1, "phone": 9_999_999_999, "text": "Hello"}),
        ("/send/1", {"id": 1, "phone": 10**15, "text": "Hello"}),
        ("/send/1", {"id": 1, "phone": PHONE, "text": None}),
    ],
)
def test_a_message_of_the_wrong_shape_is_400_and_tells_why(simulator: Simulator, path: str, body: Any) -> None:
    with closing(connect(simulator)) as connection:
        response = post(connection, path, body)
        answer = json.loads(response.read())

    assert (response.status, answer["code"]) == (400, 400)
    summary = simulator.received()
    assert (summary["bad_requests"], summary["ids"]) == (1, 0)
    assert summary["complaints"][0]["reason"] == answer["message"]


def test_a_body_that_is_not_declared_json_is_400(simulator: Simulator) -> None:
    with closing(connect(simulator)) as connection:
        response = post(connection, "/send/1", {"id": 1, "phone": PHONE, "text": "Hello"}, content_type="text/plain")
        assert response.status == 400
        assert "Content-Type" in json.loads(response.read())["message"]


def test_what_is_not_http_and_what_is_too_long_is_refused(simulator: Simulator) -> None:
    parts = urlsplit(simulator.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        raw.sendall(b"POST /send/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\n\r\n" + b"x" * 1_000_001)
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_caller_may_ask_before_it_sends_the_body(simulator: Simulator) -> None:
    head, separator, body = raw_request(1).partition(b"\r\n\r\n")
    parts = urlsplit(simulator.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        raw.sendall(head + b"\r\nExpect: 100-continue" + separator)
        assert raw.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert raw.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("faults", [[], [{"kind": "latency", "milliseconds": 1}]])
def test_pipelined_requests_are_answered_in_order(simulator: Simulator, faults: Any) -> None:
    simulator.control(*faults, {"kind": "status", "status": 500, "ids": [300]})
    parts = urlsplit(simulator.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        raw.sendall(b"".join(raw_request(number) for number in range(1, 501)))
        received = b""
        while received.count(b"HTTP/1.1 ") < 500 or not received.endswith(b"}"):
            received += raw.recv(65536)

    answers = received.split(b"HTTP/1.1 ")[1:]
    assert [number for number, answer in enumerate(answers, 1) if not answer.startswith(b"200")] == [300]
    assert [item["id"] for item in simulator.ids()] == list(range(1, 501))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "status", "status": 418}, (418, {"code": 418, "message": "simulated"})),
        ({"kind": "status", "status": 502, "body": "<h1>Bad</h1>"}, (502, b"<h1>Bad</h1>")),
        ({"kind": "unauthorized", "status": 403}, (403, {"code": 403, "message": "simulated"})),
        ({"kind": "wrong_shape"}, (200, "accepted")),
        ({"kind": "wrong_shape", "body": {"code": "0"}}, (200, {"code": "0"})),
        ({"kind": "wrong_code"}, (200, {"code": 7, "message": "not today"})),
        ({"kind": "empty"}, (200, b"")),
        ({"kind": "redirect", "status": 307}, (307, b"")),
        ({"kind": "drip", "seconds": 0.001}, (200, ACCEPTED)),
        ({"kind": "huge"}, (200, ACCEPTED)),
    ],
)
def test_bad_answers_with_a_status(simulator: Simulator, fault: Any, expected: Any) -> None:
    simulator.control(fault)

    assert send(simulator, 1) == expected
    assert simulator.one(1)["accepted"] == 0


def test_an_html_page_comes_instead_of_json(simulator: Simulator) -> None:
    simulator.control({"kind": "html"})

    status, body = send(simulator, 1)

    assert status == 200
    assert body.startswith(b"<!doctype html>")


def test_a_redirect_and_a_retry_after_have_their_headers(simulator: Simulator) -> None:
    simulator.control(
        {"kind": "redirect", "location": "http://127.0.0.1:9/away", "ids": [1]},
        {"kind": "status", "status": 503, "retry_after": "2", "ids": [2]},
    )
    with closing(connect(simulator)) as connection:
        moved = post(connection, "/send/1", {"id": 1, "phone": PHONE, "text": "Hello"})
        moved.read()
        busy = post(connection, "/send/2", {"id": 2, "phone": PHONE, "text": "Hello"})
        busy.read()

    assert (moved.status, moved.headers["Location"]) == (302, "http://127.0.0.1:9/away")
    assert (busy.status, busy.headers["Retry-After"]) == (503, "2")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "truncated"}, http.client.IncompleteRead),
        ({"kind": "close"}, http.client.RemoteDisconnected),
        ({"kind": "reset"}, ConnectionResetError),
        ({"kind": "hang"}, TimeoutError),
        ({"kind": "drip", "seconds": 5}, TimeoutError),
        ({"kind": "latency", "milliseconds": 5000}, TimeoutError),
    ],
)
def test_answers_that_break_off_or_never_come(simulator: Simulator, fault: Any, error: type[Exception]) -> None:
    simulator.control(fault)

    with pytest.raises(error):
        send(simulator, 1, timeout=0.3 if error is TimeoutError else 10)

    assert simulator.one(1)["attempts"] == 1
    simulator.wait_for(lambda summary: summary["in_flight"] == 0)
    assert simulator.received()["abandoned"] == (error is TimeoutError)


def test_the_ambiguous_case_counts_as_accepted(simulator: Simulator) -> None:
    simulator.control({"kind": "reset", "accepted": True, "times": 1})
    with pytest.raises(ConnectionResetError):
        send(simulator, 1)

    assert send(simulator, 1) == (200, ACCEPTED)
    summary = simulator.received()
    assert (summary["accepted"], summary["repeats"]) == (1, 1)
    assert [attempt["answer"] for attempt in simulator.one(1)["log"]] == ["reset after accepting", "200"]


def test_latency_delays_the_answer_and_counts_as_in_flight(simulator: Simulator) -> None:
    simulator.control({"kind": "latency", "milliseconds": 1000})
    began = time.monotonic()
    senders = [threading.Thread(target=send, args=(simulator, number)) for number in range(1, 6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()

    assert time.monotonic() - began >= 1.0
    assert simulator.received()["max_in_flight"] == 5


def test_the_rate_limit_answers_429_beyond_it(simulator: Simulator) -> None:
    simulator.control({"kind": "rate_limit", "per_second": 5, "retry_after": 7})

    statuses = [send(simulator, number)[0] for number in range(1, 9)]

    assert statuses == [200] * 5 + [429] * 3
    assert simulator.received()["max_per_second"] == 8


@pytest.mark.parametrize(
    ("how", "error"), [("refuse", ConnectionRefusedError), ("reset", ConnectionError), ("silence", TimeoutError)]
)
def test_an_outage_takes_all_connections_and_ends(simulator: Simulator, how: str, error: type[Exception]) -> None:
    with closing(connect(simulator)) as kept:
        post(kept, "/send/1", {"id": 1, "phone": PHONE, "text": "Hello"}).read()
        simulator.control({"kind": "refuse", "how": how})

        with pytest.raises(error):
            send(simulator, 2, timeout=0.3 if error is TimeoutError else 10)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            post(kept, "/send/3", {"id": 3, "phone": PHONE, "text": "Hello"})

    simulator.calm()
    assert send(simulator, 4) == (200, ACCEPTED)
    assert [item["id"] for item in simulator.ids()] == [1, 4]


def test_an_outage_ends_by_itself_after_its_time(simulator: Simulator) -> None:
    began = time.monotonic()
    simulator.control({"kind": "refuse", "for_seconds": 1})
    with pytest.raises(ConnectionRefusedError):
        send(simulator, 1)

    while time.monotonic() < began + 10:
        try:
            assert send(simulator, 1) == (200, ACCEPTED)
            break
        except ConnectionRefusedError:
            time.sleep(0.02)

    assert 1 <= time.monotonic() - began < 10
    assert not simulator.state()["faults"][0]["on"]


def test_an_outage_without_end_needs_the_control_port() -> None:
    outage = json.dumps([{"kind": "refuse"}])
    ended = subprocess.run(
        [sys.executable, "-m", "simulator", "--port", "0", "--faults", outage],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert ended.returncode == 2
    assert "it needs for_seconds" in ended.stderr


def test_faults_can_be_added_described_and_taken_back(simulator: Simulator) -> None:
    simulator.control({"kind": "latency", "milliseconds": 1})
    simulator.add({"kind": "status", "status": 500, "share": 0})
    send(simulator, 1)

    state = simulator.state()
    assert [(rule["fault"]["kind"], rule["on"], rule["hits"]) for rule in state["faults"]] == [
        ("latency", True, 1),
        ("status", True, 0),
    ]
    assert state["token_required"]
    assert simulator.calm()["faults"] == []


def test_a_wrong_order_is_refused_and_changes_nothing(simulator: Simulator) -> None:
    simulator.control({"kind": "empty"})

    with pytest.raises(SimulatorError, match="unknown field 'sttus'"):
        simulator.control({"kind": "status", "sttus": 500})
    with pytest.raises(SimulatorError, match="unknown field 'speed'"):
        simulator.control(speed=3)

    assert [rule["fault"]["kind"] for rule in simulator.state()["faults"]] == ["empty"]


def test_what_was_received_can_be_paged_and_forgotten(simulator: Simulator) -> None:
    for number in (3, 1, 2):
        send(simulator, number)

    assert [item["id"] for item in simulator.ids(page_size=2)] == [3, 1, 2]
    assert simulator.accepted_ids() == {1, 2, 3}
    arrivals = simulator.arrivals()
    assert len(arrivals) == 3
    assert arrivals[0] <= simulator.received()["now"] < arrivals[0] + 60
    assert sum(count for _, count in simulator.timeline()) == 3

    simulator.forget()
    assert simulator.received()["requests"] == 0
    with pytest.raises(SimulatorError, match="404"):
        simulator.one(3)


@pytest.mark.parametrize(
    "path", ["/received/abc", "/received/ids?limit=x", "/received/ids?after=-1", "/timeline?since=x"]
)
def test_a_wrong_question_is_400(simulator: Simulator, path: str) -> None:
    with closing(connect(simulator)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == 400


def test_the_page_stands_alone_and_health_is_told(simulator: Simulator) -> None:
    with urllib.request.urlopen(simulator.url + "/", timeout=5) as response:
        page = response.read().decode()
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    with urllib.request.urlopen(simulator.url + "/healthz", timeout=5) as response:
        assert json.load(response) == {"status": "ok"}

    assert "<title>Gateway simulator</title>" in page
    assert "src=" not in page
    assert "https://" not in page


def test_a_simulator_ends_with_the_process_that_started_it() -> None:
    program = (
        "import os, sys; from simulator.client import Simulator; "
        "print(Simulator.start().process.pid, flush=True); os._exit(1)"
    )
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=20, check=False)
    pid = int(ended.stdout)

    assert wait_until(lambda: look_up(pid) is None, timeout=10)


def test_sigterm_ends_it_at_once_even_with_calls_in_flight() -> None:
    with Simulator.start({"kind": "hang"}) as simulator:
        parts = urlsplit(simulator.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
            raw.sendall(raw_request(1))
            simulator.wait_for(lambda summary: summary["in_flight"] == 1)
            assert simulator.process is not None
            os.kill(simulator.process.pid, signal.SIGTERM)
            assert simulator.process.wait(5) == 0


def test_settings_come_from_the_environment_and_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "token"
    secret.write_text("from a file\n")
    monkeypatch.setenv("GATEWAY_TOKEN_FILE", str(secret))
    monkeypatch.setenv("SIMULATOR_PORT", "0")
    monkeypatch.setenv("SIMULATOR_FAULTS", '[{"kind": "empty"}]')
    process = subprocess.Popen([sys.executable, "-m", "simulator"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        simulator = Simulator(json.loads(process.stdout.readline())["url"])
        state = simulator.state()
        process.terminate()

    assert state["token_required"]
    assert state["faults"][0]["fault"] == {"kind": "empty"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--faults", "{"], "faults is not JSON"),
        (["--faults", '{"kind": "empty"}'], "faults must be a list"),
        (["--port", "x"], "invalid int value"),
        (["--tls-cert", "/nowhere.pem"], "No such file"),
        (["--host", "203.0.113.1"], "Cannot assign requested address"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_clear_line(arguments: list[str], words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "simulator", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert ended.returncode == 2
    last_line = ended.stderr.strip().splitlines()[-1]
    assert re.search(words, last_line)


def test_two_simulators_cannot_share_a_port(simulator: Simulator) -> None:
    with pytest.raises(SimulatorError, match="ended with code 2"):
        Simulator.start(port=urlsplit(simulator.url).port or 0)


def test_https_with_a_given_certificate(certificate: Path) -> None:
    with Simulator.start(tls_cert=certificate / "cert.pem", tls_key=certificate / "key.pem") as simulator:
        assert simulator.url.startswith("https://")
        parts = urlsplit(simulator.url)
        context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        with closing(http.client.HTTPSConnection("127.0.0.1", parts.port, timeout=5, context=context)) as connection:
            response = post(connection, "/send/1", {"id": 1, "phone": PHONE, "text": "Hello"})
            assert json.loads(response.read()) == ACCEPTED
            simulator.control({"kind": "reset"})
            with pytest.raises(ConnectionResetError):
                post(connection, "/send/1", {"id": 1, "phone": PHONE, "text": "Hello"})
        assert simulator.received()["accepted"] == 1


class ReceiptsHandler(BaseHTTPRequestHandler):
    """A service that takes receipts, and refuses the very first with a 503."""

    protocol_version = "HTTP/1.1"
    taken: list[tuple[str, str | None, dict[str, Any]]]
    troubles: int

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        cls.troubles -= 1
        if cls.troubles < 0:
            cls.taken.append((self.path, self.headers["Authorization"], body))
        self.send_response(503 if cls.troubles >= 0 else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def test_receipts_follow_acceptance_each_once_and_a_share_of_them_failed() -> None:
    ReceiptsHandler.taken, ReceiptsHandler.troubles = [], 1
    server = ThreadingHTTPServer(("127.0.0.1", 0), ReceiptsHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api/v1/receipt/"
    options: dict[str, Any] = {
        "receipts_url": url,
        "receipts_key": "key",
        "receipts_delay_ms": 50,
        "receipts_failed_share": 0.5,
    }
    try:
        with Simulator.start(seed=1, **options) as simulator:
            simulator.control({"kind": "status", "status": 500, "ids": [41]})
            for number in range(1, 42):
                send(simulator, number)
            send(simulator, 1)
            summary = simulator.wait_for(
                lambda seen: sum(seen["receipts"].values()) == 40 and not seen["receipts"]["waiting"]
            )
    finally:
        server.shutdown()
        server.server_close()

    bodies = [body for _, _, body in ReceiptsHandler.taken]
    failed = [body for body in bodies if body["status"] == "failed"]
    assert sorted(body["id"] for body in bodies) == list(range(1, 41))
    assert {(path, key) for path, key, _ in ReceiptsHandler.taken} == {("/api/v1/receipt/", "Bearer key")}
    assert all(body["reason"] for body in failed)
    assert 5 < len(failed) < 35
    assert summary["receipts"] == {
        "delivered": 40 - len(failed),
        "failed": len(failed),
        "refused": 0,
        "given_up": 0,
        "waiting": 0,
    }
