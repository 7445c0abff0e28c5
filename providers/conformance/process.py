"""A client in a process of its own, through the real engine, ledger and SDK, so that a test can kill it at any request.

It submits the spec and plan that stand in a folder (``start`` writes them) over the ledger there, and prints the job's ref. Where a
plan of a deployment stands there (``start_deploying``), it deploys the model of that job instead, and prints the deployment's ref.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tuneport.core.deployment_plan import DeploymentPlan
from tuneport.core.plan import Plan
from tuneport.core.provider import Provider
from tuneport.core.spec import JobSpec
from tuneport.providers.conformance.forks import Forked, Forks

LEDGER = "ledger.db"
_OURS = (__name__, *(f"tuneport.core.{name}" for name in ("accounts", "calibration", "data.load", "engine", "ledger")))


class Client(NamedTuple):
    """A provider's class, "package.module:Class", and the modules that it calls its vendor with."""

    target: str
    sdk_modules: tuple[str, ...]


def load_provider(target: str, **options: Any) -> Provider:
    """The provider of "package.module:Class", made with these options."""
    module, _, name = target.partition(":")
    provider: Provider = getattr(import_module(module), name)(**options)
    return provider


def start(client: Client, folder: Path, spec: JobSpec, plan: Plan, environment: dict[str, str]) -> Forked:
    """Start a process that submits this plan once."""
    (folder / "spec.json").write_text(spec.model_dump_json())
    (folder / "plan.json").write_text(plan.model_dump_json())
    return _process(client, folder, environment)


def start_deploying(client: Client, folder: Path, job_id: str, plan: DeploymentPlan, environment: dict[str, str]) -> Forked:
    """Start a process that deploys the model of a job in the folder's ledger once."""
    (folder / "deployment.json").write_text(json.dumps({"job": job_id, "plan": plan.model_dump(mode="json")}))
    return _process(client, folder, environment)


def _process(client: Client, folder: Path, environment: dict[str, str]) -> Forked:
    return _forks(client).start(f"{__name__}:main", client.target, str(folder), cwd=folder, env={**os.environ, **environment})


@lru_cache(maxsize=1)
def _forks(client: Client) -> Forks:
    made = Forks(*_OURS, client.target.partition(":")[0], *client.sdk_modules)
    atexit.register(made.close)
    return made


def main() -> None:
    """Carry out the plan in the folder, for the provider, that the arguments name."""
    target, folder = sys.argv[1], Path(sys.argv[2])
    from tuneport.core.data.load import open_rows  # noqa: PLC0415 -- only in the process of its own
    from tuneport.core.engine import Engine  # noqa: PLC0415
    from tuneport.core.ledger import Ledger  # noqa: PLC0415

    provider = load_provider(target)

    def get_provider(_name: str, _options: Any = None) -> Provider:
        return provider

    engine = Engine(Ledger.open(folder / LEDGER), get_provider, lambda job: partial(open_rows, job))
    if (folder / "deployment.json").exists():
        wanted = json.loads((folder / "deployment.json").read_text())
        record = engine.deployments.deploy(wanted["job"], DeploymentPlan.model_validate(wanted["plan"]))
        sys.stdout.write(f"{record.ref}\n")
        return
    spec = JobSpec.model_validate(json.loads((folder / "spec.json").read_text()))
    plan = Plan.model_validate_json((folder / "plan.json").read_text())
    sys.stdout.write(f"{engine.submit(spec, plan).ref}\n")

