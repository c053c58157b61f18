"""The session of a request, the same way as in the API."""

from __future__ import annotations

from typing import Any

import orjson
from flask_sqlalchemy import SQLAlchemy

from db.engine import connect_arguments
from db.models import Base

# What a request shows was read before its commit: expiring it would only read it again.
database = SQLAlchemy(metadata=Base.metadata, session_options={"expire_on_commit": False})
session = database.session

STATEMENT_TIMEOUT_SECONDS = 15
POOL_WAIT_SECONDS = 5


def engine_options(threads: int) -> dict[str, Any]:
    """A connection for each thread, and one for an export that reads beside them."""
    return {
        "pool_size": threads,
        "max_overflow": 2,
        "pool_timeout": POOL_WAIT_SECONDS,
        "pool_pre_ping": True,
        "pool_recycle": 1800,
        "connect_args": connect_arguments("mailings admin", STATEMENT_TIMEOUT_SECONDS),
        "hide_parameters": True,  # Errors go to the log: no phones there.
        "json_deserializer": orjson.loads,
        "json_serializer": lambda value: orjson.dumps(value).decode(),
    }
