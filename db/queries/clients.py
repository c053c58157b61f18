"""The directory of clients. A client who goes, or opts out, takes the waiting messages along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db import phones
from db.engine import Database
from db.models import ACTIVE_STATES, Base, Client, Mailing, Message, MessageStatus
from db.queries import audience, audit, planned
from db.queries.notifications import notify_withdrawn
from db.refusals import ConflictError, InvalidError, MissingError

CLIENT_DELETED = "client_deleted"
OPTED_OUT = "opted_out"
_PHONE_TAKEN = "a client with this phone exists already"

# A row of `client` as it was read, for those who change nothing: an object of the session costs more.
ClientRow = sa.Row[*tuple[Any, ...]]

# Built once: SQLAlchemy takes longer to build a statement than PostgreSQL to run it.
_TABLE = Base.metadata.tables[Client.__tablename__]
_COLUMNS = ("phone", "operator_code", "tags", "timezone", "attributes", "opted_out_at", "created_at", "updated_at")
_ADD = audit.adding(_TABLE, _COLUMNS, _TABLE.c.phone)
_GET = sa.select(_TABLE).where(_TABLE.c.id == sa.bindparam("client_id"))


def create(session: Session, values: Mapping[str, Any], now: datetime) -> ClientRow:
    """Add a client; raise ConflictError when the phone is known, InvalidError when it tells no operator code."""
    row = {"opted_out_at": None, **values, "operator_code": _operator_code(values)}
    row |= {"created_at": now, "updated_at": now, **audit.entry_parameters(session, values)}
    client = session.execute(_ADD, row).one_or_none()
    if client is None:
        raise ConflictError(_PHONE_TAKEN, field="phone")
    return client


def get(database: Database, client_id: int) -> ClientRow:
    """One client; raise MissingError."""
    client = database.execute(_GET, {"client_id": client_id}).one_or_none()
    if client is None:
        raise MissingError("no such client")
    return client


def lock(session: Session, client_id: int) -> Client:
    """The same, as it is now and stays until the transaction ends; raise MissingError."""
    client = session.get(Client, client_id, with_for_update=True, populate_existing=True)
    if client is None:
        raise MissingError("no such client")
    return client


def page(
    database: Database, phone: str | None, operator_code: str | None, tag: str | None, offset: int, limit: int
) -> tuple[Sequence[ClientRow], int]:
    """A page in the order of creation, and how many clients there are with these marks."""
    conditions: list[sa.ColumnElement[bool]] = []
    if phone is not None:
        conditions.append(_TABLE.c.phone == phone)
    if operator_code is not None:
        conditions.append(_TABLE.c.operator_code == operator_code)
    if tag is not None:
        conditions.append(_TABLE.c.tags.contains([tag]))
    total = database.scalar(sa.select(sa.func.count()).select_from(_TABLE).where(*conditions)) or 0
    if offset >= total:
        return [], total
    rows = database.execute(sa.select(_TABLE).where(*conditions).order_by(_TABLE.c.id).offset(offset).limit(limit))
    return rows.all(), total


def edit(session: Session, client_id: int, changes: Mapping[str, Any], now: datetime) -> Client:
    """Change these columns; raise MissingError, ConflictError (phone taken) or InvalidError (no operator code)."""
    client = lock(session, client_id)
    opts_out = client.opted_out_at is None and changes.get("opted_out_at") is not None
    changes = _with_operator_code(client, changes)
    was, will_be = audit.changes(client, changes)
    for name, value in changes.items():
        setattr(client, name, value)
    if session.is_modified(client):
        client.updated_at = now
    try:
        session.flush()
    except IntegrityError as error:
        raise ConflictError(_PHONE_TAKEN, field="phone") from error
    if opts_out:
        _withdraw(session, client_id, OPTED_OUT)
    if "timezone" in will_be:
        audience.reschedule_clients(session, [client_id])
    if will_be:
        audit.record(session, "client.change", _subject(client_id), was, will_be)
    return client


def delete(session: Session, client_id: int) -> None:
    """Erase the person; raise MissingError. Messages stay, as numbers in statistics, without the phone."""
    if session.execute(sa.delete(Client).where(Client.id == client_id).returning(Client.id)).scalar() is None:
        raise MissingError("no such client")
    _withdraw(session, client_id, CLIENT_DELETED)
    audit.forget(session, _subject(client_id))
    audit.record(session, "client.delete", _subject(client_id))


def _subject(client_id: int) -> str:
    return f"client:{client_id}"


def _withdraw(session: Session, client_id: int, reason: str) -> None:
    """Cancel what waits for this client, and tell the workers, who may hold some of it in their hands."""
    active = session.scalars(sa.select(Mailing.id).where(Mailing.state.in_(ACTIVE_STATES))).all()
    # The mailings are named one by one so that the unique key is probed, and locked in order so that two withdrawals
    # never wait for each other in a circle.
    open_ones = sa.select(Message.id).where(Message.mailing_id.in_(active), Message.client_id == client_id)
    held = session.scalars(open_ones.where(Message.status == MessageStatus.SENDING)).all()
    taken_out = planned.take_out(session, held)
    waits = sa.or_(Message.status == MessageStatus.PENDING, Message.id.in_(taken_out))
    waiting = session.scalars(open_ones.where(waits).order_by(Message.id).with_for_update()).all()
    if waiting:
        session.execute(
            sa.update(Message)
            .where(Message.id.in_(waiting))
            .values(status=MessageStatus.CANCELLED, batch_id=None, next_attempt_at=None, last_error=reason)
            .execution_options(synchronize_session=False)
        )
    notify_withdrawn(session, client_id)


def _operator_code(values: Mapping[str, Any]) -> str:
    code = values.get("operator_code") or phones.operator_code_of(values["phone"])
    if code is None:
        raise InvalidError("required for a number outside +7", field="operator_code")
    return str(code)


def _with_operator_code(client: Client, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A new number brings its own operator code unless one is given, or the old one was set by hand."""
    if "phone" not in changes or changes.get("operator_code"):
        return {name: value for name, value in changes.items() if name != "operator_code" or value}
    kept = client.operator_code if client.operator_code != phones.operator_code_of(client.phone) else None
    by_hand = None if "operator_code" in changes else kept
    return {**changes, "operator_code": by_hand or _operator_code({"phone": changes["phone"]})}
