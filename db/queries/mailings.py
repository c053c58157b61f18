"""Mailings: made, edited, held and ended by people. What the dispatcher does with them is in `audience`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from db import placeholders
from db.engine import Database
from db.models import Base, Client, Mailing, MailingState, Message, MessageStatus
from db.queries import audit
from db.queries.notifications import notified_of_work, notify_work
from db.queries.statements import rowcount
from db.refusals import ConflictError, InvalidError, MissingError

_ENDED = (MailingState.COMPLETED, MailingState.CANCELLED)
_BEFORE_START = (MailingState.DRAFT, MailingState.SCHEDULED, MailingState.PAUSED)
_ALWAYS_EDITABLE = frozenset({"name"})
_EDITABLE_AFTER_START = frozenset({"name", "ends_at", "window_from", "window_to"})
# The names that people know a column by.
_FIELDS = {"operator_codes": "filter", "tags": "filter", "window_from": "send_window", "window_to": "send_window"}

# What can be done with a mailing in which state.
ACTIONS: Mapping[str, tuple[MailingState, ...]] = {
    "start": (MailingState.DRAFT,),
    "pause": (MailingState.SCHEDULED, MailingState.RUNNING),
    "resume": (MailingState.PAUSED,),
    "retry-failed": (MailingState.RUNNING, MailingState.PAUSED, MailingState.COMPLETED),
    "cancel": (MailingState.DRAFT, MailingState.SCHEDULED, MailingState.RUNNING, MailingState.PAUSED),
}
_PARTICIPLES = {"start": "started", "pause": "paused", "resume": "resumed", "cancel": "cancelled"}

# A row of `mailing` as it was read, for those who change nothing: an object of the session costs more.
MailingRow = sa.Row[*tuple[Any, ...]]

# Built once: SQLAlchemy takes longer to build a statement than PostgreSQL to run it.
_TABLE = Base.metadata.tables[Mailing.__tablename__]
_COLUMNS = (
    *("name", "text", "starts_at", "ends_at", "operator_codes", "tags", "window_from", "window_to", "state"),
    *("created_at", "updated_at", "idempotency_key", "idempotency_digest"),
)
_ADD = audit.adding(_TABLE, _COLUMNS, _TABLE.c.idempotency_key, notified_of_work())
# To everyone, at any time.
_ANYONE: Mapping[str, Any] = {"operator_codes": [], "tags": [], "window_from": None, "window_to": None}
_GET_ROW = sa.select(_TABLE).where(_TABLE.c.id == sa.bindparam("mailing_id"), _TABLE.c.deleted_at.is_(None))
_GET = sa.select(Mailing).where(Mailing.id == sa.bindparam("mailing_id"), Mailing.deleted_at.is_(None))


def create(
    session: Session,
    values: Mapping[str, Any],
    now: datetime,
    idempotency_key: str | None = None,
    digest: str | None = None,
) -> tuple[MailingRow | Mailing, bool]:
    """Add a mailing, and whether it is new: the same key and digest give the mailing made first.

    Raise InvalidError for times that make no sense or a text that cannot be filled in, ConflictError for a key that was
    used for something else.
    """
    if idempotency_key is not None and (first := _made_before(session, idempotency_key, digest)):
        return first, False
    values = {"starts_at": now, "state": MailingState.SCHEDULED, **values}
    placeholders.check(values["text"])
    _check_times(values["starts_at"], values["ends_at"], now)
    row = {**_ANYONE, **values, "created_at": now, "updated_at": now}
    row |= {"idempotency_key": idempotency_key, "idempotency_digest": digest, **audit.entry_parameters(session, values)}
    mailing = session.execute(_ADD, row).one_or_none()
    if mailing is None:  # Somebody else was faster with the same key, and has committed: the insert waited for that.
        return create(session, values, now, idempotency_key, digest)
    return mailing, True


def _made_before(session: Session, idempotency_key: str, digest: str | None) -> Mailing | None:
    mailing = session.scalar(sa.select(Mailing).where(Mailing.idempotency_key == idempotency_key))
    if mailing is None:
        return None
    if mailing.idempotency_digest != digest:
        raise ConflictError("this Idempotency-Key was used with another body", field="Idempotency-Key")
    if mailing.deleted_at is not None:
        raise ConflictError("the mailing made with this Idempotency-Key was deleted", field="Idempotency-Key")
    return mailing


def get(session: Session, mailing_id: int) -> Mailing:
    """One mailing that is not deleted; raise MissingError."""
    mailing: Mailing | None = session.scalar(_GET, {"mailing_id": mailing_id})
    if mailing is None:
        raise MissingError("no such mailing")
    return mailing


def lock(session: Session, mailing_id: int, *, against_completion: bool = False) -> Mailing:
    """The same, as it is and stays until the transaction ends; raise MissingError.

    `against_completion`: it may be changed meanwhile, but not completed.
    """
    # FOR KEY SHARE keeps out nobody but FOR UPDATE: `audience.complete`, and the removal of a deleted mailing.
    locked = _GET.with_for_update(read=against_completion, key_share=True)
    # What the session has read before may be out of date by the time the lock is had.
    mailing: Mailing | None = session.scalar(
        locked.execution_options(populate_existing=True), {"mailing_id": mailing_id}
    )
    if mailing is None:
        raise MissingError("no such mailing")
    return mailing


def get_row(database: Database, mailing_id: int) -> MailingRow:
    """The same as `get` for those who change nothing, as a row."""
    row = database.execute(_GET_ROW, {"mailing_id": mailing_id}).one_or_none()
    if row is None:
        raise MissingError("no such mailing")
    return row


def page(database: Database, state: MailingState | None, offset: int, limit: int) -> tuple[Sequence[MailingRow], int]:
    """A page in the order of creation, and how many mailings there are in this state."""
    counting, listing = _page_statements(of_one_state=state is not None)
    total = database.scalar(counting, {"state": state}) or 0
    rows = database.execute(listing, {"state": state, "offset": offset, "limit": limit})
    return rows.all(), total


@functools.cache
def _page_statements(*, of_one_state: bool) -> tuple[sa.Select[int], sa.Select[*tuple[Any, ...]]]:
    conditions: list[sa.ColumnElement[bool]] = [_TABLE.c.deleted_at.is_(None)]
    if of_one_state:
        conditions.append(_TABLE.c.state == sa.bindparam("state"))
    counting = sa.select(sa.func.count()).select_from(_TABLE).where(*conditions)
    listing = sa.select(_TABLE).where(*conditions).order_by(_TABLE.c.id)
    return counting, listing.offset(sa.bindparam("offset")).limit(sa.bindparam("limit"))


class Filter(NamedTuple):
    """Which mailings; None is any. Tests are listed only when asked for."""

    state: MailingState | None = None
    starts_from: datetime | None = None
    starts_before: datetime | None = None
    is_test: bool = False


def latest(session: Session, wanted: Filter, beyond: int | None, limit: int, *, newer: bool = False) -> list[Mailing]:
    """The next older mailings than the one with this id, or the next newer ones; newest first either way."""
    statement = sa.select(Mailing).where(Mailing.deleted_at.is_(None), Mailing.is_test == wanted.is_test)
    if wanted.state is not None:
        statement = statement.where(Mailing.state == wanted.state)
    if wanted.starts_from is not None:
        statement = statement.where(Mailing.starts_at >= wanted.starts_from)
    if wanted.starts_before is not None:
        statement = statement.where(Mailing.starts_at < wanted.starts_before)
    if beyond is not None:
        statement = statement.where(Mailing.id > beyond if newer else Mailing.id < beyond)
    found = list(session.scalars(statement.order_by(Mailing.id if newer else Mailing.id.desc()).limit(limit)))
    return found[::-1] if newer else found


def names(session: Session, mailing_ids: Iterable[int]) -> dict[int, str]:
    """What these mailings are called."""
    statement = sa.select(Mailing.id, Mailing.name).where(Mailing.id.in_(list(mailing_ids)))
    return {row.id: row.name for row in session.execute(statement)}


def edit(session: Session, mailing_id: int, changes: Mapping[str, Any], now: datetime) -> Mailing:
    """Change these columns; raise MissingError, ConflictError (too late for it) or InvalidError."""
    mailing = lock(session, mailing_id)
    changed = {name: value for name, value in changes.items() if getattr(mailing, name) != value}
    if not changed:
        return mailing
    _check_editable(mailing, changed, now)
    if changed.keys() & {"starts_at", "ends_at"}:
        _check_times(changed.get("starts_at", mailing.starts_at), changed.get("ends_at", mailing.ends_at), now)
    if "text" in changed:
        placeholders.check(changed["text"])
    audit.record(session, "mailing.change", _subject(mailing_id), *audit.changes(mailing, changed))
    for name, value in changed.items():
        setattr(mailing, name, value)
    if mailing.started_at is not None and changed.keys() & {"window_from", "window_to"}:
        mailing.rescheduled_through = 0  # The dispatcher sets the waiting messages' times anew.
    mailing.updated_at = now
    session.flush()
    notify_work(session)
    return mailing


def control(session: Session, mailing_id: int, action: str, now: datetime) -> Mailing:
    """`start`, `pause`, `resume` or `cancel`; raise MissingError, or ConflictError with the reason."""
    expected = ACTIONS[action]
    conditions = [Mailing.id == mailing_id, Mailing.deleted_at.is_(None), Mailing.state.in_(expected)]
    if action == "start":
        conditions.append(Mailing.ends_at > now)
    # Locked for the audit log's sake, which wants to know the state before; the update is guarded by itself.
    was = session.scalar(sa.select(Mailing.state).where(Mailing.id == mailing_id).with_for_update(key_share=True))
    mailing: Mailing | None = session.scalar(
        sa.update(Mailing).where(*conditions).values(**_effect(action, now), updated_at=now).returning(Mailing)
    )
    if mailing is not None:
        audit.record(session, f"mailing.{action}", _subject(mailing_id), {"state": was}, {"state": mailing.state})
        notify_work(session)
        return mailing
    found = get(session, mailing_id)
    if found.state in expected:
        raise ConflictError("its end time has passed: it cannot be started", field="ends_at")
    raise ConflictError(f"a {found.state} mailing cannot be {_PARTICIPLES[action]}", field="state")


def _effect(action: str, now: datetime) -> dict[str, Any]:
    if action == "start":
        return {"state": MailingState.SCHEDULED}
    if action == "pause":
        return {"state": MailingState.PAUSED}
    if action == "cancel":
        return {"state": MailingState.CANCELLED, "finished_at": now}
    never_started = Mailing.started_at.is_(None)
    return {"state": sa.case((never_started, MailingState.SCHEDULED), else_=MailingState.RUNNING)}


def delete(session: Session, mailing_id: int, now: datetime) -> None:
    """Hide the mailing from everyone and end it; the dispatcher removes its rows. Raise MissingError."""
    ended = Mailing.state.in_(_ENDED)
    statement = (
        sa.update(Mailing)
        .where(Mailing.id == mailing_id, Mailing.deleted_at.is_(None))
        .values(
            deleted_at=now,
            updated_at=now,
            state=sa.case((ended, Mailing.state), else_=MailingState.CANCELLED),
            finished_at=sa.func.coalesce(Mailing.finished_at, now),
        )
        .returning(Mailing.name)
        .execution_options(synchronize_session=False)
    )
    name = session.execute(statement).scalar()
    if name is None:
        raise MissingError("no such mailing")
    audit.record(session, "mailing.delete", _subject(mailing_id), before={"name": name})
    notify_work(session)


def retry_failed(
    session: Session, mailing_id: int, reasons: Sequence[str] | None, now: datetime
) -> tuple[Mailing, int]:
    """Put failed messages (of these reasons) back to pending with all their attempts; the mailing, and how many.

    Clients who are gone or opted out stay failed. Raise MissingError, or ConflictError when the mailing has ended, also
    when that is meanwhile: the transaction is then to be rolled back.
    """
    mailing = lock(session, mailing_id, against_completion=True)
    _check_retriable(mailing, now)
    # A million messages take longer than any other request may; meanwhile people can hold or end the mailing.
    session.execute(sa.text("SET LOCAL statement_timeout = '300s'"))
    reachable = sa.exists().where(Client.id == Message.client_id, Client.opted_out_at.is_(None))
    failed = (Message.status == MessageStatus.FAILED, Message.last_error.is_not(None))
    conditions = [Message.mailing_id == mailing_id, *failed, reachable]
    if reasons is not None:
        conditions.append(Message.last_error.in_(reasons))
    retried = rowcount(
        session.execute(
            sa.update(Message)
            .where(*conditions)
            .values(status=MessageStatus.PENDING, next_attempt_at=now, attempts=0)
            .execution_options(synchronize_session=False)
        )
    )
    if retried:
        mailing = lock(session, mailing_id)
        _check_retriable(mailing, now)
        details = {"retried": retried, **({"reasons": list(reasons)} if reasons else {})}
        audit.record(session, "mailing.retry_failed", _subject(mailing_id), after=details)
        if mailing.state is MailingState.COMPLETED:
            mailing.state, mailing.finished_at = MailingState.RUNNING, None
        if mailing.window_from is not None:
            mailing.rescheduled_through = 0  # `now` may be outside the clients' windows.
        mailing.updated_at = now
        session.flush()
        notify_work(session)
    return mailing, retried


def _check_retriable(mailing: Mailing, now: datetime) -> None:
    if mailing.state not in ACTIONS["retry-failed"]:
        raise ConflictError(f"a {mailing.state} mailing has nothing to retry", field="state")
    if mailing.ends_at <= now:
        raise ConflictError("its end time has passed: nothing can be sent any more", field="ends_at")


def _subject(mailing_id: int) -> str:
    return f"mailing:{mailing_id}"


def _check_editable(mailing: Mailing, changed: Mapping[str, Any], now: datetime) -> None:
    if "state" in changed:
        raise ConflictError("the state is changed by start, pause, resume and cancel", field="state")
    if mailing.state in _ENDED:
        refused, when = changed.keys() - _ALWAYS_EDITABLE, f"in a {mailing.state} mailing"
    elif mailing.ends_at <= now and mailing.state is not MailingState.DRAFT:
        # Not completed yet: the last calls are still on the wire, and the rest is being expired.
        refused, when = changed.keys() - _ALWAYS_EDITABLE, "after the end of a mailing"
    elif mailing.started_at is not None or mailing.state not in _BEFORE_START:
        refused, when = changed.keys() - _EDITABLE_AFTER_START, "after the start of a mailing"
    else:
        return
    if refused:
        field = min(_FIELDS.get(name, name) for name in refused)
        raise ConflictError(f"{field} cannot be changed {when}", field=field)


def _check_times(starts_at: datetime, ends_at: datetime, now: datetime) -> None:
    if ends_at <= starts_at:
        raise InvalidError("must be after starts_at", field="ends_at")
    if ends_at <= now:
        raise InvalidError("must be in the future", field="ends_at")
