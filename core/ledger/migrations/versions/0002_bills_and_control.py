"""Estimates beside what bills made of them, pausing, deleting, checkpoints, and an index for a provider's jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
COLUMNS = (
    ("estimate_high_usd", "planned_low_usd", sa.Float()),
    ("planned_low_usd", "planned_high_usd", sa.Float()),
    ("cancel_requested_at", "pause_requested_at", MOMENT),
    ("pause_requested_at", "resumed_at", MOMENT),
    ("resumed_at", "deleted_at", MOMENT),
)


def upgrade() -> None:
    op.drop_index("ix_jobs_state", "jobs")
    # SQLite appends a new column behind the large ones, where reading it walks their overflow pages; a new table does not.
    sqlite = op.get_context().dialect.name == "sqlite"
    with op.batch_alter_table("jobs", recreate="always" if sqlite else "never") as jobs:
        for after, name, kind in COLUMNS:
            jobs.add_column(sa.Column(name, kind), insert_after=after if sqlite else None)
    # Until now no estimate was corrected by bills: what was shown is what was planned.
    op.execute("UPDATE jobs SET planned_low_usd = estimate_low_usd, planned_high_usd = estimate_high_usd")
    op.create_index("ix_jobs_state", "jobs", ["state", "created_at", "id"])
    op.create_index("ix_jobs_provider", "jobs", ["provider", "created_at", "id"])
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(16), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
    )
