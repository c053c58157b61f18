"""The session of a request."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy as sa
from flask import g, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session

from db.engine import connect_arguments
from db.models import Base

# What a request hands back was read before its commit: expiring it would only read it again.
database = SQLAlchemy(metadata=Base.metadata, session_options={"expire_on_commit": False})
session = database.session

STATEMENT_TIMEOUT_SECONDS = 15
POOL_WAIT_SECONDS = 5


def engine_options(threads: int) -> dict[str, Any]:
    """A connection for each thread and no waiting for long: a client with a timeout has gone by then."""
    return {
        "pool_size": threads,
        "max_overflow": 1,  # for a key's look-up beside the request's own session
        "pool_timeout": POOL_WAIT_SECONDS,
        "pool_events": [(_replace_if_closed, "checkout"), (_spare_the_transaction, "checkout")],
        "pool_recycle": 1800,
        "connect_args": connect_arguments("mailings api", STATEMENT_TIMEOUT_SECONDS),
        "hide_parameters": True,  # Errors go to the log: no phones there.
        # jsonb gives numbers back digit by digit; orjson reads even 1e308 as the number that was handed in.
        "json_deserializer": orjson.loads,
        "json_serializer": lambda value: orjson.dumps(value).decode(),
    }


def _replace_if_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the pool open another connection, unnoticed by the request, where PostgreSQL or the network ended this one.

    A connection that nobody uses has something to read only when its end came, or keepalives found the other side gone.
    Asking the kernel costs a system call; a `SELECT 1` before every request (pool_pre_ping) would cost a round trip.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError("closed by the other side")


def _spare_the_transaction(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have every statement of a GET stand for itself: BEGIN and ROLLBACK would be two round trips beside one."""
    connection.autocommit = (bool(request) and only_reads()) or (bool(g) and "one_statement" in g)


def only_reads() -> bool:
    """Whether the request may change nothing."""
    return request.method in {"GET", "HEAD"}


def reading() -> sa.Connection:
    """A connection for a request that only reads; to be closed, which `with` does."""
    return database.engine.connect()


@contextlib.contextmanager
def reading_at_one_instant() -> Iterator[sa.Connection]:
    """The same for a GET whose numbers have to agree: all its statements see one state of the database."""
    with reading() as reader:
        # Set by SQLAlchemy, the isolation level would cost every later request on this connection further round trips.
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield reader
        except BaseException:
            reader.invalidate()  # It may be in a transaction, of which the pool knows nothing.
            raise
        reader.exec_driver_sql("COMMIT")


def session_of_one_statement() -> Session:
    """The session of a request that writes with a single statement, which is a transaction without BEGIN and COMMIT.

    To be asked for before anything else uses the session: what was begun stays a transaction.
    """
    g.one_statement = True
    return session()
