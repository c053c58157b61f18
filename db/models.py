"""The tables, and the rules that PostgreSQL itself keeps.

The counters of `StatusCount` are fed by a trigger on `message`; trigger and function are in the migrations.
"""

from __future__ import annotations

from datetime import datetime, time
from enum import StrEnum
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Declarative base: plain `int` is bigint, `str` is text, `datetime` always carries a zone."""

    metadata = sa.MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar = {
        int: sa.BigInteger(),
        str: sa.Text(),
        datetime: sa.DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[str]: ARRAY(sa.Text()),
        list[int]: ARRAY(sa.BigInteger()),
    }


class MailingState(StrEnum):
    """Where a mailing stands; the dispatcher moves it, people hold or end it."""

    DRAFT = "draft"  # waits for `start`
    SCHEDULED = "scheduled"  # the dispatcher starts it at `starts_at`
    RUNNING = "running"  # its messages are written and released
    PAUSED = "paused"  # nothing is released until `resume`; the end time still counts
    COMPLETED = "completed"  # every message is final
    CANCELLED = "cancelled"  # ended by a person; the dispatcher cancels what was not on the wire


class MessageStatus(StrEnum):
    """Where a message stands. A crash leaves only `sending` behind, and the sweep of lost leases mends that."""

    PENDING = "pending"  # due at `next_attempt_at`; the dispatcher releases it
    # In a released batch: the worker records the outcome, or the sweep takes it back. (In a planned one it is pending.)
    SENDING = "sending"
    SENT = "sent"  # the gateway accepted it; a receipt may still turn it into delivered or failed
    DELIVERED = "delivered"
    FAILED = "failed"  # `retry-failed` can take it back to pending
    EXPIRED = "expired"  # the mailing ended before it could be sent
    CANCELLED = "cancelled"  # the mailing was cancelled, or the client deleted or opted out


OPEN_STATUSES = (MessageStatus.PENDING, MessageStatus.SENDING)
ACTIVE_STATES = (MailingState.SCHEDULED, MailingState.RUNNING, MailingState.PAUSED)


class ImportState(StrEnum):
    """Where an import job stands; a crash leaves `running`, and the dispatcher hands it out again."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class GatewayState(StrEnum):
    """What the dispatcher believes of the gateway."""

    CLOSED = "closed"  # the circuit is closed: traffic flows
    OPEN = "open"  # most calls failed: only probes are released
    BLOCKED = "blocked"  # our credentials were refused: only slow probes are released


class Scope(StrEnum):
    """What an API key may do."""

    FULL = "full"
    RECEIPTS = "receipts"


def _enum(kind: type[StrEnum]) -> sa.Enum:
    """A text column checked against the values (not the names) of a StrEnum."""
    return sa.Enum(
        kind, native_enum=False, create_constraint=True, length=16, values_callable=lambda e: [m.value for m in e]
    )


_id = sa.Identity(always=False)
_now = sa.text("now()")


class Client(Base):
    """A person in the directory."""

    __tablename__ = "client"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    phone: Mapped[str] = mapped_column(unique=True)  # E.164, with the plus
    operator_code: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(server_default="{}")
    timezone: Mapped[str]  # IANA name
    attributes: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    opted_out_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    updated_at: Mapped[datetime] = mapped_column(server_default=_now)

    __table_args__ = (
        sa.CheckConstraint("phone ~ '^[+][1-9][0-9]{6,14}$'", name="phone_e164"),
        # Read by `queries.directory` and `queries.previews`: everyone with a tag.
        sa.Index("ix_client_tags", "tags", postgresql_using="gin"),
        # Read by `queries.directory`: the few who want no messages.
        sa.Index("ix_client_opted_out", "id", postgresql_where=sa.text("opted_out_at IS NOT NULL")),
        # Read by `queries.previews`: how many can be written to, and the first of an operator's.
        sa.Index("ix_client_reachable", "operator_code", "id", postgresql_where=sa.text("opted_out_at IS NULL")),
    )


