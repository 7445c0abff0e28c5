-- What the migrations make of an empty SQLite file, so that a new ledger needs neither alembic nor SQLAlchemy. A test compares the two.
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE transitions (
    id INTEGER NOT NULL,
    job_id VARCHAR(16) NOT NULL,
    at DATETIME NOT NULL,
    state VARCHAR(16) NOT NULL,
    raw_state TEXT NOT NULL,
    note TEXT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE INDEX ix_transitions_job_id ON transitions (job_id, id);
CREATE TABLE events (
    id INTEGER NOT NULL,
    job_id VARCHAR(16) NOT NULL,
    event_id TEXT NOT NULL,
    at DATETIME NOT NULL,
    level VARCHAR(16) NOT NULL,
    message TEXT NOT NULL,
    metrics JSON NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT uq_events_job_id_event_id UNIQUE (job_id, event_id),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE INDEX ix_events_job_id_at ON events (job_id, at, id);
CREATE TABLE "jobs" (
    id VARCHAR(16) NOT NULL,
    "key" VARCHAR(64) NOT NULL,
    provider VARCHAR(64) NOT NULL,
    model TEXT NOT NULL,
    method VARCHAR(16) NOT NULL,
    state VARCHAR(16) NOT NULL,
    raw_state TEXT NOT NULL,
    step VARCHAR(16) NOT NULL,
    ref TEXT,
    tuned_model TEXT,
    message TEXT NOT NULL,
    progress FLOAT,
    seconds_left FLOAT,
    estimate_low_usd FLOAT,
    estimate_high_usd FLOAT,
    planned_low_usd FLOAT,
    planned_high_usd FLOAT,
    billed_usd FLOAT,
    billed_tokens BIGINT,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    create_called_at DATETIME,
    last_seen_at DATETIME,
    read_error_at DATETIME,
    read_error TEXT,
    cancel_requested_at DATETIME,
    pause_requested_at DATETIME,
    resumed_at DATETIME,
    deleted_at DATETIME,
    uploads JSON,
    sources JSON NOT NULL,
    spec JSON NOT NULL,
    "plan" JSON NOT NULL,
    PRIMARY KEY (id),
    UNIQUE ("key")
);
CREATE INDEX ix_jobs_created_at ON jobs (created_at, id);
CREATE INDEX ix_jobs_state ON jobs (state, created_at, id);
CREATE INDEX ix_jobs_provider ON jobs (provider, created_at, id);
CREATE TABLE checkpoints (
    job_id VARCHAR(16) NOT NULL,
    step INTEGER NOT NULL,
    model TEXT NOT NULL,
    metrics JSON NOT NULL,
    PRIMARY KEY (job_id, step),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE deployments (
    id VARCHAR(16) NOT NULL,
    "key" VARCHAR(64) NOT NULL,
    job_id VARCHAR(16) NOT NULL,
    provider VARCHAR(64) NOT NULL,
    model TEXT NOT NULL,
    mode VARCHAR(32) NOT NULL,
    state VARCHAR(16) NOT NULL,
    raw_state TEXT NOT NULL,
    step VARCHAR(16) NOT NULL,
    ref TEXT,
    call_as TEXT,
    message TEXT NOT NULL,
    low_usd_per_hour FLOAT,
    high_usd_per_hour FLOAT,
    committed_hours FLOAT NOT NULL,
    may_idle BOOLEAN NOT NULL,
    stands_on VARCHAR(16),
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    create_called_at DATETIME,
    ready_at DATETIME,
    last_seen_at DATETIME,
    read_error_at DATETIME,
    read_error TEXT,
    expires_at DATETIME,
    undeploy_requested_at DATETIME,
    ended_at DATETIME,
    "plan" JSON NOT NULL,
    PRIMARY KEY (id),
    UNIQUE ("key"),
    FOREIGN KEY(job_id) REFERENCES jobs (id),
    FOREIGN KEY(stands_on) REFERENCES deployments (id)
);
CREATE INDEX ix_deployments_state ON deployments (state, created_at, id);
CREATE INDEX ix_deployments_job_id ON deployments (job_id, created_at, id);
CREATE TABLE deployment_changes (
    id INTEGER NOT NULL,
    deployment_id VARCHAR(16) NOT NULL,
    at DATETIME NOT NULL,
    state VARCHAR(16) NOT NULL,
    raw_state TEXT NOT NULL,
    note TEXT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(deployment_id) REFERENCES deployments (id)
);
CREATE INDEX ix_deployment_changes_deployment_id ON deployment_changes (deployment_id, id);
CREATE TABLE looks (
    id INTEGER NOT NULL,
    at DATETIME NOT NULL,
    suite_sha256 VARCHAR(64) NOT NULL,
    suite TEXT NOT NULL,
    arm TEXT NOT NULL,
    provider VARCHAR(64) NOT NULL,
    model TEXT NOT NULL,
    rows INTEGER NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX ix_looks_suite ON looks (suite_sha256, id);
INSERT INTO alembic_version VALUES ('0004');
