"""Whether a message costs the same in a small and a large mailing, and with little and much behind it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence

from bench.figures import Figure
from bench.gateways import NginxGateway
from bench.machinery import Bench, Database, MeasurementError
from bench.system import Sending, System

SECTION = "growth"
TITLE = "The cost of a message as mailings and history grow"
OLD_MAILINGS = 1_000
AT_ONCE = 300  # small mailings
# What a message of history takes on disk with its indexes, and its WAL until a checkpoint; measured, rounded up.
BYTES_PER_OLD_MESSAGE = 250
WAL_BYTES = 3 * 2**30
# The mailings of history are looked at for this long before anything is measured beside them.
IDLE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one message of some equal mailings took."""

    messages: int  # of each
    mailings: int
    seconds: float  # from the commit of a mailing to its state `completed`, the mean
    cpu_microseconds: dict[str, float]  # of all of its processor time, by group
    wal_bytes: float

    @property
    def cpu(self) -> float:
        """The processor time of a message in µs, the gateway's left out."""
        return sum(spent for group, spent in self.cpu_microseconds.items() if group != "gateway")

    @property
    def cpu_by_gateway(self) -> float:
        """The same for each µs of the gateway's, which does one thing always: the machine's own speed cancels out."""
        return self.cpu / self.cpu_microseconds["gateway"]


def run(bench: Bench) -> Iterator[Figure]:
    """First the sizes, without history; then a size between with more and more history."""
    largest = bench.size(1_000_000, 100_000)
    usual = bench.size(200_000, 20_000)
    ages = [bench.size(1_000_000, 100_000), bench.size(10_000_000, 1_000_000)]
    _check_space(bench, ages[-1])
    with NginxGateway(bench.directory) as gateway, bench.database(largest) as database:
        _mark(database, {"hundred": 100, "ten_thousand": 10_000, "usual": usual})
        with System(bench, database, gateway) as system:
            idle = _idle_cpu(system)
            bench.say(f"idle: {sum(idle.values()):.1%} of a core")
            system.send_mailing(tags=["usual"])  # Warms up what production has warm.
            base = _cost(system, idle, repeats=3, tags=["usual"])
            yield from _figures(f"{usual:,} recipients", base, None)
            yield from _figures("100 recipients", _cost(system, idle, repeats=20, tags=["hundred"]), base)
            at_once = _mean([system.send_mailing(at_once=AT_ONCE, tags=["hundred"]) for _ in range(3)], idle)
            yield from _figures(f"{AT_ONCE} mailings of 100 at once", at_once, base)
            yield from _figures("10,000 recipients", _cost(system, idle, repeats=10, tags=["ten_thousand"]), base)
            yield from _figures(f"{largest:,} recipients", _cost(system, idle, repeats=1), base)
            written = 0
            for age in ages:
                began = time.monotonic()
                add_history(database, age - written, 0 if written else OLD_MAILINGS)
                written = age
                bench.say(f"{age:,} old messages after {time.monotonic() - began:.0f} s")
                cost = _cost(system, _idle_cpu(system), repeats=3, tags=["usual"])
                yield from _figures(f"{usual:,} recipients, {age:,} old messages", cost, base)
        heap, indexes = _sizes(database)
        yield Figure(SECTION, "message table at the end", heap / 1e6, "MB", note=f"and indexes {indexes / 1e6:,.0f} MB")


def _check_space(bench: Bench, messages: int) -> None:
    wanted = messages * BYTES_PER_OLD_MESSAGE + WAL_BYTES
    free = shutil.disk_usage(bench.directory).free
    bench.say(f"{messages:,} old messages: {wanted / 1e9:.1f} GB of disk wanted, {free / 1e9:.1f} GB free")
    if free < wanted:
        raise MeasurementError(f"{wanted / 1e9:.1f} GB of disk wanted, {free / 1e9:.1f} GB free")


