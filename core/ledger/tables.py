"""The ledger's schema at its newest version; ``migrations/versions`` holds the way there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, kept in UTC; SQLite stores it without a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 -- SQLAlchemy's signature
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("key", String(64), nullable=False, unique=True),  # the idempotency key that travels to the vendor
    Column("provider", String(64), nullable=False),
    Column("model", Text, nullable=False),  # base model, as planned
    Column("method", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("raw_state", Text, nullable=False),
    Column("step", String(16), nullable=False),  # records.Step: how far the submission has come
    Column("ref", Text),  # the vendor's id
    Column("tuned_model", Text),
    Column("message", Text, nullable=False),
    Column("progress", Float),  # 0..1
    Column("seconds_left", Float),
    Column("estimate_low_usd", Float),  # as shown to the user; both NULL: unknown
    Column("estimate_high_usd", Float),
    Column("planned_low_usd", Float),  # the plan's own, before bills corrected it
    Column("planned_high_usd", Float),
    Column("billed_usd", Float),
    Column("billed_tokens", BigInteger),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),  # last change of any kind
    Column("create_called_at", UtcDateTime),  # set just before Provider.create
    Column("last_seen_at", UtcDateTime),  # last good read of the vendor
    Column("read_error_at", UtcDateTime),  # set while reads fail; NULL again after a good one
    Column("read_error", Text),
    Column("cancel_requested_at", UtcDateTime),
    Column("pause_requested_at", UtcDateTime),  # last time; so are the next two
    Column("resumed_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),  # what the job left at the vendor was removed
    # Large columns last: SQLite then lists jobs without walking their overflow pages.
    Column("uploads", JSON),  # {role: file id}; NULL until uploaded
    Column("sources", JSON, nullable=False),  # {path: [bytes, mtime in ns]} of the data files when submitted
    Column("spec", JSON, nullable=False),
    Column("plan", JSON, nullable=False),
    Index("ix_jobs_created_at", "created_at", "id"),
    Index("ix_jobs_state", "state", "created_at", "id"),
    Index("ix_jobs_provider", "provider", "created_at", "id"),
)

transitions = Table(
    "transitions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(16), ForeignKey("jobs.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("raw_state", Text, nullable=False),
    Column("note", Text, nullable=False),
    Index("ix_transitions_job_id", "job_id", "id"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(16), ForeignKey("jobs.id"), nullable=False),
    Column("event_id", Text, nullable=False),  # the provider's id of the event
    Column("at", UtcDateTime, nullable=False),
    Column("level", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    UniqueConstraint("job_id", "event_id", name="uq_events_job_id_event_id"),
    Index("ix_events_job_id_at", "job_id", "at", "id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", String(16), ForeignKey("jobs.id"), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("model", Text, nullable=False),  # what to call, or to continue from
    Column("metrics", JSON, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("key", String(64), nullable=False, unique=True),  # the idempotency key that travels to the vendor
    Column("job_id", String(16), ForeignKey("jobs.id"), nullable=False),
    Column("provider", String(64), nullable=False),
    Column("model", Text, nullable=False),  # the tuned model, as the vendor calls it
    Column("mode", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("raw_state", Text, nullable=False),
    Column("step", String(16), nullable=False),  # records.Step, without *uploaded*
    Column("ref", Text),
    Column("call_as", Text),
    Column("message", Text, nullable=False),
    Column("low_usd_per_hour", Float),  # both NULL: unknown
    Column("high_usd_per_hour", Float),
    Column("committed_hours", Float, nullable=False),
    Column("may_idle", Boolean, nullable=False),
    Column("stands_on", String(16), ForeignKey("deployments.id")),  # the deployment that it shares
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("create_called_at", UtcDateTime),  # set just before Deployer.create
    Column("ready_at", UtcDateTime),  # first seen serving
    Column("last_seen_at", UtcDateTime),
    Column("read_error_at", UtcDateTime),
    Column("read_error", Text),
    Column("expires_at", UtcDateTime),  # when it shall be undeployed; NULL: never by itself
    Column("undeploy_requested_at", UtcDateTime),
    Column("ended_at", UtcDateTime),  # seen gone, or refused
    Column("plan", JSON, nullable=False),
    Index("ix_deployments_state", "state", "created_at", "id"),
    Index("ix_deployments_job_id", "job_id", "created_at", "id"),
)

deployment_changes = Table(
    "deployment_changes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("deployment_id", String(16), ForeignKey("deployments.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("raw_state", Text, nullable=False),
    Column("note", Text, nullable=False),
    Index("ix_deployment_changes_deployment_id", "deployment_id", "id"),
)

looks = Table(
    "looks",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("suite_sha256", String(64), nullable=False),  # of prompts and expected answers
    Column("suite", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("provider", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("rows", Integer, nullable=False),
    Index("ix_looks_suite", "suite_sha256", "id"),
)
