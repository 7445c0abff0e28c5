"""A client in a process of its own, through the real engine, ledger and SDK, so that a test can kill it at any request.

    python -m tuneport.providers.conformance.process package.module:ProviderClass FOLDER

submits the spec and plan that stand in FOLDER (``start`` writes them) over the ledger there, and prints the job's ref.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tuneport.core.plan import Plan
from tuneport.core.provider import Provider
from tuneport.core.spec import JobSpec

LEDGER = "ledger.db"


def load_provider(target: str, **options: Any) -> Provider:
    """The provider of "package.module:Class", made with these options."""
    module, _, name = target.partition(":")
    provider: Provider = getattr(import_module(module), name)(**options)
    return provider


def start(target: str, folder: Path, spec: JobSpec, plan: Plan, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a process that submits this plan once."""
    (folder / "spec.json").write_text(spec.model_dump_json())
    (folder / "plan.json").write_text(plan.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", __name__, target, str(folder)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main(target: str, folder: Path) -> None:
    """Submit the plan in ``folder``."""
    from tuneport.core.data.load import open_rows  # noqa: PLC0415 -- only in the process of its own
    from tuneport.core.engine import Engine  # noqa: PLC0415
    from tuneport.core.ledger import Ledger  # noqa: PLC0415

    spec = JobSpec.model_validate(json.loads((folder / "spec.json").read_text()))
    plan = Plan.model_validate_json((folder / "plan.json").read_text())
    provider = load_provider(target)

    def get_provider(_name: str, _options: Any = None) -> Provider:
        return provider

    engine = Engine(Ledger.open(folder / LEDGER), get_provider, lambda job: partial(open_rows, job))
    sys.stdout.write(f"{engine.submit(spec, plan).ref}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
