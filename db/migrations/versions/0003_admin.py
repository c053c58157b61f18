"""admin: log-in attempts, test mailings, answer times, indexes for searches

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "login_attempt",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_attempt")),
    )
    op.create_index("ix_login_attempt_account", "login_attempt", ["account", "at"])
    op.create_index("ix_login_attempt_address", "login_attempt", ["address", "at"])
    op.add_column("mailing", sa.Column("is_test", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column(
        "gateway_tally",
        sa.Column("timings", postgresql.ARRAY(sa.BigInteger()), server_default="{}", nullable=False),
    )
    op.create_index("ix_client_tags", "client", ["tags"], postgresql_using="gin")
    op.create_index("ix_client_opted_out", "client", ["id"], postgresql_where=sa.text("opted_out_at IS NOT NULL"))
    op.create_index(
        "ix_client_reachable", "client", ["operator_code", "id"], postgresql_where=sa.text("opted_out_at IS NULL")
    )
    op.create_index(
        "ix_message_failed_reason",
        "message",
        ["mailing_id", "last_error", "id"],
        postgresql_where=sa.text("status = 'failed'"),
    )
    op.create_index("ix_audit_entry_actor", "audit_entry", ["actor", "id"])
    op.create_index("ix_audit_entry_action", "audit_entry", ["action", "id"])


def downgrade() -> None:
    op.drop_index("ix_audit_entry_action", table_name="audit_entry")
    op.drop_index("ix_audit_entry_actor", table_name="audit_entry")
    op.drop_index("ix_message_failed_reason", table_name="message")
    op.drop_index("ix_client_opted_out", table_name="client")
    op.drop_index("ix_client_reachable", table_name="client")
    op.drop_index("ix_client_tags", table_name="client")
    op.drop_column("gateway_tally", "timings")
    op.drop_column("mailing", "is_test")
    op.drop_table("login_attempt")
