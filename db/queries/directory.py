"""Clients as people look for them: by the beginning of a number, by tag, page by page and never counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import Client

_SEPARATORS = re.compile(r"[\s()\u2010-\u2015\u2212-]+")
_PREFIX = re.compile(r"\+?[0-9]{1,15}\Z")


class Filter(NamedTuple):
    """Which clients; None is any."""

    phone_prefix: str | None = None  # as `prefix_of` makes it
    tag: str | None = None
    opted_out: bool | None = None


def prefix_of(text: str) -> str | None:
    """The beginning of an E.164 number that people mean by `8 916`, `7916`, `916` or `+7 (916)`; None for no number."""
    number = _SEPARATORS.sub("", text)
    if not _PREFIX.match(number):
        return None
    if number.startswith("+"):
        return number
    if number[0] in "78":
        return f"+7{number[1:]}"
    return f"+7{number}"


def page(session: Session, wanted: Filter, beyond: int | None, limit: int, *, newer: bool = False) -> Sequence[Client]:
    """The next older clients than the one with this id, or the next newer ones; newest first either way."""
    statement = sa.select(Client).where(*_conditions(wanted))
    if beyond is not None:
        statement = statement.where(Client.id > beyond if newer else Client.id < beyond)
    found_clients = list(session.scalars(statement.order_by(Client.id if newer else Client.id.desc()).limit(limit)))
    return found_clients[::-1] if newer else found_clients


def by_phone(session: Session, wanted: Filter, after: str | None, limit: int) -> Sequence[Client]:
    """The next clients whose number begins so, in the order of their numbers."""
    statement = sa.select(Client).where(*_conditions(wanted))
    if after is not None:
        statement = statement.where(Client.phone > after)
    return session.scalars(statement.order_by(Client.phone).limit(limit)).all()


def all_after(session: Session, wanted: Filter, after: int, limit: int) -> Sequence[Client]:
    """The next clients in the order of their ids, for an export."""
    statement = sa.select(Client).where(*_conditions(wanted), Client.id > after)
    return session.scalars(statement.order_by(Client.id).limit(limit)).all()


def estimated_size(session: Session) -> int:
    """About how many clients there are, from PostgreSQL's own statistics; exact while there are few."""
    rows = session.scalar(sa.text("SELECT reltuples::bigint FROM pg_class WHERE oid = 'client'::regclass")) or 0
    if rows > 10_000:
        return int(rows)
    few = sa.select(Client.id).limit(20_000).subquery()
    return int(session.scalar(sa.select(sa.func.count()).select_from(few)) or 0)


def _conditions(wanted: Filter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.phone_prefix is not None:
        # A range, which any index of the column can be searched for; LIKE needs one of its own.
        conditions.append(Client.phone >= wanted.phone_prefix)
        if (following := _after_all_of(wanted.phone_prefix)) is not None:
            conditions.append(Client.phone < following)
    if wanted.tag is not None:
        conditions.append(Client.tags.contains([wanted.tag]))
    if wanted.opted_out is not None:
        absent = Client.opted_out_at.is_(None)
        conditions.append(sa.not_(absent) if wanted.opted_out else absent)
    return conditions


def _after_all_of(prefix: str) -> str | None:
    """The first prefix behind all numbers that begin with this one; None when there is none."""
    digits = prefix[1:].rstrip("9")
    return f"+{digits[:-1]}{int(digits[-1]) + 1}" if digits else None
