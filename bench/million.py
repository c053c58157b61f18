"""A mailing of a million: how fast it is written, what it leaves in the database, and whether a pause holds it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from bench.figures import Figure
from bench.gateways import Gateway, NginxGateway
from bench.machinery import Bench, Database, MeasurementError
from bench.system import System
from db.models import MessageStatus
from db.queries import mailings
from tools import usage
from tools.processes import wait_until

SECTION = "million"
TITLE = "A mailing of a million"
SILENT_SECONDS = 3.0
TIMEZONE = "Europe/Moscow"  # of the clients


def run(bench: Bench) -> Iterator[Figure]:
    """Write one that must not be sent yet, to time the writing alone; then send one, paused in the middle."""
    clients = bench.size(1_000_000, 100_000)
    with NginxGateway(bench.directory) as gateway, bench.database(clients) as database:
        with System(bench, database, gateway) as system:
            yield from _write_alone(system, clients)
            _clear(database)
            yield from _send(bench, system, gateway, clients)
        yield from _remains(database, clients)


def _write_alone(system: System, clients: int) -> Iterator[Figure]:
    database = system.database
    database.settle()
    wal, cpu = database.wal_position(), system.cpu_seconds()
    # One hour of the day is open, twelve hours from now: all is written, and nothing is due.
    now = datetime.now(UTC)
    opens = now.astimezone(ZoneInfo(TIMEZONE)) + timedelta(hours=12)
    window = {"window_from": opens.time(), "window_to": (opens + timedelta(hours=1)).time()}
    mailing_id = database.add_mailing(ends_at=now + timedelta(days=2), **window)
    seconds = _wait_until_written(database, mailing_id)
    used = {group: total - cpu[group] for group, total in system.cpu_seconds().items()}
    wal = database.wal_position() - wal
    note = ", ".join(f"{group} {spent / clients * 1e6:.1f}" for group, spent in used.items() if spent)
    yield Figure(SECTION, f"{clients:,} messages written, none due", seconds, "s", note=f"µs each: {note}")
    yield Figure(SECTION, "WAL of a written message", wal / clients, "bytes")
    with database.session() as session:
        mailings.control(session, mailing_id, "cancel", datetime.now(UTC))
    began = time.monotonic()
    if not wait_until(lambda: database.count(mailing_id, MessageStatus.CANCELLED) == clients, 120, 0.1):
        raise MeasurementError("the cancelled messages were not all settled")
    yield Figure(SECTION, "cancelled, every message accounted for", time.monotonic() - began, "s")


def _clear(database: Database) -> None:
    database.execute("TRUNCATE message")
    database.execute("SELECT pg_stat_reset_single_table_counters('message'::regclass)")


def _send(bench: Bench, system: System, gateway: Gateway, clients: int) -> Iterator[Figure]:
    database, dispatcher = system.database, system.dispatchers[0].pid or 0
    gateway.forget()
    database.settle()
    resting = usage.memory_mb(dispatcher, "VmRSS")
    wal = database.wal_position()
    mailing_id = database.add_mailing()
    began = time.time()
    written = _wait_until_written(database, mailing_id)
    bench.say(f"written after {written:.1f} s")
    if not wait_until(lambda: database.count(mailing_id, MessageStatus.SENT) >= clients * 0.4, 300, 0.05):
        raise MeasurementError("two fifths were not sent in five minutes")
    with database.session() as session:
        mailings.control(session, mailing_id, "pause", datetime.now(UTC))
    paused_at = time.time()
    time.sleep(SILENT_SECONDS)
    at_pause = gateway.received()
    time.sleep(SILENT_SECONDS)
    if gateway.received().messages != at_pause.messages:
        raise MeasurementError("the gateway was called seconds after the pause")
    waiting = database.count(mailing_id, MessageStatus.PENDING)
    with database.session() as session:
        mailings.control(session, mailing_id, "resume", datetime.now(UTC))
    resumed_at = time.time()
    system.wait_for_end(mailing_id, 600)
    seconds = time.time() - began - (resumed_at - paused_at)
    received = gateway.received()
    if received.messages != clients:
        raise MeasurementError(f"{clients} messages, but {received.messages} at the gateway")
    assert at_pause.first_at
    assert at_pause.last_at
    assert received.last_at
    repeats = f"{received.repeats} repeated" if received.repeats else "each id once"
    yield Figure(SECTION, f"{clients:,} messages written while they are sent", written, "s")
    yield Figure(SECTION, "first message at the gateway after", at_pause.first_at - began, "s")
    yield Figure(SECTION, "sent", clients / seconds, "messages/s", note=f"the pause left out; {repeats} at the gateway")
    yield Figure(SECTION, "silence after a pause", at_pause.last_at - paused_at, "s", note=f"{waiting:,} were waiting")
    peak = usage.memory_mb(dispatcher)
    yield Figure(SECTION, "memory of the dispatcher, the peak", peak, "MB", resting, "before the first mailing")
    memory = max(usage.memory_mb(process.pid) for process in system.sending_processes())
    yield Figure(SECTION, "memory of a sending process, the peak", memory, "MB")
    yield Figure(SECTION, "WAL", (database.wal_position() - wal) / clients, "bytes/message")


def _remains(database: Database, clients: int) -> Iterator[Figure]:
    """What the million is in the database, before and after a vacuum."""
    time.sleep(1.0)  # The statistics of the last transactions come late.
    heap = database.scalar("SELECT pg_relation_size('message')")
    yield Figure(SECTION, "message table", heap / clients, "bytes/message")
    for name, size in database.rows(
        "SELECT indexrelid::regclass::text, pg_relation_size(indexrelid) FROM pg_index"
        " WHERE indrelid = 'message'::regclass ORDER BY 1"
    ):
        yield Figure(SECTION, f"index {name}", size / clients, "bytes/message")
    dead, updated, heap_only, vacuums = database.rows(
        "SELECT n_dead_tup, n_tup_upd, n_tup_hot_upd, autovacuum_count FROM pg_stat_user_tables"
        " WHERE relname = 'message'"
    )[0]
    yield Figure(SECTION, "dead rows at the end", dead / clients, "a message", note=f"autovacuum ran {vacuums} times")
    yield Figure(SECTION, "updates that touched no index", heap_only / updated, "of all")
    began = time.monotonic()
    database.execute("VACUUM message")
    yield Figure(SECTION, "vacuum of the message table", time.monotonic() - began, "s")


def _wait_until_written(database: Database, mailing_id: int) -> float:
    """Seconds from the mailing's commit until all its messages are written."""
    written = "SELECT extract(epoch FROM materialised_at - created_at)::float FROM mailing WHERE id = %s"
    if not wait_until(lambda: database.scalar(written, mailing_id) is not None, 300, 0.1):
        raise MeasurementError("not all messages were written in five minutes")
    return float(database.scalar(written, mailing_id))
