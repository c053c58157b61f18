"""batches planned when their messages are written: these are then changed once on their way, not twice

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# An update stays on the row's page, and out of the indexes, if there is room. Now that most messages are changed once,
# half a page is room for all.
FILLFACTOR = 50
FILLFACTOR_BEFORE = 60

# Every message waits by itself, since it was written, and the counters, which knew that all along, stay as they are.
UNPLAN = """
    UPDATE message SET status = 'pending', batch_id = NULL, next_attempt_at = created_at
    WHERE id IN (SELECT unnest(message_ids) FROM planned_batch)
"""
KEEP_COUNTS = """
    INSERT INTO status_count (mailing_id, status, amount)
    SELECT mailing_id, change.status, change.step * sum(cardinality(message_ids))
    FROM planned_batch, (VALUES ('pending', -1), ('sending', 1)) AS change (status, step)
    GROUP BY mailing_id, change.status, change.step
"""


def upgrade() -> None:
    op.create_table(
        "planned_batch",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("mailing_id", sa.BigInteger(), nullable=False),
        sa.Column("message_ids", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_planned_batch")),
    )
    op.create_index("ix_planned_batch_mailing_id", "planned_batch", ["mailing_id", "id"])
    # Rows come and go as in `batch`: vacuum by count.
    op.execute(
        "ALTER TABLE planned_batch SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,"
        " autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000)"
    )
    op.execute(f"ALTER TABLE message SET (fillfactor = {FILLFACTOR})")


def downgrade() -> None:
    op.execute(f"ALTER TABLE message SET (fillfactor = {FILLFACTOR_BEFORE})")
    op.execute(UNPLAN)
    op.execute(KEEP_COUNTS)
    op.drop_table("planned_batch")
