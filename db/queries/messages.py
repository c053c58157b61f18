"""Messages as people look at them: pages by key, one with its history."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.engine import Database
from db.models import Attempt, Base, Client, Mailing, Message, MessageStatus
from db.refusals import MissingError

# A row of `message`, with the phone of its client (None when the client is gone).
MessageRow = sa.Row[*tuple[Any, ...]]


# How many messages, whatever their status, are looked through for a page of a status before other ways are taken.
NEAR = 20_000
# No index finds these: those of `sending` are in the batches, and all others have a reason.
_WITHOUT_INDEX = (MessageStatus.PENDING, MessageStatus.SENT, MessageStatus.DELIVERED)


class Filter(NamedTuple):
    """Which messages; None is any."""

    mailing_id: int | None = None
    client_id: int | None = None
    status: MessageStatus | None = None
    reason: str | None = None  # of a failure: messages that failed for it


# Messages of a batch that is only planned still wait, since they were written.
_IS_PLANNED = "message.status = 'sending' AND message.batch_id IN (SELECT id FROM planned_batch)"
STATUS = f"CASE WHEN {_IS_PLANNED} THEN 'pending' ELSE message.status END"
DUE_AT = f"CASE WHEN {_IS_PLANNED} THEN message.created_at ELSE message.next_attempt_at END"

# The tables, not the classes: rows are built faster without the ORM between.
_MESSAGE, _CLIENT = Base.metadata.tables[Message.__tablename__], Base.metadata.tables[Client.__tablename__]
_COLUMNS = (
    _MESSAGE.c.id,
    _MESSAGE.c.mailing_id,
    _MESSAGE.c.client_id,
    _CLIENT.c.phone,
    sa.literal_column(STATUS, _MESSAGE.c.status.type).label("status"),
    _MESSAGE.c.attempts,
    _MESSAGE.c.created_at,
    sa.literal_column(DUE_AT, _MESSAGE.c.next_attempt_at.type).label("next_attempt_at"),
    _MESSAGE.c.sent_at,
    _MESSAGE.c.last_error,
)
FIELDS = tuple(column.name for column in _COLUMNS)
_GET = (
    sa.select(*_COLUMNS)
    .select_from(_MESSAGE)
    .join(Mailing, Mailing.id == _MESSAGE.c.mailing_id)
    .join(_CLIENT, _CLIENT.c.id == _MESSAGE.c.client_id, isouter=True)
    .where(_MESSAGE.c.id == sa.bindparam("message_id"), Mailing.deleted_at.is_(None))
)
_HISTORY = sa.select(Attempt).where(Attempt.message_id == sa.bindparam("message_id")).order_by(Attempt.id)


def page(
    database: Database, wanted: Filter, after: int | None, limit: int, *, backwards: bool = False
) -> Sequence[MessageRow]:
    """The next messages after this id, in the order of their ids, or before it, in the opposite one.

    Costs the same wherever in the list, except where a status is looked for that no index knows and that hardly any
    message near this place has: finding the next `sent` or `delivered` one may then cost a walk along its mailing.
    """
    if wanted.reason is not None:
        wanted = wanted._replace(status=MessageStatus.FAILED)
    if after == 0 and not backwards:
        after = None  # Ids begin at 1.
    values = {**wanted._asdict(), "beyond": after, "limit": limit, "near": NEAR}
    given = frozenset(name for name, value in values.items() if value is not None)
    if wanted.status in _WITHOUT_INDEX and wanted.client_id is None:
        rows = database.execute(_page_statement(given, wanted.status, backwards=backwards, near=True), values).all()
        if len(rows) == limit:
            return rows
    return database.execute(_page_statement(given, wanted.status, backwards=backwards, near=False), values).all()


def get(session: Session, message_id: int) -> tuple[MessageRow, Sequence[Attempt]]:
    """One message and its attempts, oldest first; raise MissingError."""
    row = session.execute(_GET, {"message_id": message_id}).one_or_none()
    if row is None:
        raise MissingError("no such message")
    return row, session.scalars(_HISTORY, {"message_id": message_id}).all()


# Built once for every combination of filters: building takes longer than running.
@functools.cache
def _page_statement(
    given: frozenset[str], status: MessageStatus | None, *, backwards: bool, near: bool
) -> sa.Select[*tuple[Any, ...]]:
    place = _Place("beyond" in given, backwards)
    ids: sa.Select[int] | sa.TextualSelect
    if "client_id" in given:
        ids = _ids_of_client(given, place)
    else:
        ids = sa.text(_ids(given, status, place, near=near)).columns(_MESSAGE.c.id)
    # Materialised, so that the planner finds the ids first and then one row for each.
    found = ids.cte("page").prefix_with("MATERIALIZED")
    return (
        sa.select(*_COLUMNS)
        .select_from(found)
        .join(_MESSAGE, _MESSAGE.c.id == found.c.id)
        .join(_CLIENT, _CLIENT.c.id == _MESSAGE.c.client_id, isouter=True)
        .order_by(_MESSAGE.c.id.desc() if backwards else _MESSAGE.c.id)
    )


def _ids(given: frozenset[str], status: MessageStatus | None, place: _Place, *, near: bool) -> str:
    of_mailing = "mailing_id" in given
    if status is None:
        return place.walk(":mailing_id", _EXISTS) if of_mailing else place.walk_all()
    if near:
        walked = place.walk(":mailing_id", _EXISTS, ":near") if of_mailing else place.walk_all(":near")
        order = place.order_by("client_id" if of_mailing else "id")
        return f"SELECT id FROM ({walked}) AS near WHERE status = :status {order} LIMIT :limit"
    if status is MessageStatus.SENDING:
        return _ids_on_the_wire(place, of_mailing=of_mailing)
    if status in _WITHOUT_INDEX:
        source = place.walk("pair.mailing_id", _OF_STATUS)
        if status is MessageStatus.PENDING:
            source = _waiting_ids(place)
    else:
        for_reason = "AND last_error = :reason" if "reason" in given else ""
        source = f"""
            SELECT id FROM message
            WHERE mailing_id = pair.mailing_id AND {_OF_STATUS} AND last_error IS NOT NULL {for_reason}
              {place.beyond} {place.order_by("id")} LIMIT :limit
        """
    return _first_of_mailings(source, place, of_mailing=of_mailing)


# An expression of which the planner believes that half of the rows meet it, whatever statistics say from before this
# status was common: so it takes them in the order of an index until there are enough, rather than read a table, or
# gather all messages of the mailing and sort.
_OF_STATUS = "CASE status WHEN :status THEN true ELSE false END"
_WAITS = f"CASE {STATUS} WHEN :status THEN true ELSE false END"
_EXISTS = "EXISTS (SELECT FROM mailing WHERE id = :mailing_id AND deleted_at IS NULL)"

# The client of the message with this id (or the next number), else that of the first message after it: some twenty
# probes of the unique key, as the ids of a mailing rise with those of its clients. (OFFSET 0: by the primary key,
# whatever the planner thinks.)
_POSITION = """
    coalesce(
        (
            SELECT client_id + {next}
            FROM (SELECT mailing_id, client_id FROM message WHERE id = :beyond OFFSET 0) AS this
            WHERE mailing_id = {mailing_id}
        ),
        (
            WITH RECURSIVE search (low, high) AS (
                SELECT min(client_id), max(client_id) + 1 FROM message WHERE mailing_id = {mailing_id}
                UNION ALL
                SELECT CASE WHEN probe.id > :beyond THEN low ELSE probe.client_id + 1 END,
                       CASE WHEN probe.id > :beyond THEN middle.client_id ELSE high END
                FROM search
                CROSS JOIN LATERAL (SELECT (low + high) / 2 AS client_id) AS middle
                CROSS JOIN LATERAL (
                    SELECT id, client_id FROM message
                    WHERE mailing_id = {mailing_id} AND client_id >= middle.client_id ORDER BY client_id LIMIT 1
                ) AS probe
                WHERE low < high
            )
            SELECT low FROM search WHERE low >= high
        )
    )
