"""`python -m sender.health KIND`: exit status 0 if a process of this kind on this machine has a fresh heartbeat.

The container's health check, and what the native runner waits for. KIND is `dispatcher` or `sender`.
"""

from __future__ import annotations

import socket
import sys

import sqlalchemy as sa
from sqlalchemy.orm import Session

from common.settings import SettingsError, exit_with, settings
from db.engine import make_engine
from db.queries import processes


def main() -> int:
    """Ask the database, which is what such a process needs first of all; 1 when it does not answer."""
    try:
        given = settings().require("database_url")
    except SettingsError as error:
        exit_with(error)
    try:
        with Session(make_engine(given.database_url or "", "mailings health")) as session:
            return 0 if processes.is_beating(session, f"{sys.argv[1]}@{socket.gethostname()}:") else 1
    except sa.exc.OperationalError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
