"""Paid jobs are never lost and never made twice: real processes that are killed, suspended, interrupted, or run at once."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from tuneport.core.engine import Engine, Reconciled
from tuneport.core.job import JobState
from tuneport.core.ledger import Ledger, Step
from tuneport.providers.conformance.forks import Forks
from tuneport.tests.fake_provider import FakeProvider, FakeVendor, open_rows
from tuneport.tests.stores import STORES, place

ROOT = Path(__file__).parents[1] / ".dev"

PRELUDE = """
import json, os, signal, sys
from pathlib import Path
from tuneport.core.engine import Engine
from tuneport.core.ledger import Ledger
from tuneport.tests.fake_provider import FakeProvider, FakeVendor, make_plan, make_spec, open_rows
from tuneport.tests.stores import before_commits

folder, where, faults, kill_at = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
ledger = Ledger.open(where)
provider = FakeProvider(FakeVendor(folder / "vendor.json"), faults)
engine = Engine(ledger, lambda name, options: provider, open_rows, sleep=lambda seconds: None)
commits = 0

def count():
    global commits
    commits += 1
    if commits == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

before_commits(ledger.database, count)
"""
SUBMIT = PRELUDE + "spec = make_spec(folder)\nprint(engine.submit(spec, make_plan(spec)).ref)\n"
RECONCILE = PRELUDE + """
print("ready", flush=True)
sys.stdin.readline()
print(",".join(found.outcome for found in engine.reconcile(resume=True)))
"""


SUBMIT_FIVE = PRELUDE + """
print("ready", flush=True)
sys.stdin.readline()
spec = make_spec(folder)
print(",".join(engine.submit(spec, make_plan(spec)).ref for _ in range(5)))
"""


class Place:
    """A folder with a vendor, and a ledger somewhere."""

    def __init__(self, folder: Path, where: str) -> None:
        self.folder, self.where = folder, where
        self._ledger: Ledger | None = None

    def run(self, script: str, faults: str = "{}", kill_at: int = 0) -> subprocess.Popen[str]:
        return run(script, self.folder, self.where, faults, kill_at)

    def submit(self, faults: str = "{}", kill_at: int = 0) -> tuple[int | None, str]:
        """The return code and the errors of a process that submits once."""
        process = forks().start(f"{__name__}:script", SUBMIT, str(self.folder), self.where, faults, str(kill_at), cwd=ROOT, env=os.environ)
        _, errors = process.communicate()
        return process.returncode, errors

    @property
    def made(self) -> list[dict[str, object]]:
        return FakeVendor(self.folder / "vendor.json").jobs

    def engine(self) -> Engine:
        self._ledger = self._ledger or Ledger.open(self.where)
        provider = FakeProvider(FakeVendor(self.folder / "vendor.json"))
        return Engine(self._ledger, lambda _name, _options: provider, open_rows, sleep=lambda _s: None)

    def reconcile(self, *, resume: bool = False) -> list[str]:
        """The outcomes, once no claim of a killed process is left: the database's server ends its session in its own time."""
        deadline = time.monotonic() + 20
        while True:
            found: list[Reconciled] = self.engine().reconcile(resume=resume)
            if time.monotonic() > deadline or not any(one.outcome == "busy" for one in found):
                return [one.outcome for one in found]
            time.sleep(0.02)

    def assert_one_job(self) -> None:
        engine = self.engine()
        (made,) = self.made
        (record,) = engine.ledger.latest()
        assert (record.ref, record.key, record.step) == (made["ref"], made["key"], Step.CREATED)
        assert engine.watch(record.id).state is JobState.SUCCEEDED
        assert len(self.made) == 1

    def close(self) -> None:
        if self._ledger:
            self._ledger.close()