class Mailing(Base):
    """A text for everyone who matches a filter, between a start and an end."""

    __tablename__ = "mailing"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    name: Mapped[str]
    text: Mapped[str]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    operator_codes: Mapped[list[str]] = mapped_column(server_default="{}")
    tags: Mapped[list[str]] = mapped_column(server_default="{}")
    window_from: Mapped[time | None]
    window_to: Mapped[time | None]
    state: Mapped[MailingState] = mapped_column(_enum(MailingState))
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    updated_at: Mapped[datetime] = mapped_column(server_default=_now)

    # The dispatcher's progress in writing the messages: the last client id that was looked at, and when all were.
    started_at: Mapped[datetime | None]
    materialised_through: Mapped[int] = mapped_column(server_default="0")
    materialised_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # The window was edited after the start: the dispatcher sets the times of waiting messages anew from this client on.
    rescheduled_through: Mapped[int | None]
    # Set by DELETE: hidden from everyone at once, removed by the dispatcher in the background.
    deleted_at: Mapped[datetime | None]
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    idempotency_digest: Mapped[str | None]
    # Made to try a text on one number: its only message was written with it, the filter means nothing.
    is_test: Mapped[bool] = mapped_column(server_default=sa.false())

    __table_args__ = (
        sa.CheckConstraint("ends_at > starts_at", name="ends_after_start"),
        sa.CheckConstraint("(window_from IS NULL) = (window_to IS NULL)", name="window_whole"),
        sa.CheckConstraint("window_from <> window_to", name="window_open"),
        sa.CheckConstraint("(finished_at IS NOT NULL) = (state IN ('completed', 'cancelled'))", name="finished"),
        # Read by the dispatcher every round: `queries.audience`, `start_due`, `running` and others.
        sa.Index(
            "ix_mailing_active",
            "state",
            "starts_at",
            postgresql_where=sa.text("state IN ('scheduled', 'running', 'paused')"),
        ),
    )


