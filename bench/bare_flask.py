"""What the API is compared with: Flask behind the same gunicorn, the same statements, and nothing else.

No keys, no validation, no metrics, no request log, no documentation: what is left is what the web server, the driver
and the database take in any case. A new row takes the same entry in the audit log and the same notification along, and
all of this is one statement without BEGIN and COMMIT, as in the API; only a key's look-up, once in two seconds, has no
counterpart.
`python -m bench.bare_flask` serves it, on DATABASE_URL and API_PORT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Flask, Response, request
from psycopg2 import extensions
from psycopg2.extras import Json
from psycopg2.pool import ThreadedConnectionPool

from common.serving import THREADS, Server
from common.settings import Settings, settings
from db.models import MessageStatus
from db.queries import messages

_CLIENT = "id, phone, operator_code, tags, timezone, attributes, opted_out_at, created_at, updated_at"
_MAILING = (
    "id, name, text, starts_at, ends_at, operator_codes, tags, window_from, window_to, state, created_at, updated_at"
)
_MESSAGE = (
    f"message.id, mailing_id, client_id, phone, {messages.STATUS} AS status, attempts, message.created_at,"
    f" {messages.DUE_AT} AS next_attempt_at, sent_at, last_error"
)

_ENTRY = """
    INSERT INTO audit_entry (actor, address, action, subject, after)
    SELECT %(actor)s, %(address)s, '{kind}.create', '{kind}:' || added.id, %(after)s FROM added
"""
ADD_CLIENT = f"""
    WITH added AS (
        INSERT INTO client (phone, operator_code, tags, timezone, attributes, created_at, updated_at)
        VALUES (%(phone)s, %(operator_code)s, %(tags)s, %(timezone)s, %(attributes)s, %(now)s, %(now)s)
        ON CONFLICT (phone) DO NOTHING RETURNING {_CLIENT}
    ), entry AS ({_ENTRY.format(kind="client")})
    SELECT {_CLIENT} FROM added
"""
GET_CLIENT = f"SELECT {_CLIENT} FROM client WHERE id = %(id)s"
ADD_MAILING = f"""
    WITH added AS (
        INSERT INTO mailing (name, text, starts_at, ends_at, operator_codes, tags, state, created_at, updated_at)
        VALUES (
            %(name)s, %(text)s, %(starts_at)s, %(ends_at)s, %(operator_codes)s, %(tags)s, %(state)s, %(now)s, %(now)s
        )
        ON CONFLICT (idempotency_key) DO NOTHING RETURNING {_MAILING}
    ), entry AS ({_ENTRY.format(kind="mailing")})
    SELECT {_MAILING}, pg_notify('work', '') FROM added
"""
GET_MAILING = f"SELECT {_MAILING} FROM mailing WHERE id = %(id)s AND deleted_at IS NULL"
COUNT_MAILINGS = "SELECT count(*) FROM mailing WHERE deleted_at IS NULL"
LIST_MAILINGS = f"SELECT {_MAILING} FROM mailing WHERE deleted_at IS NULL ORDER BY id LIMIT 50 OFFSET 0"
COUNTS = """
    SELECT mailing_id, status, sum(amount) AS amount FROM status_count WHERE mailing_id = ANY(%(ids)s)
    GROUP BY mailing_id, status
"""
TOTALS = """
    SELECT status, sum(amount) AS amount FROM status_count JOIN mailing ON mailing.id = mailing_id
    WHERE deleted_at IS NULL GROUP BY status
"""
MESSAGES_OF_MAILING = f"""
    WITH page AS MATERIALIZED (
        SELECT id FROM message WHERE mailing_id = %(id)s AND client_id > coalesce(
            (SELECT client_id FROM message WHERE id = %(after)s AND mailing_id = %(id)s), 0
        )
        ORDER BY client_id LIMIT %(limit)s
    )
    SELECT {_MESSAGE} FROM page JOIN message USING (id) LEFT JOIN client ON client.id = client_id ORDER BY message.id
"""
MESSAGES = f"""
    WITH page AS MATERIALIZED (
        SELECT id FROM message WHERE mailing_id NOT IN (SELECT id FROM mailing WHERE deleted_at IS NOT NULL)
            AND id > %(after)s ORDER BY id LIMIT %(limit)s
    )
    SELECT {_MESSAGE} FROM page JOIN message USING (id) LEFT JOIN client ON client.id = client_id ORDER BY message.id
