"""The API's endpoints under load, each beside a bare Flask endpoint that runs the same statements, in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Iterator

import requests

from bench.figures import Figure
from bench.load import Load, wrk
from bench.machinery import ENVIRONMENT, PYTHON, ROOT, START_SECONDS, Bench, Database, MeasurementError
from db.models import Scope
from db.queries import api_keys
from tools.processes import FIRST, Process, StartError, free_port, tail, wait_until

SECTION = "api"
TITLE = "The API with gunicorn's settings as shipped, beside bare Flask with the same statements"
CONNECTIONS = 16
ROUNDS = 3
MAILINGS = 1000
PAGE = 50
API_KEY = "bench-key"
HEADERS = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}

MAILING = {
    "name": "Sale",
    "text": "Hello, this is a message of usual length.",
    "starts_at": "2098-12-01T09:00:00Z",  # Never, as far as a dispatcher is concerned.
    "ends_at": "2099-01-01T09:00:00Z",
    "filter": {"tags": ["vip"]},
}
# Every request has a number of its own; {first} sets the servers and the rounds apart.
NEW_CLIENTS = """
local number = {first}
request = function()
  number = number + 1
  local body = '{{"phone": "+7926%07d", "tags": ["vip"], "attributes": {{"name": "Anna"}}}}'
  return wrk.format(nil, nil, nil, string.format(body, number))
end
"""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A request to repeat."""

    name: str
    path: str
    method: str = "GET"
    body: str | None = None
    script: str = ""


@dataclasses.dataclass(frozen=True)
class Served:
    """One of the two servers."""

    name: str
    url: str


def endpoints(messages: int) -> list[Endpoint]:
    """The requests to compare; the first mailing has so many messages, and the pages of messages go through them."""
    return [
        Endpoint("POST /client/", "/client/", "POST", script=NEW_CLIENTS),
        Endpoint("GET /client/{id}/", "/client/77/"),
        Endpoint("POST /mailing/", "/mailing/", "POST", json.dumps(MAILING)),
        Endpoint(f"statistics over {MAILINGS:,} mailings", "/mailing/mailingsStatisticsOverall/"),
        Endpoint(f"detail of a mailing of {messages:,}", "/message/1/retrieveMessagesForMailing/"),
        Endpoint("messages, first page", "/message/"),
        Endpoint(f"messages, page {messages // 2 // PAGE:,}", f"/message/?after={messages // 2}"),
    ]


def run(bench: Bench) -> Iterator[Figure]:
    """Load each endpoint of ours and of the bare application in turns; the median of the rounds is given."""
    messages = bench.size(1_000_000, 100_000)
    with bench.database(clients=bench.size(200_000, 20_000)) as database:
        fill(database, messages)
        with serve(bench, database, "api") as ours, serve(bench, database, "bench.bare_flask") as bare:
            for endpoint in endpoints(messages):
                bench.say(endpoint.name)
                yield from _compare(bench, endpoint, ours, bare)
                database.execute("DELETE FROM mailing WHERE id > %s", MAILINGS)
                database.execute("VACUUM mailing")


def fill(database: Database, messages: int) -> None:
    """Many mailings that are over, and in the first of them most of the messages."""
    database.execute(
        "INSERT INTO mailing (name, text, starts_at, ends_at, state, started_at, materialised_at, finished_at)"
        " SELECT 'Sale ' || n, 'Hello', now() - interval '2 days', now() - interval '1 day', 'completed', now(), now(),"
        " now() FROM generate_series(1, %s) AS n",
        MAILINGS,
    )
    insert = (
        "INSERT INTO message (mailing_id, client_id, status, attempts, sent_at)"
        " SELECT mailing, client, 'sent', 1, now()"
        " FROM generate_series(%s, %s) AS mailing, generate_series(1, %s) AS client ORDER BY 1, 2"
    )
    database.execute(insert, 1, 1, messages)
    database.execute(insert, 2, MAILINGS, 20)
    database.execute("VACUUM ANALYZE")


@contextlib.contextmanager
def serve(bench: Bench, database: Database, module: str) -> Iterator[Served]:
    """Run `python -m module` as the API is run in production, for the holder of a key."""
    with database.session() as session:
        api_keys.create(session, "bench", Scope.FULL, API_KEY)
    port = free_port()
    process = Process(
        name=module,
        argv=[PYTHON, "-m", module],
        env={
            **ENVIRONMENT,
            "DATABASE_URL": database.url,
            "API_PORT": str(port),
            "LISTEN_ADDRESS": "127.0.0.1",
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
        },
        cwd=ROOT,
        log=bench.directory / f"{module}-{port}.log",
        dies_with_parent=True,
        nice=FIRST,
    )
    url = f"http://127.0.0.1:{port}/api/v1"
    process.launch()
    try:
        if not wait_until(lambda: _answers(url), START_SECONDS):
            raise StartError(f"{module} did not start; the end of its log:{tail(process.log)}")
        yield Served(module, url)
    finally:
        process.stop(10.0)


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}/client/1/", headers=HEADERS, timeout=5).status_code == 200
    return False


def _compare(bench: Bench, endpoint: Endpoint, ours: Served, bare: Served) -> Iterator[Figure]:
    loads: dict[str, list[Load]] = {ours.name: [], bare.name: []}
    for number in range(ROUNDS):
        # New connections each time: which worker process gets how many of them is chance.
        for offset, served in enumerate((bare, ours)):
            first = 1_000_000 * (ROUNDS * offset + number)
            loads[served.name].append(load(endpoint, served.url, bench.size(8, 2), CONNECTIONS, first))
    our, their = (
        {value: statistics.median(getattr(one, value) for one in loads[name]) for value in ("rate", "p50", "p99")}
        for name in (ours.name, bare.name)
    )
    yield Figure(SECTION, endpoint.name, our["rate"], "requests/s", their["rate"], "bare Flask")
    for value in ("p50", "p99"):
        yield Figure(SECTION, f"{endpoint.name}: {value}", our[value], "ms", their[value], "bare Flask")


def load(
    endpoint: Endpoint, url: str, seconds: int, connections: int, first: int = 0, pause_milliseconds: int = 0
) -> Load:
    """Repeat a request for so long; raise MeasurementError when one was refused."""
    found = wrk(
        f"{url}{endpoint.path}",
        connections=connections,
        seconds=seconds,
        method=endpoint.method,
        body=endpoint.body,
        headers=HEADERS,
        script=endpoint.script.format(first=first) if endpoint.script else "",
        pause_milliseconds=pause_milliseconds,
    )
    if found.refused or found.socket_errors:
        raise MeasurementError(f"{endpoint.name}: {found.refused} refused, {found.socket_errors} connections broken")
    return found