class Message(Base):
    """One client's copy of a mailing. No foreign keys: they cost 7 s per million rows, and it outlives a client.

    No index may name `status`, `batch_id`, `attempts` or `sent_at`, nor have them in its predicate: PostgreSQL then
    writes the record of every sent message to all indexes. (`last_error` stays NULL when nothing went wrong.)

    The messages of a mailing are written in the order of their clients, so within a mailing that of the ids is the
    same: `queries.messages` and `queries.reports` walk a mailing along its unique key.

    The status that is told of one in a planned batch is another: `queries.messages.STATUS`.
    """

    __tablename__ = "message"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    mailing_id: Mapped[int]
    client_id: Mapped[int]
    status: Mapped[MessageStatus] = mapped_column(_enum(MessageStatus))
    attempts: Mapped[int] = mapped_column(sa.SmallInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    next_attempt_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    batch_id: Mapped[int | None]
    last_error: Mapped[str | None]

    __table_args__ = (
        sa.UniqueConstraint("mailing_id", "client_id"),
        sa.CheckConstraint("(next_attempt_at IS NOT NULL) = (status = 'pending')", name="pending_is_due"),
        sa.CheckConstraint("(batch_id IS NOT NULL) = (status = 'sending')", name="sending_in_batch"),
        sa.CheckConstraint("sent_at IS NOT NULL OR status NOT IN ('sent', 'delivered')", name="sent_has_time"),
        sa.CheckConstraint(
            "last_error IS NOT NULL OR status NOT IN ('failed', 'expired', 'cancelled')", name="trouble_has_reason"
        ),
        # Read by `queries.batches.release`: what is due now, of one mailing.
        sa.Index(
            "ix_message_due", "mailing_id", "next_attempt_at", postgresql_where=sa.text("next_attempt_at IS NOT NULL")
        ),
        # Read by `queries.messages.page` (failed, expired or cancelled) and by `retry_failed`: few messages fail.
        sa.Index("ix_message_trouble", "mailing_id", "id", postgresql_where=sa.text("last_error IS NOT NULL")),
        # Read by `queries.messages.page` (filter by reason), `queries.failures` and the daily report.
        sa.Index(
            "ix_message_reason", "mailing_id", "last_error", "id", postgresql_where=sa.text("last_error IS NOT NULL")
        ),
    )


class Batch(Base):
    """Messages released together: the broker carries its id, the row holds the lease. Deleted when all are recorded."""

    __tablename__ = "batch"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    mailing_id: Mapped[int]
    message_ids: Mapped[list[int]]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    lease_until: Mapped[datetime]
    worker_id: Mapped[str | None]  # None until a worker has taken it
    is_probe: Mapped[bool] = mapped_column(server_default=sa.false())  # sent to learn whether the gateway is back
    is_begun: Mapped[bool] = mapped_column(server_default=sa.false())  # all its calls are; some are slow to end

    # Few rows, always short-lived: the dispatcher reads them all, `queries.batches.under_way`.


class PlannedBatch(Base):
    """Messages that will be released together: that moves this row to `batch`, and changes no message.

    They are `sending`, in the batch of this number, from the beginning. Counters, people and programs are told that
    they are `pending` until the batch is released.
    """

    __tablename__ = "planned_batch"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # of the sequence of `batch`
    mailing_id: Mapped[int]
    message_ids: Mapped[list[int]]

    # Read by `queries.batches.release_planned`: what comes next, of one mailing.
    __table_args__ = (sa.Index("ix_planned_batch_mailing_id", "mailing_id", "id"),)


class Attempt(Base):
    """The history of a message: every attempt that was not simply accepted the first time."""

    __tablename__ = "attempt"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    message_id: Mapped[int] = mapped_column(index=True)
    at: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(sa.SmallInteger)
    outcome: Mapped[str]
    reason: Mapped[str | None]
    http_status: Mapped[int | None] = mapped_column(sa.SmallInteger)
    milliseconds: Mapped[int | None] = mapped_column(sa.Integer)


class Receipt(Base):
    """A delivery receipt that came before our own record of the attempt; applied, and removed, with that record."""

    __tablename__ = "receipt"

    message_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[MessageStatus] = mapped_column(_enum(MessageStatus))
    reason: Mapped[str | None]
    received_at: Mapped[datetime] = mapped_column(server_default=_now)


class StatusCount(Base):
    """How many messages of a mailing have a status: the sum of the amounts.

    Writers only ever append (a shared counter row would make them wait for each other, and deadlock); the dispatcher
    merges the rows from time to time.
    """

    __tablename__ = "status_count"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    mailing_id: Mapped[int]
    status: Mapped[MessageStatus] = mapped_column(_enum(MessageStatus))
    amount: Mapped[int]

    __table_args__ = (sa.Index("ix_status_count_mailing_id", "mailing_id", postgresql_include=["status", "amount"]),)


class StatusFlow(Base):
    """How many messages of a mailing came to a status in a minute: fed by the same trigger, for charts and reports.

    `pending` counts the messages written (the audience), `sent` those accepted (also when the delivery receipt was the
    first we heard of that), and so on; `sending` and returns to `pending` are not counted. Rows are appended, and
    merged by the dispatcher.
    """

    __tablename__ = "status_flow"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    minute: Mapped[datetime]
    mailing_id: Mapped[int]
    status: Mapped[MessageStatus] = mapped_column(_enum(MessageStatus))
    amount: Mapped[int]

    # Read by period (dashboard, daily report) and by mailing (its page, removal).
    __table_args__ = (
        sa.Index("ix_status_flow_minute", "minute", postgresql_include=["mailing_id", "status", "amount"]),
        sa.Index("ix_status_flow_mailing_id", "mailing_id", "minute"),
    )


class Role(StrEnum):
    """What a person may do in the admin UI; each includes the ones before."""

    VIEWER = "viewer"  # looks
    OPERATOR = "operator"  # creates and controls mailings, edits and imports clients
    ADMIN = "admin"  # users, API keys, the audit log, the system page


class UserAccount(Base):
    """A person who logs in to the admin UI."""

    __tablename__ = "user_account"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)  # lower case
    password_hash: Mapped[str]
    role: Mapped[Role] = mapped_column(_enum(Role))
    language: Mapped[str | None]
    timezone: Mapped[str | None]
    session_version: Mapped[int] = mapped_column(sa.Integer, server_default="0")  # raised to log out everywhere
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    last_login_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]


