"""Who did what: written with the change, by whichever door, and gone with a change that failed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.models import AuditEntry, MailingState, Role
from db.queries import audit, clients, mailings, users
from db.refusals import ConflictError
from tests.factories import make_client, make_mailing
from tests.integration.conftest import Api

NOW = datetime.now(UTC)


@pytest.fixture
def session(emptied_engine: sa.Engine) -> Iterator[Session]:
    """A session on the shared database."""
    with Session(emptied_engine, expire_on_commit=False) as opened:
        yield opened


def entries(session: Session) -> list[tuple[str, str, str | None]]:
    """Actor, action and subject, oldest first."""
    rows = session.scalars(sa.select(AuditEntry).order_by(AuditEntry.id))
    return [(row.actor, row.action, row.subject) for row in rows]


def test_changes_over_the_api_are_written_down_with_the_key(api: Api, api_session: Session) -> None:
    api_session.execute(sa.delete(AuditEntry))
    api_session.commit()
    client = api.post("/client/", {"phone": "+79161234567"}).get_json()
    ends_at = (NOW + timedelta(hours=1)).isoformat()
    mailing = api.post("/mailing/", {"name": "Sale", "text": "Hi", "ends_at": ends_at, "state": "draft"}).get_json()
    api.patch(f"/mailing/{mailing['id']}/", {"text": "Hello"})
    api.post(f"/mailing/{mailing['id']}/cancel/")
    assert api.post(f"/mailing/{mailing['id']}/pause/").status_code == 409
    api.delete(f"/client/{client['id']}/")
    found = entries(api_session)
    assert [(action, subject) for _, action, subject in found] == [
        ("client.create", f"client:{client['id']}"),
        ("mailing.create", f"mailing:{mailing['id']}"),
        ("mailing.change", f"mailing:{mailing['id']}"),
        ("mailing.cancel", f"mailing:{mailing['id']}"),
        ("client.delete", f"client:{client['id']}"),
    ]
    assert {actor.partition(" ")[2] for actor, _, _ in found} == {"full"}
    cancel = api_session.scalars(sa.select(AuditEntry).where(AuditEntry.action == "mailing.cancel")).one()
    assert (cancel.before, cancel.after) == ({"state": "draft"}, {"state": "cancelled"})
    change = api_session.scalars(sa.select(AuditEntry).where(AuditEntry.action == "mailing.change")).one()
    assert (change.before, change.after, change.address) == ({"text": "Hi"}, {"text": "Hello"}, "127.0.0.1")


def test_erased_client_leaves_no_number_in_the_log(session: Session) -> None:
    client = clients.create(
        session, {"phone": "+79161234567", "timezone": "Europe/Moscow", "tags": [], "attributes": {}}, NOW
    )
    clients.edit(session, client.id, {"phone": "+79167654321"}, NOW)
    clients.delete(session, client.id)
    session.commit()
    text = str(session.execute(sa.text("SELECT json_agg(audit_entry) FROM audit_entry")).scalar())
    assert "client.delete" in text
    assert "7654321" not in text
    assert "1234567" not in text


def test_change_that_is_rolled_back_leaves_no_entry(session: Session) -> None:
    mailing = make_mailing(session, state=MailingState.RUNNING)
    mailings.control(session, mailing.id, "pause", NOW)
    session.rollback()
    assert entries(session) == []


def test_edit_that_changes_nothing_leaves_no_entry(session: Session) -> None:
    client = make_client(session)
    clients.edit(session, client.id, {"phone": client.phone, "tags": []}, NOW)
    mailing = make_mailing(session)
    mailings.edit(session, mailing.id, {"name": mailing.name}, NOW)
    session.commit()
    assert entries(session) == []


def test_entries_are_paged_newest_first_and_found_by_actor_and_subject(session: Session) -> None:
    for number in range(5):
        audit.act_as(session, f"user:{number % 2} someone", "192.0.2.1")
        audit.record(session, "mailing.pause", f"mailing:{number}")
    first = audit.page(session, audit.Filter(), None, 2)
    second = audit.page(session, audit.Filter(), first[-1].id, 2)
    assert [entry.subject for entry in (*first, *second)] == ["mailing:4", "mailing:3", "mailing:2", "mailing:1"]
    assert len(audit.page(session, audit.Filter(actor="user:1 someone"), None, 10)) == 2
    assert len(audit.page(session, audit.Filter(subject="mailing:3", action="mailing.pause"), None, 10)) == 1
    assert audit.page(session, audit.Filter(action="mailing.start"), None, 10) == []


def test_two_admins_cannot_demote_each_other(session: Session, emptied_engine: sa.Engine) -> None:
    one = users.create(session, "one@example.com", "correct horse", Role.ADMIN)
    other = users.create(session, "other@example.com", "correct horse", Role.ADMIN)
    session.commit()
    users.change(session, one.id, NOW, role=Role.VIEWER, is_disabled=False)
    with Session(emptied_engine) as rival:
        rival.execute(sa.text("SET lock_timeout = '300ms'"))
        with pytest.raises(sa.exc.OperationalError):  # It waits for the first to be over ...
            users.change(rival, other.id, NOW, role=Role.VIEWER, is_disabled=False)
    session.commit()
    with Session(emptied_engine) as rival, pytest.raises(ConflictError):  # ... and is then refused.
        users.change(rival, other.id, NOW, role=Role.VIEWER, is_disabled=False)
