"""The audit log: every change by a person or a program is written down in the transaction that makes it.

Whoever opens the session says who acts (`act_as`); the functions that change something call `record`. So an entry
cannot be forgotten by one of two front ends, and cannot outlive a change that was rolled back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, time
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from db.models import AuditEntry, Base

_ACTOR, _ADDRESS = "audit_actor", "audit_address"
SYSTEM = "system"


# Built once: every change writes an entry, and building the statement takes longer than running it. Of no values at all
# there is NULL, not the JSON value null.
_TABLE = Base.metadata.tables[AuditEntry.__tablename__]
_VALUES = JSONB(none_as_null=True)
_ENTRY = (
    sa.insert(_TABLE)
    .inline()
    .values(
        actor=sa.bindparam("actor"),
        address=sa.bindparam("address"),
        action=sa.bindparam("action"),
        subject=sa.bindparam("subject"),
        before=sa.bindparam("before", type_=_VALUES),
        after=sa.bindparam("after", type_=_VALUES),
    )
)


class Filter(NamedTuple):
    """Which entries; None is any."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None


def act_as(session: Session, actor: str, address: str | None) -> None:
    """Say who is behind all that this session does, e.g. `user:1 anna@example.com`."""
    session.info[_ACTOR], session.info[_ADDRESS] = actor, address


def record(
    session: Session,
    action: str,
    subject: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write an entry, with the values that changed."""
    session.execute(
        _ENTRY,
        {
            "actor": session.info.get(_ACTOR, SYSTEM),
            "address": session.info.get(_ADDRESS),
            "action": action,
            "subject": subject,
            "before": _plain(before),
            "after": _plain(after),
        },
    )


def adding(
    table: sa.Table, columns: Iterable[str], key: sa.Column[Any], *more: sa.ColumnElement[Any]
) -> sa.Select[*tuple[Any, ...]]:
    """A statement that adds a row with `<table>.create` in the log, and gives it, and more: a round trip saved.

    It takes these columns as parameters, and those of `entry_parameters`. Where the key is taken it does nothing.
    """
    added = (
        insert(table)
        .values({name: sa.bindparam(name) for name in columns})
        .on_conflict_do_nothing(index_elements=[key])
        .returning(*table.c)
        .cte("added")
    )
    values: dict[str, sa.ColumnElement[Any]] = {
        "actor": sa.bindparam("entry_actor", type_=sa.Text()),
        "address": sa.bindparam("entry_address", type_=sa.Text()),
        "action": sa.literal_column(f"'{table.name}.create'", sa.Text()),
        "subject": sa.literal_column(f"'{table.name}:'", sa.Text()).concat(added.c.id),
        "after": sa.bindparam("entry_after", type_=_VALUES),
    }
    entry = sa.insert(_TABLE).from_select(list(values), sa.select(*values.values()).select_from(added)).cte("entry")
    return sa.select(*added.c, *more).add_cte(entry)


def entry_parameters(session: Session, after: Mapping[str, Any]) -> dict[str, Any]:
    """Who acts, and the values of the new row."""
    return {
        "entry_actor": session.info.get(_ACTOR, SYSTEM),
        "entry_address": session.info.get(_ADDRESS),
        "entry_after": _plain(after),
    }


def forget(session: Session, subject: str) -> None:
    """Drop the values, but not the fact, of all entries about a person who was erased."""
    session.execute(
        sa.update(AuditEntry)
        .where(AuditEntry.subject == subject, sa.or_(AuditEntry.before.is_not(None), AuditEntry.after.is_not(None)))
        .values(before=sa.null(), after=sa.null())
        .execution_options(synchronize_session=False)
    )


def changes(row: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the values a row is about to get, the ones that differ: as they are, and as they will be."""
    before = {name: getattr(row, name) for name, value in values.items() if getattr(row, name) != value}
    return before, {name: values[name] for name in before}


def page(session: Session, wanted: Filter, before: int | None, limit: int) -> Sequence[AuditEntry]:
    """The newest entries below this id, newest first."""
    statement = sa.select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    for column, value in (
        (AuditEntry.actor, wanted.actor),
        (AuditEntry.action, wanted.action),
        (AuditEntry.subject, wanted.subject),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if before is not None:
        statement = statement.where(AuditEntry.id < before)
    return session.scalars(statement).all()


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if values is None else {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime | time) else value