class AuditEntry(Base):
    """Who did what, when, from where; written in the transaction that does it."""

    __tablename__ = "audit_entry"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=_now)
    actor: Mapped[str]  # "user:1 anna@example.com", "key:3 crm", "system"
    address: Mapped[str | None]  # IP address
    action: Mapped[str]  # "mailing.pause"
    subject: Mapped[str | None]  # "mailing:12"
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]

    # Read by `queries.audit.page`, each with its filter.
    __table_args__ = (
        sa.Index("ix_audit_entry_subject", "subject", "id"),
        sa.Index("ix_audit_entry_actor", "actor", "id"),
        sa.Index("ix_audit_entry_action", "action", "id"),
    )


class LoginAttempt(Base):
    """A log-in that is being checked or that failed; too many of them close an account or an address for a while."""

    __tablename__ = "login_attempt"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=_now)
    account: Mapped[str]  # the e-mail address as given, lower case; whether it exists or not
    address: Mapped[str]  # IP address

    __table_args__ = (
        sa.Index("ix_login_attempt_account", "account", "at"),
        sa.Index("ix_login_attempt_address", "address", "at"),
    )


class DeliveryState(StrEnum):
    """Where a mail of the reporter stands; a crash leaves `sending`, and when its lease is over it is tried again."""

    PENDING = "pending"  # due at `next_attempt_at`
    SENDING = "sending"  # a reporter works on it until `lease_until`
    SENT = "sent"  # the server took it
    FAILED = "failed"  # given up


class ReportDelivery(Base):
    """A report or alert for one recipient: the row, not the scheduler, decides that it goes out once."""

    __tablename__ = "report_delivery"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    kind: Mapped[str]  # "daily", "weekly", "alert:<kind>"
    period: Mapped[str]  # "2026-11-22", "2026-W47", or the hour of an alert
    recipient: Mapped[str]  # the address alone, without a name
    state: Mapped[DeliveryState] = mapped_column(_enum(DeliveryState))
    attempts: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    next_attempt_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    last_error: Mapped[str | None]
    detail: Mapped[dict[str, Any] | None]  # what an alert tells, as it was when the alert was raised
    created_at: Mapped[datetime] = mapped_column(server_default=_now)

    __table_args__ = (
        sa.UniqueConstraint("kind", "period", "recipient"),
        sa.CheckConstraint("(next_attempt_at IS NOT NULL) = (state = 'pending')", name="pending_is_due"),
        sa.CheckConstraint("(lease_until IS NOT NULL) = (state = 'sending')", name="sending_has_lease"),
        sa.CheckConstraint("(sent_at IS NOT NULL) = (state = 'sent')", name="sent_has_time"),
    )


class ReportRecipient(Base):
    """Since when somebody gets reports: nobody is sent those that became due before."""

    __tablename__ = "report_recipient"

    recipient: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]


