"""Engines and sessions on PostgreSQL."""

from __future__ import annotations

from typing import Any

import orjson
import psycopg2.errors
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

# Runs statements. A connection costs less than a session around it, which keeps track of objects: a third of the
# processor time of a short transaction.
Database = sa.Connection | Session

# Classes of SQLSTATE that say nothing against the statement: a broken connection, a standby or an idle transaction, a
# deadlock, no disk or memory or connection left, a lock not to be had, a shutdown or a time limit, a failing disk.
_PASSING = ("08", "25", "40", "53", "55", "57", "58")


def normalise_url(url: str) -> sa.URL:
    """Return the URL with the driver we ship; SQLAlchemy 2.1 would otherwise look for psycopg 3."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    return parsed.set(drivername="postgresql+psycopg2")


def connect_arguments(
    application_name: str, statement_timeout_seconds: float, idle_transaction_seconds: float = 60
) -> dict[str, Any]:
    """libpq options: bounded waiting everywhere, and keepalives so that a cut network is noticed in about 15 s.

    A process that is frozen inside a transaction holds its locks for `idle_transaction_seconds`: short where others
    may wait for them.
    """
    milliseconds = int(statement_timeout_seconds * 1000)
    idle_milliseconds = int(idle_transaction_seconds * 1000)
    return {
        "connect_timeout": 3,
        "application_name": application_name,
        "keepalives_idle": 5,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "options": (
            f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
            f" -c idle_in_transaction_session_timeout={idle_milliseconds} -c timezone=UTC"
        ),
    }


def make_engine(
    url: str,
    application_name: str,
    pool_size: int = 5,
    max_overflow: int = 0,
    statement_timeout_seconds: float = 30,
    idle_transaction_seconds: float = 60,
    *,
    pre_ping: bool = True,
) -> sa.Engine:
    """An engine that opens no connection yet.

    With `pre_ping` a dead pooled connection is replaced silently, at the price of a round trip per transaction.
    Processes that repeat a failed transaction anyway do without.
    """
    return sa.create_engine(
        normalise_url(url),
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_pre_ping=pre_ping,
        pool_recycle=1800,
        connect_args=connect_arguments(application_name, statement_timeout_seconds, idle_transaction_seconds),
        executemany_mode="values_plus_batch",
        json_deserializer=orjson.loads,
    )


def cause_name(error: Exception) -> str:
    """The name of the driver's error within SQLAlchemy's, which says more: DiskFull, AdminShutdown ..."""
    return type(getattr(error, "orig", None) or error).__name__


def is_passing(error: Exception) -> bool:
    """Whether the same transaction may succeed later: the database is away or overloaded, or somebody was in the way.

    The driver's class of error does not tell: a row that is too large for an index is an `OperationalError` too.
    """
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeout)
    code = getattr(error.orig, "pgcode", None)
    if code is None:  # PostgreSQL did not say it, but the driver: there is no connection.
        return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
    return str(code).startswith(_PASSING)


def is_disk_full(error: Exception) -> bool:
    """Whether PostgreSQL could not write for want of space."""
    return isinstance(getattr(error, "orig", None), psycopg2.errors.DiskFull)
