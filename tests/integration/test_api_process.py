"""`python -m api` and `python -m db` as the operator starts them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from common.serving import THREADS
from db.models import ApiKey, MailingState, MessageStatus, Scope
from db.queries import api_keys
from tests.factories import make_client, make_mailing, make_message
from tools.processes import family, free_port, wait_until

ROOT = Path(__file__).parents[2]
KEY = "operators-own-key"
STALL_SECONDS = 1.0  # instead of what is shipped
HALF_REQUESTS = {
    "head": b"GET /he",
    "body": b"POST /api/v1/client/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: 99\r\n\r\n{",
    "chunk": b"POST /api/v1/client/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n99\r\n{",
}
LARGE_PATH = "/docs/static/swagger-ui/swagger-ui-bundle.js"


def _environment(**variables: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Served:
    """A started API."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = port
        self.process = process
        self.log = log

    def call(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        """One request with the key."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path, body=body, headers=headers)
            answer: HTTPResponse = connection.getresponse()
            return answer.status, answer.read().decode()

    def stop(self) -> tuple[int, list[dict[str, object]]]:
        """SIGTERM; the exit status and the log lines."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=30)
        return status, [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def served(database_url: str, engine: sa.Engine, tmp_path: Path) -> Iterator[Served]:
    """The API of a process of its own."""
    with _serving(database_url, engine, tmp_path, "-m", "api") as started:
        yield started


@pytest.fixture
def impatient(database_url: str, engine: sa.Engine, tmp_path: Path) -> Iterator[Served]:
    """The same, with little patience."""
    patience = f"from common import serving; serving.STALL_SECONDS = {STALL_SECONDS}"
    with _serving(
        database_url, engine, tmp_path, "-c", f"{patience}; from api.__main__ import main; main()"
    ) as started:
        yield started


@contextlib.contextmanager
def _serving(database_url: str, engine: sa.Engine, tmp_path: Path, *program: str) -> Iterator[Served]:
    with Session(engine) as session, session.begin():
        api_keys.create(session, "test", Scope.FULL, KEY)
    port = free_port()
    log = tmp_path / "api.log"  # A pipe that nobody reads would fill up, and hold the API.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *program],
            cwd=ROOT,
            env=_environment(DATABASE_URL=database_url, API_PORT=str(port)),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    started = Served(port, process, log)
    try:
        _wait_until_ready(started)
        yield started
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_ready(served: Served) -> None:
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        assert served.process.poll() is None
        try:
            if served.call("GET", "/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError


def test_the_api_serves_logs_without_secrets_and_stops_on_sigterm(served: Served, engine: sa.Engine) -> None:
    client = '{"phone": "+79161234567"}'
    assert served.call("POST", "/api/v1/client/", client)[0] == 201
    assert served.call("POST", "/api/v1/client/", client)[0] == 409
    assert served.call("GET", "/api/v1/client/?phone=79161234567")[0] == 200
    mailing = '{"name": "Sale", "text": "Secret text", "ends_at": "2099-01-01T00:00:00Z"}'
    assert served.call("POST", "/api/v1/mailing/", mailing)[0] == 201
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE client RENAME COLUMN phone TO telephone"))
    assert served.call("GET", "/api/v1/client/?phone=79161234567")[0] == 500

    status, lines = served.stop()

    assert status == 0
    requests = [line for line in lines if line["event"] == "request"]
    assert {line["status"] for line in requests} >= {200, 201, 409, 500}
    assert all(line["service"] == "api" and line["request_id"] for line in requests)
    failure = next(line for line in lines if line["event"] == "request_failed")
    assert "ProgrammingError" in str(failure["exception"])
    for secret in ("9161234567", "Secret text", KEY):
        assert secret not in json.dumps(lines)


def test_the_api_does_what_its_document_says(served: Served, engine: sa.Engine, tmp_path: Path) -> None:
    with Session(engine) as session:
        for state in MailingState:
            make_message(session, make_mailing(session, state=state), make_client(session))
    schemathesis = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"http://127.0.0.1:{served.port}/api/v1/openapi.json",
            *("--header", f"Authorization: Bearer {KEY}"),
            *("--max-examples", "10"),
            "--generation-deterministic",
            "--no-color",
            # A rule may refuse what the shape allows: an end before the start, a phone that nobody has.
            *("--exclude-checks", "positive_data_acceptance"),
        ],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert schemathesis.returncode == 0, schemathesis.stdout + schemathesis.stderr


def test_metrics_are_those_of_all_workers_together(served: Served) -> None:
    for _ in range(40):
        served.call("GET", "/api/v1/client/")

    _, text = served.call("GET", "/metrics")

    assert 'mailing_api_requests_total{method="GET",route="/api/v1/client/",status="200"} 40.0' in text


def test_every_metric_is_documented(served: Served) -> None:
    _, text = served.call("GET", "/metrics")

    documented = re.findall(r"^\| `(mailing_\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert set(documented) == set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))


def test_a_request_that_no_application_sees_is_refused_in_json(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        answer = connection.makefile("rb").read().decode()

    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400")
    assert json.loads(body)["code"] == 400


@pytest.mark.parametrize("part", HALF_REQUESTS)
def test_requests_that_never_end_hold_no_thread_for_long(impatient: Served, part: str) -> None:
    half = HALF_REQUESTS[part].replace(b"%b", KEY.encode())
    with contextlib.ExitStack() as stack:
        count = THREADS * len(_worker_processes(impatient)) + 1
        stalled = [stack.enter_context(_client(impatient)) for _ in range(count)]
        for client in stalled:
            client.sendall(half)

        assert impatient.call("GET", "/healthz")[0] == 200
        begins = {client.recv(12) for client in stalled}
        assert begins == ({b""} if part == "head" else {b"HTTP/1.1 400"})

    _, lines = impatient.stop()
    assert sum(line["event"] == "client_stalled" for line in lines) == count
    assert not any("exception" in line for line in lines)


def test_an_answer_that_nobody_reads_holds_no_thread_for_long(impatient: Served) -> None:
    with contextlib.ExitStack() as stack:
        count = THREADS * len(_worker_processes(impatient)) + 1
        for _ in range(count):
            client = stack.enter_context(_client(impatient, receive_buffer=4096))
            # The kernel would take one or two answers off the server's hands.
            client.sendall(f"GET {LARGE_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 10)

        assert wait_until(lambda: impatient.log.read_text().count("client_stalled") == count, timeout=20)
        assert impatient.call("GET", "/healthz")[0] == 200

    _, lines = impatient.stop()
    assert not any("exception" in line for line in lines)


def test_a_slow_line_is_waited_for(impatient: Served) -> None:
    pieces = [b"phone\n", *(b"+7916123456%d\n" % number for number in range(8))]
    head = f"POST /api/v1/client/import/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: text/csv\r\nContent-Length: {sum(map(len, pieces))}\r\n\r\n"
    with _client(impatient) as client:
        for piece in (head.encode(), *pieces):
            client.sendall(piece)
            time.sleep(0.3 * STALL_SECONDS)

        assert client.recv(4096).startswith(b"HTTP/1.1 202")

    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_client(impatient, receive_buffer=4096))
        client.sendall(f"GET {LARGE_PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = stack.enter_context(client.makefile("rb"))
        begin = time.monotonic()
        fields, _, body = answer.read(4096).partition(b"\r\n\r\n")
        length = next(int(line[16:]) for line in fields.splitlines() if line.lower().startswith(b"content-length: "))
        while time.monotonic() < begin + 3 * STALL_SECONDS:
            body += answer.read(4096)
            time.sleep(0.05 * STALL_SECONDS)
        body += answer.read()

        assert len(body) == length > 1_000_000


@contextlib.contextmanager
def _client(served: Served, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as client:
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(15)
        client.connect(("127.0.0.1", served.port))
        yield client


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://x/y", "API_PORT": "http"}, "API_PORT: Not a valid integer."),
        # It can be loaded, but a window would not find its clients.
        (
            {"DATABASE_URL": "postgresql://x/y", "DEFAULT_TIMEZONE": "posix/Europe/Moscow"},
            "DEFAULT_TIMEZONE: 'posix/Europe/Moscow' is not an IANA time zone",
        ),
    ],
)
def test_a_wrong_environment_ends_the_start_with_one_line(variables: dict[str, str], named: str) -> None:
    ended = _run("api", **variables)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"configuration error: {named}")
    assert ended.stderr.count("\n") == 1


def test_upgrade_makes_a_first_key_and_shows_it_once(database_url: str, engine: sa.Engine) -> None:
    first, again = (_run("db", "upgrade", DATABASE_URL=database_url) for _ in range(2))

    assert (first.returncode, again.returncode) == (0, 0)
    token = next(line for line in first.stdout.splitlines() if line.startswith("API key")).rpartition(" ")[2]
    assert "API key" not in again.stdout
    with Session(engine) as session:
        key = api_keys.find(session, api_keys.digest_of(token))
        assert key is not None
        assert key.scope is Scope.FULL
        assert token not in (key.digest, key.prefix)


def test_upgrade_takes_the_key_it_is_given(database_url: str, engine: sa.Engine) -> None:
    for _ in range(2):
        ended = _run("db", "upgrade", DATABASE_URL=database_url, API_KEY=KEY)
        assert (ended.returncode, KEY in ended.stdout) == (0, False)

    with Session(engine) as session:
        assert [key.digest for key in session.scalars(sa.select(ApiKey))] == [api_keys.digest_of(KEY)]


def test_several_upgrades_at_once_make_one_first_key(database_url: str, engine: sa.Engine) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "db", "upgrade"],
            cwd=ROOT,
            env=_environment(DATABASE_URL=database_url),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("API key" in output for output in outputs) == 1
    with Session(engine) as session:
        assert len(session.scalars(sa.select(ApiKey)).all()) == 1


def test_a_key_is_made_for_receipts(database_url: str, session: Session) -> None:
    ended = _run("db", "api-key", "gateway", "--scope", "receipts", DATABASE_URL=database_url)

    key = api_keys.find(session, api_keys.digest_of(ended.stdout.strip()))
    assert key is not None
    assert (key.name, key.scope) == ("gateway", Scope.RECEIPTS)


def test_recount_proves_the_counters_and_finds_a_wrong_one(database_url: str, session: Session) -> None:
    mailing = make_mailing(session)
    for status in (MessageStatus.SENT, MessageStatus.FAILED):
        make_message(session, mailing, make_client(session), status=status)
    assert _run("db", "recount", DATABASE_URL=database_url).returncode == 0

    session.execute(sa.text("INSERT INTO status_count (mailing_id, status, amount) VALUES (1, 'sent', 1)"))
    session.commit()

    ended = _run("db", "recount", DATABASE_URL=database_url)
    assert ended.returncode == 1
    assert "mailing 1, sent: counted 2, there are 1" in ended.stdout


def test_connections_are_spread_evenly_over_the_worker_processes(served: Served) -> None:
    # One process is ready before the other.
    assert wait_until(lambda: min(_spread(served)) > 0, timeout=20)
    _assert_even(served)


def test_a_worker_process_that_died_is_waited_for_no_longer(served: Served) -> None:
    dead = _worker_processes(served)[0]
    os.kill(dead, signal.SIGKILL)
    assert wait_until(lambda: len(workers := _worker_processes(served)) > 1 and dead not in workers, timeout=10)
    assert wait_until(lambda: min(_spread(served)) > 0, timeout=20)
    _assert_even(served)


def test_a_frozen_worker_process_keeps_no_new_connection_from_the_other(served: Served) -> None:
    assert wait_until(lambda: min(_spread(served)) > 0, timeout=20)
    frozen = _worker_processes(served)[0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        for _ in range(20):
            assert served.call("GET", "/healthz")[0] == 200
    finally:
        os.kill(frozen, signal.SIGCONT)


def test_a_process_whose_threads_all_wait_gets_no_new_connection(served: Served, engine: sa.Engine) -> None:
    assert wait_until(lambda: min(_spread(served)) > 0, timeout=20)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(_connect(served))) for _ in range(2 * THREADS)]
        for connection in connections:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        workers = {connection: _owner(served, connection) for connection in connections}
        stuck = statistics.mode(workers.values())
        lock = stack.enter_context(engine.begin())
        lock.execute(sa.text("LOCK TABLE client IN ACCESS EXCLUSIVE MODE"))
        waiting = [connection for connection, worker in workers.items() if worker == stuck][:THREADS]
        assert len(waiting) == THREADS
        for connection in waiting:
            connection.request("GET", "/api/v1/client/", headers={"Authorization": f"Bearer {KEY}"})
        waits = sa.text("SELECT count(*) FROM pg_locks WHERE relation = 'client'::regclass AND NOT granted")
        assert wait_until(lambda: lock.scalar(waits) == THREADS, timeout=10)
        for _ in range(2 * THREADS):
            newcomer = stack.enter_context(contextlib.closing(_connect(served)))
            newcomer.request("GET", "/healthz")
            assert newcomer.getresponse().status == 200
            newcomer.close()
        lock.rollback()
        assert {connection.getresponse().status for connection in waiting} == {200}


def _connect(served: Served) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.connect()
    return connection


def _worker_processes(served: Served) -> list[int]:
    return [member.pid for member in family(served.process.pid) if member.parent == served.process.pid]


def _assert_even(served: Served) -> None:
    """The processes share fairly. A single round may go wrong, where one of them is not given the processor."""
    rounds = [_spread(served) for _ in range(9)]
    assert statistics.median(max(counts) - min(counts) for counts in rounds) <= 2, rounds


def _spread(served: Served) -> list[int]:
    """How many of sixteen connections opened at once each worker process gets; they are closed again."""
    with contextlib.ExitStack() as stack:
        connections = [HTTPConnection("127.0.0.1", served.port, timeout=10) for _ in range(16)]
        for connection in connections:
            stack.callback(connection.close)
            connection.connect()
        for connection in connections:
            connection.request("GET", "/healthz")
        answers = [connection.getresponse() for connection in connections]
        assert {answer.status for answer in answers} == {200}
        counts = [_connections(worker, served.port) for worker in _worker_processes(served)]
        for answer in answers:
            answer.read()  # What is closed unread is reset.
    assert wait_until(lambda: not any(_connections(worker, served.port) for worker in _worker_processes(served)), 10)
    return counts


def _connections(pid: int, port: int) -> int:
    """How many connections to this port a process holds."""
    return len(_sockets(pid) & set(_accepted(port).values()))


def _owner(served: Served, connection: HTTPConnection) -> int:
    """The worker process that holds the other end."""
    inode = _accepted(served.port)[connection.sock.getsockname()[1]]
    return next(worker for worker in _worker_processes(served) if inode in _sockets(worker))


def _accepted(port: int) -> dict[int, str]:
    """The sockets of this port's connections by the port of the other end, as /proc/net/tcp tells them.

    Those that the other end has closed (08) are still held here.
    """
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = [line for line in lines if line[1].endswith(f":{port:04X}") and line[3] in ("01", "08")]
    return {int(line[2][-4:], 16): line[9] for line in own}


def _sockets(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found
