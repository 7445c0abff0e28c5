"""The ledger: the durable store of jobs, their history and their events.

    database.py     transactions in SQLite or PostgreSQL; turns their errors into LedgerError
    schema.py       brings a ledger to the newest schema, which migrations/ holds (alembic)
    locks.py        claims on a job that end with the process that holds them
    records.py      what is read back;  rows.py  how a row becomes a record
    store.py        Ledger: every read and write of jobs
    deployments.py  and of deployments (``Ledger.deployments``)
    looks.py        and of looks at sealed test sets (``Ledger.looks``)
"""

from tuneport.core.ledger.records import DeploymentChange, DeploymentRecord, JobRecord, LookRecord, Step, Transition
from tuneport.core.ledger.store import Ledger

__all__ = ["DeploymentChange", "DeploymentRecord", "JobRecord", "Ledger", "LookRecord", "Step", "Transition"]
