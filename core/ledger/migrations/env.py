"""Run by alembic: migrates over the connection that ``tuneport.core.ledger.schema`` hands in, in one transaction."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # SQLite can roll back schema changes (alembic assumes otherwise because of the driver's own transaction handling,
    # which database.py switches off), so a crash half-way leaves the old ledger whole.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
