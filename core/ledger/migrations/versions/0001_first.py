"""The first ledger: jobs, transitions, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("raw_state", sa.Text, nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("ref", sa.Text),
        sa.Column("tuned_model", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("progress", sa.Float),
        sa.Column("seconds_left", sa.Float),
        sa.Column("estimate_low_usd", sa.Float),
        sa.Column("estimate_high_usd", sa.Float),
        sa.Column("billed_usd", sa.Float),
        sa.Column("billed_tokens", sa.BigInteger),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("create_called_at", MOMENT),
        sa.Column("last_seen_at", MOMENT),
        sa.Column("read_error_at", MOMENT),
        sa.Column("read_error", sa.Text),
        sa.Column("cancel_requested_at", MOMENT),
        sa.Column("uploads", sa.JSON),
        sa.Column("sources", sa.JSON, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at", "id"])
    op.create_index("ix_jobs_state", "jobs", ["state", "created_at"])
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(16), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("raw_state", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_index("ix_transitions_job_id", "transitions", ["job_id", "id"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(16), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.UniqueConstraint("job_id", "event_id", name="uq_events_job_id_event_id"),
    )
    op.create_index("ix_events_job_id_at", "events", ["job_id", "at", "id"])
