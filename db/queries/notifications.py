"""What a commit tells the running processes. Both are hints: whoever misses one finds the same in the tables."""

from __future__ import annotations

import select

import psycopg2.extensions
import sqlalchemy as sa

from db.engine import Database

WORK = "work"
WITHDRAWN = "withdrawn"

_NOTIFY = sa.select(sa.func.pg_notify(sa.bindparam("channel"), sa.bindparam("payload")))


def notify_work(database: Database, payload: str = "") -> None:
    """Wake the dispatcher when this transaction commits."""
    database.execute(_NOTIFY, {"channel": WORK, "payload": payload})


def notified_of_work() -> sa.ColumnElement[str]:
    """The same as a column: for each row that a statement gives."""
    return sa.func.pg_notify(sa.literal_column(f"'{WORK}'"), sa.literal_column("''"), type_=sa.Text())


def notify_withdrawn(database: Database, client_id: int) -> None:
    """Tell the workers, at commit, that this client is not to be written to any more."""
    database.execute(_NOTIFY, {"channel": WITHDRAWN, "payload": str(client_id)})


def heard(listener: psycopg2.extensions.connection, seconds: float) -> list[str]:
    """The payloads of what a listening connection was notified of, within so many seconds: as soon as there are any.

    Raises the driver's errors when the connection has broken.
    """
    poll = select.poll()  # `select.select` takes no descriptors beyond 1023, which a process with many calls may have.
    poll.register(listener.fileno(), select.POLLIN)
    if poll.poll(0 if listener.notifies else seconds * 1000):
        listener.poll()
    payloads = [notice.payload for notice in listener.notifies]
    listener.notifies.clear()
    return payloads