"""

Row = dict[str, Any]

_NOT_SHOWN = frozenset({"operator_codes", "tags", "window_from", "window_to", "pg_notify"})


class _Database:
    """A pool, and a cursor for each request, in which every statement stands for itself."""

    def __init__(self, url: str) -> None:
        self._pool = ThreadedConnectionPool(THREADS, THREADS, url.replace("+psycopg2", ""))

    @contextlib.contextmanager
    def cursor(self) -> Iterator[extensions.cursor]:
        """A cursor; what it writes is committed at once."""
        connection = self._pool.getconn()
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            self._pool.putconn(connection)


def _rows(cursor: extensions.cursor, statement: str, values: Mapping[str, Any] | None = None) -> list[Row]:
    cursor.execute(statement, values)
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_UTC_Z), status, mimetype="application/json")


def _entry(values: Row) -> Row:
    return {"actor": "key:1 bench", "address": request.remote_addr, "after": Json(values)}


def _mailing(row: Row) -> Row:
    kept = {name: value for name, value in row.items() if name not in _NOT_SHOWN}
    return {**kept, "filter": {"operator_codes": row["operator_codes"], "tags": row["tags"]}, "send_window": None}


def _by_status(rows: list[Row]) -> dict[str, int]:
    counts = {status.value: 0 for status in MessageStatus}
    for row in rows:
        counts[row["status"]] = int(row["amount"])
    return counts


def create_app(given: Settings) -> Flask:
    """The same endpoints as the API's, as short as they can be."""
    app = Flask("bare", static_folder=None)
    database = _Database(given.database_url or "")

    def add_client() -> Response:
        values = orjson.loads(request.get_data())
        entry = _entry(values)
        values = {"tags": [], "operator_code": values["phone"][2:5], "timezone": "Europe/Moscow", **values}
        values |= {"attributes": Json(values.get("attributes", {})), "now": datetime.now(UTC), **entry}
        with database.cursor() as cursor:
            return _json(_rows(cursor, ADD_CLIENT, values)[0], 201)

    def get_client(client_id: int) -> Response:
        with database.cursor() as cursor:
            return _json(_rows(cursor, GET_CLIENT, {"id": client_id})[0])

    def add_mailing() -> Response:
        now = datetime.now(UTC)
        given = orjson.loads(request.get_data())
        values = {"starts_at": now, "state": "scheduled", "operator_codes": [], "tags": [], **given, "now": now}
        values |= {**given.get("filter", {}), **_entry(given)}
        with database.cursor() as cursor:
            (row,) = _rows(cursor, ADD_MAILING, values)
        return _json(_mailing(row), 201)

    def overall() -> Response:
        with database.cursor() as cursor:
            total = _rows(cursor, COUNT_MAILINGS)[0]["count"]
            mailings = _rows(cursor, LIST_MAILINGS)
            counts = _rows(cursor, COUNTS, {"ids": [row["id"] for row in mailings]})
            totals = _by_status(_rows(cursor, TOTALS))
        of_mailing: dict[int, list[Row]] = {row["id"]: [] for row in mailings}
        for row in counts:
            of_mailing[row["mailing_id"]].append(row)
        listed = []
        for row in mailings:
            by_status = _by_status(of_mailing[row["id"]])
            kept = {name: row[name] for name in ("id", "name", "state", "starts_at", "ends_at")}
            listed.append({**kept, "messages": sum(by_status.values()), "by_status": by_status})
        sums = {"mailings": total, "messages": sum(totals.values()), "by_status": totals}
        return _json({"totals": sums, "mailings": listed})

    def detail(mailing_id: int) -> Response:
        place = {"id": mailing_id, **_place()}
        with database.cursor() as cursor:
            (mailing,) = _rows(cursor, GET_MAILING, place)
            by_status = _by_status(_rows(cursor, COUNTS, {"ids": [mailing_id]}))
            items = _rows(cursor, MESSAGES_OF_MAILING, place)
        sums = {"messages": sum(by_status.values()), "by_status": by_status}
        return _json({"mailing": _mailing(mailing), **sums, "items": items, "next": items[-1]["id"]})

    def messages() -> Response:
        with database.cursor() as cursor:
            items = _rows(cursor, MESSAGES, _place())
        return _json({"items": items, "next": items[-1]["id"]})

    app.add_url_rule("/api/v1/client/", view_func=add_client, methods=["POST"])
    app.add_url_rule("/api/v1/client/<int:client_id>/", view_func=get_client)
    app.add_url_rule("/api/v1/mailing/", view_func=add_mailing, methods=["POST"])
    app.add_url_rule("/api/v1/mailing/mailingsStatisticsOverall/", view_func=overall)
    app.add_url_rule("/api/v1/message/<int:mailing_id>/retrieveMessagesForMailing/", view_func=detail)
    app.add_url_rule("/api/v1/message/", view_func=messages)
    return app


def _place() -> dict[str, int]:
    return {"after": int(request.args.get("after", 0)), "limit": int(request.args.get("limit", 50))}


def main() -> None:
    """Serve until SIGTERM."""
    given = settings().require("database_url")
    Server("bare", given.api_port, given, lambda: create_app(given), _describe_error).run()


def _describe_error(_status: int, reason: str, _message: str) -> tuple[str, bytes]:
    return "text/plain", reason.encode()


if __name__ == "__main__":
    main()