@pytest.fixture(params=STORES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place(request.param, tmp_path) as where:
        site = Place(tmp_path, where)
        yield site
        site.close()


def script() -> None:
    """In a fork: the script that the first argument is, with the others as its own."""
    exec(sys.argv.pop(1), {})


@lru_cache(maxsize=1)
def forks() -> Forks:
    made = Forks(__name__, "psycopg", *(f"tuneport.core.{name}" for name in ("accounts", "calibration")))
    atexit.register(made.close)
    return made


def run(script: str, folder: Path, where: str, faults: str = "{}", kill_at: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder), where, faults, str(kill_at)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_at_once(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let processes go that wait for a line, and return what each printed."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), [errors for _, errors in found]
    return [out.strip() for out, _ in found]


@pytest.mark.parametrize(
    ("faults", "made", "outcome"),
    [
        ('{"upload": ["kill_before"]}', 0, "resumed"),  # intent written
        ('{"upload": ["kill_after"]}', 0, "resumed"),  # uploaded, not recorded
        ('{"create": ["kill_before"]}', 0, "resumed"),  # create announced, not sent
        ('{"create": ["kill_after"]}', 1, "adopted"),  # made, not recorded
    ],
)
def test_kill_between_steps_then_reconcile_makes_exactly_one_job(site: Place, faults: str, made: int, outcome: str) -> None:
    code, errors = site.submit(faults)
    assert code == -signal.SIGKILL, errors
    assert len(site.made) == made
    (cautious,) = site.reconcile()
    assert cautious == ("adopted" if made else cautious)
    assert len(site.made) == made  # without resume nothing is spent
    if not made:
        assert site.reconcile(resume=True) == [outcome]
    site.assert_one_job()
    assert site.reconcile(resume=True) == []


def test_a_job_that_the_vendor_lists_late_is_still_not_made_twice(site: Place) -> None:
    site.submit('{"create": ["kill_after"]}')
    with FakeVendor(site.folder / "vendor.json").open() as books:
        books["jobs"][0]["hidden"] = 4  # lookups that do not show it yet
    assert site.reconcile() == ["unsettled"]
    assert site.reconcile(resume=True) == ["resumed"]
    site.assert_one_job()


@pytest.mark.parametrize("store", STORES)
def test_kill_in_every_commit_then_reconcile_makes_at_most_one_job(store: str, tmp_path: Path) -> None:
    survived = False
    for kill_at in range(1, 60):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        with place(store, folder) as where:
            site = Place(folder, where)
            code, errors = site.submit(kill_at=kill_at)
            survived = code == 0
            if survived:
                break
            assert code == -signal.SIGKILL, errors
            site.reconcile(resume=True)
            if site.engine().ledger.latest():
                site.assert_one_job()
            else:  # killed before the intent was on disk: nothing was sent
                assert site.made == []
            site.close()
    assert survived
    assert kill_at > 4


def test_two_processes_reconcile_at_once_and_make_one_job(site: Place) -> None:
    site.submit('{"create": ["kill_before"]}')
    outcomes = start_at_once([site.run(RECONCILE) for _ in range(2)])
    assert outcomes.count("resumed") == 1, outcomes
    site.assert_one_job()


def test_two_processes_submit_at_once_on_one_ledger(site: Place) -> None:
    refs = ",".join(start_at_once([site.run(SUBMIT_FIVE) for _ in range(2)])).split(",")
    made = {job["key"]: job["ref"] for job in site.made}
    assert sorted(refs) == sorted(made.values())
    assert len(set(refs)) == len(made) == 10
    assert {record.key: record.ref for record in site.engine().ledger.latest()} == made


def test_a_suspended_submitter_keeps_its_claim(site: Place) -> None:
    stop = SUBMIT.replace("spec = make_spec", "create = provider.create\n"
        "def stopped(*args):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return create(*args)\n"
        "provider.create = stopped\nspec = make_spec")  # fmt: skip
    process = site.run(stop)
    os.waitpid(process.pid, os.WUNTRACED)
    assert [found.outcome for found in site.engine().reconcile(resume=True)] == ["busy"]
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)
    site.assert_one_job()


def test_ctrl_c_during_a_submission_loses_nothing(site: Place) -> None:
    slow = SUBMIT.replace("spec = make_spec", "import time\nprovider.upload = lambda *a: (print('uploading', flush=True), time.sleep(30))"
        "\nspec = make_spec")  # fmt: skip
    process = site.run(slow)
    assert process.stdout is not None
    assert process.stdout.readline() == "uploading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert site.reconcile(resume=True) == ["resumed"]
    site.assert_one_job()


def test_a_claim_ends_with_the_process_that_held_it(site: Place) -> None:
    hold = PRELUDE + "with ledger.claim('j-1') as held:\n    print('held', flush=True)\n    sys.stdin.readline()\n"
    process = site.run(hold)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    ledger = site.engine().ledger
    with ledger.claim("j-1") as mine:
        assert mine is None
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with ledger.claim("j-1") as mine:
            if mine is not None:
                return
    pytest.fail("the claim outlived its process")