class ApiKey(Base):
    """A bearer key; only its SHA-256 is kept (the key itself has 256 bits of entropy, so no slow hash is needed)."""

    __tablename__ = "api_key"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    name: Mapped[str]
    prefix: Mapped[str]  # the first characters, to tell keys apart
    digest: Mapped[str] = mapped_column(unique=True)
    scope: Mapped[Scope] = mapped_column(_enum(Scope))
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class ImportJob(Base):
    """A CSV file on its way into the directory."""

    __tablename__ = "import_job"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    state: Mapped[ImportState] = mapped_column(_enum(ImportState))
    delimiter: Mapped[str]
    columns: Mapped[list[str]] = mapped_column(server_default="{}")  # the header as written, above the rejected rows
    total: Mapped[int] = mapped_column(server_default="0")  # data rows in the file
    processed: Mapped[int] = mapped_column(server_default="0")  # committed with the rows themselves: where to go on
    created: Mapped[int] = mapped_column(server_default="0")
    updated: Mapped[int] = mapped_column(server_default="0")
    rejected: Mapped[int] = mapped_column(server_default="0")
    failure: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_now)
    finished_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]  # the importer at work renews it; past it, the job is handed out again
    worker_id: Mapped[str | None]

    __table_args__ = (
        sa.CheckConstraint("(finished_at IS NOT NULL) = (state IN ('completed', 'failed'))", name="finished"),
        # Read by the dispatcher every second: `queries.imports.waiting`.
        sa.Index("ix_import_job_open", "id", postgresql_where=sa.text("state IN ('pending', 'running')")),
    )


class ImportChunk(Base):
    """A piece of an uploaded file, removed when its job has finished."""

    __tablename__ = "import_chunk"

    import_id: Mapped[int] = mapped_column(sa.ForeignKey("import_job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes]


class RejectedRow(Base):
    """A row of an import that was refused, with its line number in the file and the reason."""

    __tablename__ = "rejected_row"

    import_id: Mapped[int] = mapped_column(sa.ForeignKey("import_job.id", ondelete="CASCADE"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reason: Mapped[str]
    row: Mapped[str]


class Process(Base):
    """The heartbeat of a sender, dispatcher or reporter, and how many batches it can work on at once (a sender)."""

    __tablename__ = "process"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    capacity: Mapped[int] = mapped_column(server_default="0")
    started_at: Mapped[datetime] = mapped_column(server_default=_now)
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=_now)


class Leader(Base):
    """Who holds a role of which there is one: a lease, so that a frozen holder loses it as a dead one does."""

    __tablename__ = "leader"

    role: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    lease_until: Mapped[datetime]


class Gateway(Base):
    """What is known of the remote gateway, shared by all processes. One row."""

    __tablename__ = "gateway"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[GatewayState] = mapped_column(_enum(GatewayState))
    reason: Mapped[str | None]
    changed_at: Mapped[datetime] = mapped_column(server_default=_now)
    probe_at: Mapped[datetime | None]  # when the next probe may go; set exactly while open or blocked
    pace: Mapped[float | None] = mapped_column(
        sa.Double
    )  # messages/s after the gateway asked to slow down; None = full
    paced_at: Mapped[datetime] = mapped_column(server_default=_now)  # when the pace was last lowered or raised
    next_slot_at: Mapped[datetime] = mapped_column(server_default=_now)  # the rate limit: when the next message may go

    __table_args__ = (sa.CheckConstraint("id = 1", name="single_row"),)


class GatewayTally(Base):
    """How the gateway answered lately: a row per recorded group of outcomes, kept for some minutes."""

    __tablename__ = "gateway_tally"

    id: Mapped[int] = mapped_column(_id, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=_now, index=True)
    mailing_id: Mapped[int]
    answered: Mapped[int] = mapped_column(server_default="0")  # accepted or refused: the gateway is well
    troubled: Mapped[int] = mapped_column(server_default="0")  # timeouts, resets, 5xx, garbage
    slowed: Mapped[int] = mapped_column(server_default="0")  # 429, 503 with Retry-After
    blocked: Mapped[int] = mapped_column(server_default="0")  # 401, 403
    reason: Mapped[str | None]  # of the last that was not well
    # How long the answers took: a count for each of `queries.gateway.TIMING_BOUNDS`, and one for what took longer.
    timings: Mapped[list[int]] = mapped_column(server_default="{}")
