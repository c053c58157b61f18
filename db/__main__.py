"""`python -m db upgrade | recount | api-key NAME | user EMAIL`: what an operator does to the database."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from common import logs
from common.settings import Settings, SettingsError, exit_with, settings
from db import passwords
from db.engine import make_engine
from db.migrate import upgrade
from db.models import Role, Scope
from db.queries import api_keys, statistics, users
from db.refusals import RefusedError

log = structlog.get_logger()

WAIT_SECONDS = 120
# Any constant: several starts at once must not make a first key, or user, each.
FIRST_KEY_LOCK = 727002


def main() -> int:
    """Run one command; the exit status."""
    arguments = _parse()
    try:
        given = settings().require("database_url")
    except SettingsError as error:
        exit_with(error)
    logs.configure(given.log_level, given.log_format, "db")
    engine = make_engine(given.database_url or "", "mailings db", statement_timeout_seconds=3600)
    _wait_for(engine)
    if arguments.command == "upgrade":
        upgrade(given.database_url or "")
        _ensure_first_key(engine, given)
        _ensure_first_user(engine, given)
        return 0
    if arguments.command == "api-key":
        return _make_key(engine, arguments.name, Scope(arguments.scope))
    if arguments.command == "user":
        return _make_user(engine, arguments.email, Role(arguments.role) if arguments.role else None)
    return _recount(engine)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m db", description="What an operator does to the database.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="apply migrations, and make a first API key if there is none")
    commands.add_parser("recount", help="compare the counters with the messages; exit status 1 if they differ")
    key = commands.add_parser("api-key", help="make an API key and print it once")
    key.add_argument("name")
    key.add_argument("--scope", choices=[scope.value for scope in Scope], default=Scope.FULL.value)
    user = commands.add_parser("user", help="make a user of the admin pages, or give one a new password; print it once")
    user.add_argument("email")
    user.add_argument("--role", choices=[role.value for role in Role], help="by default admin, for a new user")
    return parser.parse_args()


def _wait_for(engine: sa.Engine) -> None:
    """Return once PostgreSQL answers; it may be starting up beside us."""
    give_up_at = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            engine.connect().close()
        except sa.exc.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            log.warning("database_unavailable")
            time.sleep(1)
        else:
            return


def _ensure_first_key(engine: sa.Engine, given: Settings) -> None:
    with Session(engine) as session, session.begin():
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(FIRST_KEY_LOCK)))
        if given.api_key:
            api_keys.create(session, "API_KEY", Scope.FULL, given.api_key)
            return
        if api_keys.exist(session):
            return
        token = api_keys.new_token()
        api_keys.create(session, "first", Scope.FULL, token)
    print(f"API key (shown only once): {token}")


def _ensure_first_user(engine: sa.Engine, given: Settings) -> None:
    with Session(engine) as session, session.begin():
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(FIRST_KEY_LOCK)))
        if given.admin_password:
            users.ensure(session, given.admin_email, given.admin_password)
            return
        if users.exist(session):
            return
        password = passwords.generate()
        users.ensure(session, given.admin_email, password)
    print(f"Admin login (shown only once): {given.admin_email} {password}")


def _make_user(engine: sa.Engine, email: str, role: Role | None) -> int:
    password = passwords.generate()
    try:
        with Session(engine) as session, session.begin():
            user = users.find(session, email)
            if user is None:
                user = users.create(session, email, password, role or Role.ADMIN)
            else:
                users.set_password(session, user.id, password)
                users.change(session, user.id, datetime.now(UTC), role=role or user.role, is_disabled=False)
            found = (user.email, user.role)
    except RefusedError as error:
        sys.stderr.write(f"{email}: {error.reason}\n")
        return 1
    print(f"{found[0]} ({found[1]}): {password}")
    return 0


def _make_key(engine: sa.Engine, name: str, scope: Scope) -> int:
    token = api_keys.new_token()
    with Session(engine) as session, session.begin():
        api_keys.create(session, name, scope, token)
    print(token)
    return 0


def _recount(engine: sa.Engine) -> int:
    # One snapshot for both sides, so that it is right while messages are being sent.
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        Session(connection) as session,
    ):
        differences = statistics.recount(session)
    for wrong in differences:
        print(f"mailing {wrong.mailing_id}, {wrong.status}: counted {wrong.counted}, there are {wrong.actual}")
    print("the counters differ from the messages" if differences else "the counters equal the messages")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