"""


class _Place(NamedTuple):
    """Where in the list, which goes by id: beyond the id that is given, if any, in this direction."""

    has_beginning: bool
    backwards: bool

    @property
    def beyond(self) -> str:
        """The condition on the id, to be added to others."""
        if not self.has_beginning:
            return ""
        return "AND id < :beyond" if self.backwards else "AND id > :beyond"

    def order_by(self, column: str) -> str:
        """Return the order of the list, by a column that rises with the ids."""
        return f"ORDER BY {column} {'DESC' if self.backwards else 'ASC'}"

    def walk(self, mailing_id: str, condition: str, limit: str = ":limit") -> str:
        """Return the first messages of a mailing from here on that meet a condition."""
        from_here = ""
        if self.has_beginning:
            position = _POSITION.format(mailing_id=mailing_id, next=0 if self.backwards else 1)
            from_here = f"AND client_id {'<' if self.backwards else '>='} {position}"
        return f"""
            SELECT id, client_id, {STATUS} AS status FROM message
            WHERE mailing_id = {mailing_id} AND {condition} {from_here}
            {self.order_by("client_id")} LIMIT {limit}
        """

    def walk_all(self, limit: str = ":limit") -> str:
        """Return the first messages of all mailings from here on."""
        return f"""
            SELECT id, {STATUS} AS status FROM message
            WHERE mailing_id NOT IN (SELECT id FROM mailing WHERE deleted_at IS NOT NULL) {self.beyond}
            {self.order_by("id")} LIMIT {limit}
        """


def _first_of_mailings(source: str, place: _Place, *, of_mailing: bool) -> str:
    """The first ids of every mailing that has any of the status (the counters tell), then the first of all these."""
    of_this = "AND mailing_id = :mailing_id" if of_mailing else ""
    return f"""
        WITH pair AS MATERIALIZED (
            SELECT mailing_id, sum(amount) FILTER (WHERE status = :status) AS amount, sum(amount) AS total
            FROM status_count JOIN mailing ON mailing.id = mailing_id
            WHERE deleted_at IS NULL {of_this}
            GROUP BY mailing_id HAVING sum(amount) FILTER (WHERE status = :status) > 0
        )
        SELECT first.id FROM pair CROSS JOIN LATERAL ({source}) AS first {place.order_by("first.id")} LIMIT :limit
    """


def _waiting_ids(place: _Place) -> str:
    """Few are read and sorted, all of them; many are come across on the way through the mailing."""
    # OFFSET 0 keeps the planner from walking all messages in the order of their ids instead.
    return f"""
        SELECT id FROM (
            SELECT id FROM message
            WHERE mailing_id = pair.mailing_id AND next_attempt_at IS NOT NULL AND 2 * pair.amount <= pair.total
              {place.beyond} OFFSET 0
        ) AS few
        UNION ALL
        SELECT id FROM (
            SELECT unnest(message_ids) AS id FROM planned_batch
            WHERE mailing_id = pair.mailing_id AND 2 * pair.amount <= pair.total
        ) AS planned WHERE true {place.beyond}
        UNION ALL
        SELECT id FROM (
            {place.walk("pair.mailing_id", f"{_WAITS} AND 2 * pair.amount > pair.total")}
        ) AS many
        {place.order_by("id")} LIMIT :limit
    """


def _ids_on_the_wire(place: _Place, *, of_mailing: bool) -> str:
    """The batches know them."""
    of_this = "AND mailing_id = :mailing_id" if of_mailing else ""
    return f"""
        SELECT id FROM message
        WHERE id = ANY(ARRAY(
            SELECT unnest(message_ids) FROM batch JOIN mailing ON mailing.id = mailing_id
            WHERE deleted_at IS NULL {of_this}
        )) AND status = :status {place.beyond} {place.order_by("id")} LIMIT :limit
    """


def _ids_of_client(given: frozenset[str], place: _Place) -> sa.Select[int]:
    """One probe of the unique key for each mailing, of which there are few beside the messages."""
    status: sa.Label[str] = sa.literal_column(STATUS).label("status")
    probes = sa.select(Message.id, status).where(
        Message.mailing_id == Mailing.id, Message.client_id == sa.bindparam("client_id")
    )
    if "reason" in given:
        probes = probes.where(Message.last_error == sa.bindparam("reason"))
    mailings = sa.select(Mailing.id.label("mailing_id")).where(Mailing.deleted_at.is_(None))
    if "mailing_id" in given:
        mailings = mailings.where(Mailing.id == sa.bindparam("mailing_id"))
    # OFFSET 0 keeps the planner from walking all messages in the order of their ids instead.
    probe = probes.offset(sa.literal_column("0")).lateral("probe")
    found = mailings.add_columns(probe.c.id, probe.c.status).join(probe, sa.true()).cte("found")
    ids = sa.select(found.c.id)
    if "status" in given:
        ids = ids.where(found.c.status == sa.bindparam("status"))
    if place.has_beginning:
        beyond: sa.BindParameter[int] = sa.bindparam("beyond")
        ids = ids.where(found.c.id < beyond if place.backwards else found.c.id > beyond)
    return ids.order_by(found.c.id.desc() if place.backwards else found.c.id).limit(sa.bindparam("limit"))
