"""Deployments of tuned models, and their history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("job_id", sa.String(16), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("mode", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("raw_state", sa.Text, nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("ref", sa.Text),
        sa.Column("call_as", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("low_usd_per_hour", sa.Float),
        sa.Column("high_usd_per_hour", sa.Float),
        sa.Column("committed_hours", sa.Float, nullable=False),
        sa.Column("may_idle", sa.Boolean, nullable=False),
        sa.Column("stands_on", sa.String(16), sa.ForeignKey("deployments.id")),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("create_called_at", MOMENT),
        sa.Column("ready_at", MOMENT),
        sa.Column("last_seen_at", MOMENT),
        sa.Column("read_error_at", MOMENT),
        sa.Column("read_error", sa.Text),
        sa.Column("expires_at", MOMENT),
        sa.Column("undeploy_requested_at", MOMENT),
        sa.Column("ended_at", MOMENT),
        sa.Column("plan", sa.JSON, nullable=False),
    )
    op.create_index("ix_deployments_state", "deployments", ["state", "created_at", "id"])
    op.create_index("ix_deployments_job_id", "deployments", ["job_id", "created_at", "id"])
    op.create_table(
        "deployment_changes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("deployment_id", sa.String(16), sa.ForeignKey("deployments.id"), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("raw_state", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_index("ix_deployment_changes_deployment_id", "deployment_changes", ["deployment_id", "id"])
