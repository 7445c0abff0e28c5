"""The ledger: the durable store of jobs, their history and their events.

    database.py     opens SQLite or PostgreSQL, migrates, turns database errors into LedgerError
    locks.py        claims on a job that end with the process that holds them
    tables.py       the schema;  migrations/  how older ledgers get there (alembic)
    records.py      what is read back
    store.py        Ledger: every read and write of jobs
    deployments.py  and of deployments (``Ledger.deployments``)
    looks.py        and of looks at sealed test sets (``Ledger.looks``)
"""

from tuneport.core.ledger.records import DeploymentChange, DeploymentRecord, JobRecord, LookRecord, Step, Transition
from tuneport.core.ledger.store import Ledger

__all__ = ["DeploymentChange", "DeploymentRecord", "JobRecord", "Ledger", "LookRecord", "Step", "Transition"]
