"""flow of statuses, users, audit, reports

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# As before, and every arrival at a status goes to `status_flow` with its minute. A mailing's audience is what was
# inserted, whatever its first status; `sending` is a passage, and a return to `pending` is no news. A message that
# becomes `delivered` without having been `sent` was accepted too: arrivals at `sent` are those at either of the two.
COUNT_FUNCTION = """
CREATE OR REPLACE FUNCTION count_message_statuses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        WITH change AS MATERIALIZED (
            SELECT mailing_id, status, count(*) AS amount FROM new_rows GROUP BY 1, 2
        ), counted AS (
            INSERT INTO status_count (mailing_id, status, amount) SELECT mailing_id, status, amount FROM change
        )
        INSERT INTO status_flow (minute, mailing_id, status, amount)
        SELECT date_trunc('minute', now()), mailing_id, 'pending', sum(amount) FROM change GROUP BY mailing_id
        UNION ALL
        SELECT date_trunc('minute', now()), mailing_id, 'sent', sum(amount) FROM change
        WHERE status IN ('sent', 'delivered') GROUP BY mailing_id
        UNION ALL
        SELECT date_trunc('minute', now()), mailing_id, status, amount FROM change
        WHERE status NOT IN ('pending', 'sending', 'sent');
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO status_count (mailing_id, status, amount)
        SELECT mailing_id, status, -count(*) FROM old_rows GROUP BY 1, 2;
    ELSIF TG_OP = 'UPDATE' THEN
        WITH change AS MATERIALIZED (
            SELECT mailing_id, status, sum(amount) AS amount FROM (
                SELECT mailing_id, status, -1 AS amount FROM old_rows
                UNION ALL
                SELECT mailing_id, status, 1 FROM new_rows
            ) AS moved GROUP BY 1, 2 HAVING sum(amount) <> 0
        ), counted AS (
            INSERT INTO status_count (mailing_id, status, amount) SELECT mailing_id, status, amount FROM change
        )
        INSERT INTO status_flow (minute, mailing_id, status, amount)
        SELECT date_trunc('minute', now()), mailing_id, 'sent', sum(amount) FROM change
        WHERE status IN ('sent', 'delivered') GROUP BY mailing_id HAVING sum(amount) > 0
        UNION ALL
        SELECT date_trunc('minute', now()), mailing_id, status, amount FROM change
        WHERE amount > 0 AND status NOT IN ('pending', 'sending', 'sent');
    ELSE
        DELETE FROM status_count;
    END IF;
    RETURN NULL;
END $$
"""
PREVIOUS_COUNT_FUNCTION = """
CREATE OR REPLACE FUNCTION count_message_statuses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO status_count (mailing_id, status, amount)
        SELECT mailing_id, status, count(*) FROM new_rows GROUP BY 1, 2;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO status_count (mailing_id, status, amount)
        SELECT mailing_id, status, -count(*) FROM old_rows GROUP BY 1, 2;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO status_count (mailing_id, status, amount)
        SELECT mailing_id, status, sum(amount) FROM (
            SELECT mailing_id, status, -1 AS amount FROM old_rows
            UNION ALL
            SELECT mailing_id, status, 1 FROM new_rows
        ) AS change GROUP BY 1, 2 HAVING sum(amount) <> 0;
    ELSE
        DELETE FROM status_count;
    END IF;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entry")),
    )
    op.create_index("ix_audit_entry_subject", "audit_entry", ["subject", "id"], unique=False)
    op.create_table(
        "report_delivery",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "sending",
                "sent",
                "failed",
                name="deliverystate",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(next_attempt_at IS NOT NULL) = (state = 'pending')", name=op.f("ck_report_delivery_pending_is_due")
        ),
        sa.CheckConstraint(
            "(lease_until IS NOT NULL) = (state = 'sending')", name=op.f("ck_report_delivery_sending_has_lease")
        ),
        sa.CheckConstraint("(sent_at IS NOT NULL) = (state = 'sent')", name=op.f("ck_report_delivery_sent_has_time")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_report_delivery")),
        sa.UniqueConstraint("kind", "period", "recipient", name=op.f("uq_report_delivery_kind_period_recipient")),
    )
    op.create_table(
        "report_recipient",
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("recipient", name=op.f("pk_report_recipient")),
    )
    op.create_table(
        "status_flow",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("mailing_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "pending",
                "sending",
                "sent",
                "delivered",
                "failed",
                "expired",
                "cancelled",
                name="messagestatus",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_status_flow")),
    )
    op.create_index("ix_status_flow_mailing_id", "status_flow", ["mailing_id", "minute"], unique=False)
    op.create_index(
        "ix_status_flow_minute",
        "status_flow",
        ["minute"],
        unique=False,
        postgresql_include=["mailing_id", "status", "amount"],
    )
    op.create_table(
        "user_account",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column(
            "role",
            sa.Enum("viewer", "operator", "admin", name="role", native_enum=False, create_constraint=True, length=16),
            nullable=False,
        ),
        sa.Column("language", sa.Text(), nullable=True),
        sa.Column("timezone", sa.Text(), nullable=True),
        sa.Column("session_version", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_login_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
        sa.UniqueConstraint("email", name=op.f("uq_user_account_email")),
    )
    op.execute(COUNT_FUNCTION)
    op.execute(
        "ALTER TABLE status_flow SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,"
        " autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 5000)"
    )


def downgrade() -> None:
    op.execute(PREVIOUS_COUNT_FUNCTION)
    op.drop_table("user_account")
    op.drop_index(
        "ix_status_flow_minute", table_name="status_flow", postgresql_include=["mailing_id", "status", "amount"]
    )
    op.drop_index("ix_status_flow_mailing_id", table_name="status_flow")
    op.drop_table("status_flow")
    op.drop_table("report_recipient")
    op.drop_table("report_delivery")
    op.drop_index("ix_audit_entry_subject", table_name="audit_entry")
    op.drop_table("audit_entry")
