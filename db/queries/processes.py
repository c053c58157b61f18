"""Heartbeats of senders, dispatchers and reporters, and the lease that makes one dispatcher the active one."""

from __future__ import annotations

import sqlalchemy as sa

from db.engine import Database

# A process that was silent for longer is not counted on.
SILENT_AFTER_SECONDS = 6


def beat(database: Database, process_id: str, kind: str, capacity: int) -> None:
    """Record that the process is alive and how many batches it can work on at once."""
    database.execute(
        sa.text(
            "INSERT INTO process (id, kind, capacity) VALUES (:id, :kind, :capacity)"
            " ON CONFLICT (id) DO UPDATE SET heartbeat_at = now(), capacity = :capacity"
        ),
        {"id": process_id, "kind": kind, "capacity": capacity},
    )


def leave(database: Database, process_id: str) -> None:
    """Remove a process that ends in good order."""
    database.execute(sa.text("DELETE FROM process WHERE id = :id"), {"id": process_id})


def forget_silent(database: Database, after_seconds: float = 3600) -> None:
    """Remove processes that ended without a word long ago."""
    database.execute(
        sa.text("DELETE FROM process WHERE heartbeat_at < now() - make_interval(secs => :after)"),
        {"after": after_seconds},
    )


def capacity(database: Database) -> int:
    """How many batches the living senders can work on at once."""
    return int(
        database.scalar(
            sa.text(
                "SELECT coalesce(sum(capacity), 0) FROM process"
                " WHERE kind = 'sender' AND heartbeat_at > now() - make_interval(secs => :silent)"
            ),
            {"silent": SILENT_AFTER_SECONDS},
        )
        or 0
    )


def is_beating(database: Database, prefix: str) -> bool:
    """Return True if a process whose id begins like this has been heard lately."""
    return bool(
        database.scalar(
            sa.text(
                "SELECT EXISTS (SELECT FROM process"
                " WHERE starts_with(id, :prefix) AND heartbeat_at > now() - make_interval(secs => :silent))"
            ),
            {"prefix": prefix, "silent": SILENT_AFTER_SECONDS},
        )
    )


def hold_lead(database: Database, role: str, holder: str, lease_seconds: float) -> bool:
    """Take or prolong the lead; False while another holds it."""
    won = database.scalar(
        sa.text(
            "INSERT INTO leader (role, holder, lease_until)"
            " VALUES (:role, :holder, now() + make_interval(secs => :lease))"
            " ON CONFLICT (role) DO UPDATE SET holder = :holder, lease_until = now() + make_interval(secs => :lease)"
            " WHERE leader.holder = :holder OR leader.lease_until < now()"
            " RETURNING holder"
        ),
        {"role": role, "holder": holder, "lease": lease_seconds},
    )
    return won is not None


def drop_lead(database: Database, role: str, holder: str) -> None:
    """Give up the lead, so that a standby need not wait for the lease to run out."""
    database.execute(
        sa.text("DELETE FROM leader WHERE role = :role AND holder = :holder"), {"role": role, "holder": holder}
    )
