"""An import of a large file by the real worker, beside a bare COPY of the same rows, and what checking phones takes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator

import phonenumbers
import psycopg2

from bench.figures import Figure
from bench.gateways import SimulatorGateway
from bench.machinery import Bench, Database, MeasurementError
from bench.system import System
from db import phones
from db.models import ImportState
from db.queries import imports
from tools import usage
from tools.processes import family, wait_until

SECTION = "import"
TITLE = "Import of a CSV file by the import worker, beside a bare COPY"
BLOCK_ROWS = 10_000
PATIENCE_SECONDS = 900.0
CODES = 10  # operator codes from 910 on, taken in turns
COLUMNS = "phone, operator_code, tags, timezone, attributes"


def run(bench: Bench) -> Iterator[Figure]:
    """Import a tenth of the file, then all of it, in one worker process: its memory has to be the same after both."""
    rows = bench.size(1_000_000, 100_000)
    with (
        SimulatorGateway() as gateway,
        bench.database() as database,
        System(bench, database, gateway, sending_processes=1) as system,
    ):
        importing_pid = _importing_pid(system)
        _import(database, range(rows // 10))
        memory_before = usage.memory_mb(importing_pid)
        database.execute("TRUNCATE client")
        database.settle()
        bench.say(f"importing {rows:,} rows")
        cpu = usage.cpu_seconds([importing_pid])
        seconds, uploaded = _import(database, range(rows))
        cpu = usage.cpu_seconds([importing_pid]) - cpu
        memory = usage.memory_mb(importing_pid)
        copied = _copy(database, rows)
    yield Figure(
        SECTION,
        f"{rows:,} rows",
        seconds,
        "s",
        copied,
        "COPY into a table with the same indexes",
        f"{cpu:.1f} s of it the worker's processor time; storing the file took {uploaded:.1f} s",
    )
    yield Figure(SECTION, "memory of the importing process", memory, "MB", memory_before, f"after {rows // 10:,} rows")
    checked = _time_of(lambda: _count(map(phones.normalise, _phones(range(rows)))))
    parsed = _time_of(lambda: _count(map(_check_with_library, _phones(range(rows // 20))))) * 20
    yield Figure(
        SECTION, "checking the phones alone", checked, "s", parsed, "phonenumbers for every row (a twentieth measured)"
    )


def _import(database: Database, numbers: range) -> tuple[float, float]:
    """Seconds from the commit of the job to its end, and those it took to store the file."""
    began = time.monotonic()
    with database.session() as session:
        import_id = imports.create(session, _blocks(numbers)).id
    stored = time.monotonic()

    def state() -> str:
        return str(database.scalar("SELECT state FROM import_job WHERE id = %s", import_id))

    if not wait_until(lambda: state() in {ImportState.COMPLETED, ImportState.FAILED}, PATIENCE_SECONDS):
        raise MeasurementError(f"after {PATIENCE_SECONDS:.0f} s the import is {state()}")
    ended = time.monotonic()
    created = database.scalar("SELECT created FROM import_job WHERE id = %s", import_id)
    if created != len(numbers):
        raise MeasurementError(f"{created} of {len(numbers)} rows became clients")
    return ended - stored, stored - began


def _importing_pid(system: System) -> int:
    """The process that imports; the supervisor starts it beside the sending ones."""
    members = [member for sender in system.senders for member in family(sender.pid or 0)]
    return next(member.pid for member in members if member.last_argument == "imports")


def _copy(database: Database, rows: int) -> float:
    """Seconds to COPY the imported rows, as they are, into an empty table like `client`."""
    database.execute("CREATE TABLE client_copy (LIKE client INCLUDING ALL)")
    database.settle()
    connection = psycopg2.connect(database.dsn)
    try:
        with connection.cursor() as cursor:
            file = io.StringIO()
            cursor.copy_expert(f"COPY (SELECT {COLUMNS} FROM client ORDER BY id) TO STDOUT", file)
            file.seek(0)
            began = time.monotonic()
            cursor.copy_expert(f"COPY client_copy ({COLUMNS}) FROM STDIN", file)
            connection.commit()
            seconds = time.monotonic() - began
            cursor.execute("SELECT count(*) FROM client_copy")
            found = cursor.fetchone()
    finally:
        connection.close()
    if found != (rows,):
        raise MeasurementError(f"{found} rows were copied, not {rows}")
    return seconds


def _blocks(numbers: range) -> Iterator[bytes]:
    """A file as people write it: phones with brackets and dashes, some tags, a zone, two attributes."""
    yield b"phone,tags,timezone,name,city\n"
    for first in range(0, len(numbers), BLOCK_ROWS):
        some = numbers[first : first + BLOCK_ROWS]
        yield "".join(
            f"{phone},{'vip|new' if number % 5 == 0 else 'regular'},Europe/Moscow,Anna {number},Москва\n"
            for number, phone in zip(some, _phones(some), strict=True)
        ).encode()


def _phones(numbers: range) -> Iterator[str]:
    for number in numbers:
        code, subscriber = 910 + number % CODES, 1_000_000 + number // CODES
        yield f"8 ({code}) {subscriber // 10_000}-{subscriber // 100 % 100:02d}-{subscriber % 100:02d}"


def _check_with_library(text: str) -> str:
    parsed = phonenumbers.parse(text, "RU")
    if not phonenumbers.is_valid_number(parsed):
        raise MeasurementError(f"{text} is not valid")
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def _count(items: Iterable[object]) -> int:
    return sum(1 for _ in items)


def _time_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
