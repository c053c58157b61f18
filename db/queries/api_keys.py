"""API keys: made, found, marked as used."""

from __future__ import annotations

import hashlib
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import ApiKey, Scope
from db.queries import audit
from db.refusals import MissingError

USE_RESOLUTION = timedelta(minutes=1)


def digest_of(token: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A key of 256 random bits."""
    return token_of(secrets.token_bytes(32))


def token_of(bits: bytes) -> str:
    """How a key of these bits is written."""
    return f"mk_{urlsafe_b64encode(bits).decode().rstrip('=')}"


def create(session: Session, name: str, scope: Scope, token: str) -> bool:
    """Keep this token; False when it is known already (revoked or not)."""
    prefix = token[: min(8, len(token) // 4)]  # A short key of the operator's own must not be given away.
    statement = (
        insert(ApiKey)
        .values(name=name, prefix=prefix, digest=digest_of(token), scope=scope)
        .on_conflict_do_nothing(index_elements=[ApiKey.digest])
        .returning(ApiKey.id)
    )
    key_id = session.execute(statement).scalar()
    if key_id is None:
        return False
    audit.record(session, "api_key.create", _subject(key_id), after={"name": name, "scope": scope})
    return True


def everyone(session: Session) -> Sequence[ApiKey]:
    """All keys, newest first, those that were revoked included."""
    return session.scalars(sa.select(ApiKey).order_by(ApiKey.id.desc())).all()


def get(session: Session, key_id: int) -> ApiKey:
    """One key; raise MissingError."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise MissingError("no such key")
    return key


def name_actor(key: ApiKey) -> str:
    """How the audit log calls the holder of this key."""
    return f"key:{key.id} {key.name}"


def exist(session: Session) -> bool:
    """Whether anybody can use the API at all."""
    return bool(session.scalar(sa.select(sa.exists().where(ApiKey.revoked_at.is_(None)))))


def find(session: Session, digest: str) -> ApiKey | None:
    """The key that stands, by its digest."""
    return session.scalar(sa.select(ApiKey).where(ApiKey.digest == digest, ApiKey.revoked_at.is_(None)))


def touch(session: Session, key_id: int, now: datetime) -> None:
    """Remember the use, at most once a minute: a busy key must not become a busy row."""
    session.execute(
        sa.update(ApiKey)
        .where(ApiKey.id == key_id, sa.or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - USE_RESOLUTION))
        .values(last_used_at=now)
    )


def revoke(session: Session, key_id: int, now: datetime) -> bool:
    """End a key; False when it had ended already."""
    result = session.execute(
        sa.update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=now)
        .returning(ApiKey.name)
    )
    name = result.scalar()
    if name is None:
        return False
    audit.record(session, "api_key.revoke", _subject(key_id), before={"name": name})
    return True


def _subject(key_id: int) -> str:
    return f"api_key:{key_id}"