def _mark(database: Database, groups: dict[str, int]) -> None:
    """Give the first clients a tag for each group that they are in, evenly spread over the directory."""
    total = int(database.scalar("SELECT count(*) FROM client"))
    for tag, size in groups.items():
        database.execute("UPDATE client SET tags = tags || %s WHERE id %% %s = 0", [tag], max(1, total // size))
    # As if they had come with their tags: in the order of their ids.
    database.execute("CLUSTER client USING pk_client")
    database.execute("VACUUM ANALYZE client")


def add_history(database: Database, messages: int, mailings: int) -> None:
    """Write so many sent messages of last month, evenly over the mailings of that time, which are added if told to.

    The counters are told what they would have been: statement by statement they would be right, too, but slower.
    """
    if mailings:
        database.execute(
            "INSERT INTO mailing (name, text, starts_at, ends_at, state, started_at, materialised_at, finished_at)"
            " SELECT 'Old ' || n, 'Hello', at, at + interval '1 h', 'completed', at, at, at + interval '1 h'"
            " FROM generate_series(1, %s) AS n,"
            "  LATERAL (SELECT now() - interval '30 days' + n * interval '10 min' AS at) AS time",
            mailings,
        )
    database.execute("ALTER TABLE message DISABLE TRIGGER USER")
    database.execute(
        "WITH old AS (SELECT id, started_at, row_number() OVER (ORDER BY id) AS number FROM mailing"
        "  WHERE name LIKE 'Old %%'), size AS (SELECT %s / count(*) AS each, count(*) AS mailings FROM old)"
        " INSERT INTO message (mailing_id, client_id, status, attempts, created_at, sent_at)"
        # Other clients for each: their numbers go on where those of the messages written before end.
        " SELECT old.id, coalesce((SELECT max(client_id) FROM message WHERE mailing_id = old.id), 0) + n,"
        "  'sent', 1, started_at, started_at"
        " FROM size, old, LATERAL generate_series(1, size.each) AS n ORDER BY old.number, n",
        messages,
    )
    database.execute("ALTER TABLE message ENABLE TRIGGER USER")
    database.execute(
        "INSERT INTO status_count (mailing_id, status, amount)"
        " SELECT id, 'sent', %s / count(*) OVER () FROM mailing WHERE name LIKE 'Old %%'",
        messages,
    )
    database.execute(
        "INSERT INTO status_flow (minute, mailing_id, status, amount)"
        " SELECT date_trunc('minute', started_at), id, status, %s / count(*) OVER () FROM mailing,"
        "  unnest(ARRAY['pending', 'sent']) AS status WHERE name LIKE 'Old %%'",
        messages,
    )
    database.execute("VACUUM ANALYZE message")
    database.execute("VACUUM ANALYZE")


def _idle_cpu(system: System) -> dict[str, float]:
    """The share of a core that each group takes while there is nothing to do."""
    time.sleep(2.0)
    before = system.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return {group: (total - before[group]) / IDLE_SECONDS for group, total in system.cpu_seconds().items()}


def _cost(system: System, idle: dict[str, float], *, repeats: int, tags: Sequence[str] = ()) -> Cost:
    """Send some equal mailings one after another; what they took beyond idling."""
    # What the mailings before left to autovacuum is theirs.
    system.database.execute("VACUUM (ANALYZE) message")
    return _mean([system.send_mailing(tags=list(tags), settled=number > 0) for number in range(repeats)], idle)


def _mean(sendings: Sequence[Sending], idle: dict[str, float]) -> Cost:
    messages = sum(sending.messages for sending in sendings)
    seconds = sum(sending.seconds for sending in sendings)
    cpu = {
        group: sum(sending.cpu_microseconds[group] * sending.messages for sending in sendings) / messages
        - idle[group] * seconds / messages * 1e6
        for group in sendings[0].cpu_microseconds
    }
    wal = sum(sending.wal_bytes * sending.messages for sending in sendings) / messages
    return Cost(messages // len(sendings), len(sendings), seconds / len(sendings), cpu, wal)


def _figures(name: str, cost: Cost, base: Cost | None) -> Iterator[Figure]:
    groups = ", ".join(f"{group} {spent:.1f}" for group, spent in cost.cpu_microseconds.items())
    of = f"{base.messages:,} recipients, no history" if base else ""
    runs = f"mean of {cost.mailings}" if cost.mailings > 1 else "one run"
    reference = base.cpu if base else None
    yield Figure(SECTION, f"{name}: processor time", cost.cpu, "µs/message", reference, of, f"{groups}; {runs}")
    reference = base.cpu_by_gateway if base else None
    yield Figure(SECTION, f"{name}: the same for each µs of the gateway's", cost.cpu_by_gateway, "µs", reference, of)
    rate = cost.messages / cost.seconds
    base_rate = base.messages / base.seconds if base else None
    took = f"{cost.seconds:.2f} s from start to completed; WAL {cost.wal_bytes:,.0f} bytes/message"
    yield Figure(SECTION, f"{name}: rate", rate, "messages/s", base_rate, of, took)


def _sizes(database: Database) -> tuple[int, int]:
    row = database.rows("SELECT pg_relation_size('message'), pg_indexes_size('message')")[0]
    return int(row[0]), int(row[1])
