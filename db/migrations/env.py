"""How Alembic runs here: called by Flask-Migrate inside an application context (`python -m db upgrade`)."""

from alembic import context
from flask import current_app

# Any constant: all that counts is that every migrating container asks for the same lock.
MIGRATION_LOCK = 727001

database = current_app.extensions["migrate"].db


def run() -> None:
    """Apply migrations in one transaction, one process at a time however many containers start at once."""
    with database.engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=database.metadatas[None],
            compare_server_default=False,
            transaction_per_migration=False,
        )
        with context.begin_transaction():
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            # A migration that waits for a busy table must not make everyone else wait behind it.
            connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            context.run_migrations()


run()
