"""Who calls: a bearer key on every path, except those that a browser or a health check opens without one."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import NamedTuple

from flask import Flask, g, request
from sqlalchemy.orm import Session
from webargs.flaskparser import abort

from api.database import database, only_reads
from common.settings import LONGEST_API_KEY
from db.models import Scope
from db.queries import api_keys, audit

OPEN_ENDPOINTS = frozenset(
    {"docs.page", "docs.page_by_api_path", "docs.openapi", "docs.static", "health.alive", "health.ready"}
)
# A key for receipts is handed to the gateway's side: it opens nothing else.
RECEIPT_BLUEPRINT = "receipt"

CACHE_SECONDS = 2.0
CACHE_SIZE = 1000


class Caller(NamedTuple):
    """The key that a request came with."""

    key_id: int
    scope: Scope
    actor: str  # in the audit log


class _KnownKeys:
    """Keys looked up lately: a busy caller costs one look-up in two seconds, and a revoked key lives that long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Caller, float]] = {}

    def find(self, token: str) -> Caller | None:
        digest = api_keys.digest_of(token)
        known = self._known.get(digest)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        caller = _look_up(digest)
        if caller is not None:
            with self._lock:
                if len(self._known) >= CACHE_SIZE:
                    self._known.clear()
                self._known[digest] = (caller, time.monotonic() + CACHE_SECONDS)
        return caller


def _look_up(digest: str) -> Caller | None:
    now = datetime.now(UTC)
    # A transaction of its own: the use is remembered even if the request fails.
    with Session(database.engine) as session, session.begin():
        key = api_keys.find(session, digest)
        if key is None:
            return None
        if key.last_used_at is None or key.last_used_at < now - api_keys.USE_RESOLUTION:
            api_keys.touch(session, key.id, now)
        return Caller(key.id, key.scope, api_keys.name_actor(key))


def protect(app: Flask) -> None:
    """Demand a key of the right scope before anything of the request is read."""
    keys = _KnownKeys()

    @app.before_request
    def check_key() -> None:
        # A path that does not exist tells nothing, and is answered with 404 or 405 right away.
        if request.endpoint is None or request.endpoint in OPEN_ENDPOINTS:
            return
        token = _bearer_token()
        caller = keys.find(token) if token else None
        if caller is None:
            abort(
                401,
                message="a valid API key is needed: Authorization: Bearer <key>",
                headers={"WWW-Authenticate": 'Bearer realm="mailings"'},
            )
        if caller.scope is not Scope.FULL and request.blueprint != RECEIPT_BLUEPRINT:
            abort(403, message=f"a key of the scope '{caller.scope}' may not do this")
        g.caller = caller
        if not only_reads():
            audit.act_as(database.session(), caller.actor, request.remote_addr)


def _bearer_token() -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token.isascii() and len(token) <= LONGEST_API_KEY else None
