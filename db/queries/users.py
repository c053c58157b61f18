"""The people who log in to the admin UI."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import passwords
from db.models import LoginAttempt, Role, UserAccount
from db.queries import audit
from db.refusals import ConflictError, InvalidError, MissingError

# Failed log-ins within this time count; so many close the account, or the address, until the first of them is older.
THROTTLE_WINDOW = timedelta(minutes=15)
ACCOUNT_ATTEMPTS = 10
ADDRESS_ATTEMPTS = 30


def normalise_email(email: str) -> str:
    """The one spelling in which addresses are kept; raise InvalidError for what cannot be one."""
    email = email.strip().lower()
    name, at, domain = email.rpartition("@")
    if not (at and name and domain) or len(email) > 254 or any(c.isspace() or ord(c) < 32 for c in email):
        raise InvalidError("is not an e-mail address", field="email")
    return email


def check_password(password: str) -> None:
    """Raise InvalidError for a password that is too short to be safe, or absurdly long."""
    if len(password) < passwords.SHORTEST:
        raise InvalidError(f"must have at least {passwords.SHORTEST} characters", field="password")
    if len(password) > passwords.LONGEST:
        raise InvalidError(f"must have at most {passwords.LONGEST} characters", field="password")


def get(session: Session, user_id: int) -> UserAccount:
    """One user; raise MissingError."""
    user = session.get(UserAccount, user_id)
    if user is None:
        raise MissingError("no such user")
    return user


def everyone(session: Session) -> Sequence[UserAccount]:
    """All users: there are few."""
    return session.scalars(sa.select(UserAccount).order_by(UserAccount.email)).all()


def exist(session: Session) -> bool:
    """Whether anybody can log in at all."""
    return bool(session.scalar(sa.select(sa.exists().where(UserAccount.disabled_at.is_(None)))))


def create(session: Session, email: str, password: str, role: Role) -> UserAccount:
    """Add a user; raise InvalidError, or ConflictError when the address is taken."""
    check_password(password)
    user = _add(session, normalise_email(email), password, role)
    if user is None:
        raise ConflictError("a user with this e-mail address exists already", field="email")
    return user


def ensure(session: Session, email: str, password: str) -> bool:
    """Make this admin unless there is a user of this address; whether there was none. Any password will do."""
    return _add(session, normalise_email(email), password, Role.ADMIN) is not None


def find(session: Session, email: str) -> UserAccount | None:
    """The user with this address; raise InvalidError for what cannot be one."""
    return session.scalar(sa.select(UserAccount).where(UserAccount.email == normalise_email(email)))


def _add(session: Session, email: str, password: str, role: Role) -> UserAccount | None:
    statement = (
        insert(UserAccount)
        .values(email=email, password_hash=passwords.digest(password), role=role)
        .on_conflict_do_nothing(index_elements=[UserAccount.email])
        .returning(UserAccount)
    )
    user: UserAccount | None = session.scalar(statement)
    if user is not None:
        audit.record(session, "user.create", _subject(user), after={"email": email, "role": role})
    return user


def change(session: Session, user_id: int, now: datetime, *, role: Role, is_disabled: bool) -> UserAccount:
    """Set role and access; whoever loses any of it is logged out. Raise ConflictError to keep the last admin."""
    user = lock(session, user_id)
    if user.role is role and (user.disabled_at is not None) == is_disabled:
        return user
    was = {"role": user.role, "disabled": user.disabled_at is not None}
    if was == {"role": Role.ADMIN, "disabled": False} and not _has_other_admin(session, user_id):
        raise ConflictError("this is the last admin: make another one first")
    user.role = role
    user.disabled_at = (user.disabled_at or now) if is_disabled else None
    user.session_version += 1
    session.flush()
    audit.record(session, "user.change", _subject(user), was, {"role": role, "disabled": is_disabled})
    return user


def set_password(session: Session, user_id: int, password: str) -> UserAccount:
    """Set a new password, and log the user out everywhere; raise InvalidError or MissingError."""
    check_password(password)
    user = lock(session, user_id)
    user.password_hash = passwords.digest(password)
    user.session_version += 1
    session.flush()
    audit.record(session, "user.password", _subject(user))
    return user


def log_out_everywhere(session: Session, user_id: int) -> UserAccount:
    """End every session of this user."""
    user = lock(session, user_id)
    user.session_version += 1
    session.flush()
    audit.record(session, "user.logout_everywhere", _subject(user))
    return user


def set_preferences(session: Session, user_id: int, language: str | None, timezone: str | None) -> None:
    """Remember how this user likes pages: None is "as the browser says"."""
    session.execute(
        sa.update(UserAccount).where(UserAccount.id == user_id).values(language=language, timezone=timezone)
    )


def begin_attempt(session: Session, email: str, address: str, now: datetime) -> int | None:
    """Note a log-in about to be checked; None when there were too many.

    Noted, and committed by the caller, before the password is looked at: a hundred guesses at once count each other.
    """
    account = email.strip().lower()[:254]
    attempt_id = session.execute(
        sa.insert(LoginAttempt).values(at=now, account=account, address=address).returning(LoginAttempt.id)
    ).scalar_one()
    since = now - THROTTLE_WINDOW
    for column, value, most in (
        (LoginAttempt.account, account, ACCOUNT_ATTEMPTS),
        (LoginAttempt.address, address, ADDRESS_ATTEMPTS),
    ):
        count = sa.select(sa.func.count()).where(column == value, LoginAttempt.at > since).select_from(LoginAttempt)
        if (session.scalar(count) or 0) > most:
            # Attempts while closed do not count: else somebody could keep an account closed for ever, at no cost.
            session.execute(sa.delete(LoginAttempt).where(LoginAttempt.id == attempt_id))
            return None
    return int(attempt_id)


def log_in(session: Session, attempt_id: int, email: str, password: str, now: datetime) -> UserAccount | None:
    """The user with this password, whose failures are forgiven; None, and the attempt stays noted, otherwise."""
    user = session.scalar(
        sa.select(UserAccount).where(UserAccount.email == email.strip().lower(), UserAccount.disabled_at.is_(None))
    )
    if user is None:
        passwords.waste_time(password[: passwords.LONGEST])
        return None
    if len(password) > passwords.LONGEST or not passwords.verify(password, user.password_hash):
        audit.record(session, "user.login_failed", _subject(user))
        return None
    attempt = session.get(LoginAttempt, attempt_id)
    if attempt is not None:
        audit.act_as(session, name_actor(user), attempt.address)
        session.execute(
            sa.delete(LoginAttempt)
            .where(LoginAttempt.account == attempt.account, LoginAttempt.address == attempt.address)
            .execution_options(synchronize_session=False)
        )
    session.execute(sa.delete(LoginAttempt).where(LoginAttempt.at < now - THROTTLE_WINDOW))
    user.last_login_at = now
    session.flush()
    audit.record(session, "user.login", _subject(user))
    return user


def name_actor(user: UserAccount) -> str:
    """How the audit log calls this user."""
    return f"user:{user.id} {user.email}"


def _subject(user: UserAccount) -> str:
    return f"user:{user.id}"


def lock(session: Session, user_id: int) -> UserAccount:
    """One user, whom nobody else changes until this transaction ends; raise MissingError."""
    # All admins, not just this one: two who demote each other at once must not both succeed.
    session.execute(
        sa.select(UserAccount.id).where(UserAccount.role == Role.ADMIN).order_by(UserAccount.id).with_for_update()
    )
    user = session.get(UserAccount, user_id, with_for_update=True, populate_existing=True)
    if user is None:
        raise MissingError("no such user")
    return user


def _has_other_admin(session: Session, user_id: int) -> bool:
    others = sa.exists().where(
        UserAccount.id != user_id, UserAccount.role == Role.ADMIN, UserAccount.disabled_at.is_(None)
    )
    return bool(session.scalar(sa.select(others)))
