"""Messages as people look at them: pages by key, one with its history."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.models import Attempt, Client, Mailing, Message, MessageStatus, StatusCount
from db.refusals import MissingError

# A row of `message`, with the phone of its client (None when the client is gone).
MessageRow = sa.Row[*tuple[Any, ...]]


_Column = sa.ColumnElement[int] | InstrumentedAttribute[int]


class Filter(NamedTuple):
    """Which messages; None is any."""

    mailing_id: int | None = None
    client_id: int | None = None
    status: MessageStatus | None = None
    reason: str | None = None  # of a failure: messages that failed for it


_COLUMNS = (
    Message.id,
    Message.mailing_id,
    Message.client_id,
    Client.phone,
    Message.status,
    Message.attempts,
    Message.created_at,
    Message.next_attempt_at,
    Message.sent_at,
    Message.last_error,
)
_GET = (
    sa.select(*_COLUMNS)
    .join(Mailing, Mailing.id == Message.mailing_id)
    .join(Client, Client.id == Message.client_id, isouter=True)
    .where(Message.id == sa.bindparam("message_id"), Mailing.deleted_at.is_(None))
)
_HISTORY = sa.select(Attempt).where(Attempt.message_id == sa.bindparam("message_id")).order_by(Attempt.id)


def page(
    session: Session, wanted: Filter, after: int | None, limit: int, *, backwards: bool = False
) -> Sequence[MessageRow]:
    """The next messages after this id, in the order of their ids, or before it, in the opposite one.

    Costs the same wherever in the list.
    """
    if wanted.reason is not None:
        wanted = wanted._replace(status=MessageStatus.FAILED)
    values = {**wanted._asdict(), "beyond": after, "limit": limit}
    given = frozenset(name for name, value in values.items() if value is not None)
    return session.execute(_page_statement(given, backwards=backwards), values).all()


def get(session: Session, message_id: int) -> tuple[MessageRow, Sequence[Attempt]]:
    """One message and its attempts, oldest first; raise MissingError."""
    row = session.execute(_GET, {"message_id": message_id}).one_or_none()
    if row is None:
        raise MissingError("no such message")
    return row, session.scalars(_HISTORY, {"message_id": message_id}).all()


# Built once for every combination of filters: building takes longer than running.
@functools.cache
def _page_statement(given: frozenset[str], *, backwards: bool) -> sa.Select[*tuple[Any, ...]]:
    place = _Place("beyond" in given, backwards)
    if "client_id" in given:
        ids = _ids_of_client(given, place)
    elif given & {"mailing_id", "status"}:
        ids = _ids_by_mailing_and_status(given, place)
    else:
        ids = _ids_of_all(place)
    # Materialised, so that the planner finds the ids first and then one row for each.
    found = ids.cte("page").prefix_with("MATERIALIZED")
    return (
        sa.select(*_COLUMNS)
        .select_from(found)
        .join(Message, Message.id == found.c.id)
        .join(Client, Client.id == Message.client_id, isouter=True)
        .order_by(Message.id.desc() if backwards else Message.id)
    )


class _Place(NamedTuple):
    """Where in the list, which goes by id: beyond the id that is given, if any, in this direction."""

    has_beginning: bool
    backwards: bool

    def select(self, ids: sa.Select[int], column: _Column) -> sa.Select[int]:
        """Return the first of these ids from here on."""
        if self.has_beginning:
            beyond: sa.BindParameter[int] = sa.bindparam("beyond")
            ids = ids.where(column < beyond if self.backwards else column > beyond)
        return ids.order_by(column.desc() if self.backwards else column).limit(sa.bindparam("limit"))


def _ids_of_client(given: frozenset[str], place: _Place) -> sa.Select[int]:
    """One probe of the unique key for each mailing, of which there are few beside the messages."""
    probes = sa.select(Message.id, Message.status).where(
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
    return place.select(ids, found.c.id)


def _ids_by_mailing_and_status(given: frozenset[str], place: _Place) -> sa.Select[int]:
    """The first ids of every (mailing, status) that has any, each from the index made for it, then the first of all.

    The counters tell where there are any, so that a rare status is found without walking a table of millions.
    """
    pairs = (
        sa.select(StatusCount.mailing_id, StatusCount.status)
        .join(Mailing, Mailing.id == StatusCount.mailing_id)
        .where(Mailing.deleted_at.is_(None))
        .group_by(StatusCount.mailing_id, StatusCount.status)
        .having(sa.func.sum(StatusCount.amount) > 0)
    )
    if "mailing_id" in given:
        pairs = pairs.where(StatusCount.mailing_id == sa.bindparam("mailing_id"))
    if "status" in given:
        pairs = pairs.where(StatusCount.status == sa.bindparam("status"))
    pair = pairs.cte("pair")
    of_pair = sa.select(Message.id).where(Message.mailing_id == pair.c.mailing_id, Message.status == pair.c.status)
    if "reason" in given:
        # The status once more, as a constant: only so does the planner see that the index of reasons fits.
        of_pair = of_pair.where(
            Message.last_error == sa.bindparam("reason"),
            Message.status == sa.literal_column(f"'{MessageStatus.FAILED}'"),
        )
    first = place.select(of_pair, Message.id).lateral("first")
    of_all_pairs = sa.select(first.c.id).select_from(pair.join(first, sa.true()))
    return _Place(has_beginning=False, backwards=place.backwards).select(of_all_pairs, first.c.id)


def _ids_of_all(place: _Place) -> sa.Select[int]:
    deleted = sa.select(Mailing.id).where(Mailing.deleted_at.is_not(None))
    return place.select(sa.select(Message.id).where(Message.mailing_id.not_in(deleted)), Message.id)
