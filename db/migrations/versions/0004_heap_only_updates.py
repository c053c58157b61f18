"""heap-only updates of messages: no index may name what the record of a sent message changes

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A message is updated twice on its way to `sent`. The first time it leaves `ix_message_due`; the second changes nothing
# that an index knows, and goes to the same page as long as that has room: rows are packed to this share of it.
FILLFACTOR = 60

# Ours always say why; this mends what was written by hand.
NAME_REASONS = """
    UPDATE message SET last_error = CASE status WHEN 'expired' THEN 'ended' WHEN 'cancelled' THEN 'cancelled'
                                    ELSE 'unknown' END
    WHERE status IN ('failed', 'expired', 'cancelled') AND last_error IS NULL
"""


def upgrade() -> None:
    op.execute(NAME_REASONS)
    op.create_check_constraint(
        op.f("ck_message_trouble_has_reason"),
        "message",
        "last_error IS NOT NULL OR status NOT IN ('failed', 'expired', 'cancelled')",
    )
    troubled = sa.text("last_error IS NOT NULL")
    op.create_index("ix_message_trouble", "message", ["mailing_id", "id"], postgresql_where=troubled)
    op.create_index("ix_message_reason", "message", ["mailing_id", "last_error", "id"], postgresql_where=troubled)
    op.drop_index("ix_message_failed_reason", table_name="message")
    op.drop_index("ix_message_mailing_status", table_name="message")
    op.execute(f"ALTER TABLE message SET (fillfactor = {FILLFACTOR})")


def downgrade() -> None:
    op.execute("ALTER TABLE message RESET (fillfactor)")
    op.create_index("ix_message_mailing_status", "message", ["mailing_id", "status", "id"])
    op.create_index(
        "ix_message_failed_reason",
        "message",
        ["mailing_id", "last_error", "id"],
        postgresql_where=sa.text("status = 'failed'"),
    )
    op.drop_index("ix_message_reason", table_name="message")
    op.drop_index("ix_message_trouble", table_name="message")
    op.drop_constraint(op.f("ck_message_trouble_has_reason"), "message")
