"""Paid jobs are never lost and never made twice: kills, lost replies, several processes, random faults."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tuneport.core.engine import Engine
from tuneport.core.errors import TuneportError
from tuneport.core.job import JobState
from tuneport.core.ledger import Ledger, Step
from tuneport.tests.fake_provider import Clock, FakeProvider, FakeVendor, make_plan, make_spec, open_rows

ROOT = Path(__file__).parents[1] / ".dev"

PRELUDE = """
import json, os, signal, sys
from pathlib import Path
from sqlalchemy import event
from tuneport.core.engine import Engine
from tuneport.core.ledger import Ledger
from tuneport.tests.fake_provider import Clock, FakeProvider, FakeVendor, make_plan, make_spec, open_rows

folder, faults, kill_at = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
ledger = Ledger.open(folder / "ledger.db")
provider = FakeProvider(FakeVendor(folder / "vendor.json"), faults)
engine = Engine(ledger, lambda name: provider, open_rows, sleep=lambda seconds: None)
commits = 0

@event.listens_for(ledger.engine, "commit")
def kill_before_commit(connection):
    global commits
    commits += 1
    if commits == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
"""
SUBMIT = PRELUDE + "spec = make_spec(folder)\nprint(engine.submit(spec, make_plan(spec)).ref)\n"
RECONCILE = PRELUDE + """
print("ready", flush=True)
sys.stdin.readline()
print(",".join(found.outcome for found in engine.reconcile(resume=True)))
"""


def run(script: str, folder: Path, faults: str = "{}", kill_at: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder), faults, str(kill_at)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def engine_in(folder: Path, provider: FakeProvider | None = None) -> Engine:
    provider = provider or FakeProvider(FakeVendor(folder / "vendor.json"))
    return Engine(Ledger.open(folder / "ledger.db"), lambda _name: provider, open_rows, sleep=lambda _s: None)


def assert_one_job(folder: Path, engine: Engine) -> None:
    (made,) = FakeVendor(folder / "vendor.json").jobs
    (record,) = engine.ledger.latest()
    assert (record.ref, record.key, record.step) == (made["ref"], made["key"], Step.CREATED)
    assert engine.watch(record.id).state is JobState.SUCCEEDED
    assert len(FakeVendor(folder / "vendor.json").jobs) == 1


@pytest.mark.parametrize(
    ("faults", "made", "outcome"),
    [
        ('{"upload": ["kill_before"]}', 0, "resumed"),  # intent written
        ('{"upload": ["kill_after"]}', 0, "resumed"),  # uploaded, not recorded
        ('{"create": ["kill_before"]}', 0, "resumed"),  # create announced, not sent
        ('{"create": ["kill_after"]}', 1, "adopted"),  # made, not recorded
    ],
)
def test_kill_between_steps_then_reconcile_makes_exactly_one_job(tmp_path: Path, faults: str, made: int, outcome: str) -> None:
    process = run(SUBMIT, tmp_path, faults)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    assert len(FakeVendor(tmp_path / "vendor.json").jobs) == made
    engine = engine_in(tmp_path)
    cautious = engine.reconcile()[0].outcome
    assert cautious == ("adopted" if made else cautious)
    assert len(FakeVendor(tmp_path / "vendor.json").jobs) == made  # without resume nothing is spent
    if not made:
        assert [found.outcome for found in engine.reconcile(resume=True)] == [outcome]
    assert_one_job(tmp_path, engine)
    assert engine.reconcile(resume=True) == []


def test_a_job_that_the_vendor_lists_late_is_still_not_made_twice(tmp_path: Path) -> None:
    process = run(SUBMIT, tmp_path, '{"create": ["kill_after"]}')
    process.communicate(timeout=60)
    vendor = FakeVendor(tmp_path / "vendor.json")
    with vendor.open() as books:
        books["jobs"][0]["hidden"] = 4  # lookups that do not show it yet
    engine = engine_in(tmp_path)
    assert [found.outcome for found in engine.reconcile()] == ["unsettled"]
    assert [found.outcome for found in engine.reconcile(resume=True)] == ["resumed"]
    assert_one_job(tmp_path, engine)


def test_kill_in_every_commit_then_reconcile_makes_at_most_one_job(tmp_path: Path) -> None:
    survived = False
    for kill_at in range(1, 60):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        process = run(SUBMIT, folder, kill_at=kill_at)
        _, errors = process.communicate(timeout=60)
        survived = process.returncode == 0
        if survived:
            break
        assert process.returncode == -signal.SIGKILL, errors
        engine = engine_in(folder)
        engine.reconcile(resume=True)
        jobs = FakeVendor(folder / "vendor.json").jobs
        if engine.ledger.latest():
            assert_one_job(folder, engine)
        else:  # killed before the intent was on disk: nothing was sent
            assert jobs == []
    assert survived
    assert kill_at > 4


def test_two_processes_reconcile_at_once_and_make_one_job(tmp_path: Path) -> None:
    process = run(SUBMIT, tmp_path, '{"create": ["kill_before"]}')
    process.communicate(timeout=60)
    both = [run(RECONCILE, tmp_path) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=60)[0].strip() for process in both]
    assert outcomes.count("resumed") == 1, outcomes
    assert_one_job(tmp_path, engine_in(tmp_path))


def test_a_suspended_submitter_keeps_its_claim(tmp_path: Path) -> None:
    stop = SUBMIT.replace("spec = make_spec", "create = provider.create\n"
        "def stopped(*args):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return create(*args)\n"
        "provider.create = stopped\nspec = make_spec")  # fmt: skip
    process = run(stop, tmp_path)
    os.waitpid(process.pid, os.WUNTRACED)
    engine = engine_in(tmp_path)
    assert [found.outcome for found in engine.reconcile(resume=True)] == ["busy"]
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)
    assert_one_job(tmp_path, engine)


def test_ctrl_c_during_a_submission_loses_nothing(tmp_path: Path) -> None:
    slow = SUBMIT.replace("spec = make_spec", "import time\nprovider.upload = lambda *a: (print('uploading', flush=True), time.sleep(30))"
        "\nspec = make_spec")  # fmt: skip
    process = run(slow, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "uploading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    engine = engine_in(tmp_path)
    assert [found.outcome for found in engine.reconcile(resume=True)] == ["resumed"]
    assert_one_job(tmp_path, engine)


SEQUENCES = int(os.environ.get("TUNEPORT_FAULT_SEQUENCES", "60"))
LOST = ["reset_before", "reset_after", "die_before", "die_after", "rate_limit"]
FAULTS = st.sampled_from(["ok", "ok", "ok", *LOST, "refuse", "credentials"])
ACTIONS = st.sampled_from(["submit", "reconcile", "resume", "watch", "refresh", "cancel"])


@pytest.fixture(scope="module")
def new_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("new") / "ledger.db"
    Ledger.open(path).close()
    return path


class Died(BaseException):
    """Stands for a kill: no code of the engine may catch it."""


class DyingProvider(FakeProvider):
    """A FakeProvider whose kills end only the call chain, so that many sequences fit in one process."""

    def _call(self, call):  # type: ignore[no-untyped-def]
        script = self.faults.get(call, [])
        if script and script[0] == "die_before":
            script.pop(0)
            raise Died
        if script and script[0] == "die_after":
            script[0] = "ok"
            inner = super()._call(call)
            outer = self

            class DieAfter:
                def __enter__(self):  # type: ignore[no-untyped-def]
                    return inner.__enter__()

                def __exit__(self, *details):  # type: ignore[no-untyped-def]
                    inner.__exit__(*details)
                    outer.died = True
                    raise Died

            return DieAfter()
        return super()._call(call)


# Without shrinking, which would take minutes here: the sequences are short as they are.
@settings(max_examples=SEQUENCES, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    faults=st.fixed_dictionaries(
        {call: st.lists(FAULTS, max_size=3) for call in ("upload", "find", "poll", "cancel")}
        | {"create": st.lists(st.sampled_from(LOST) | FAULTS, max_size=3)}
    ),
    actions=st.lists(ACTIONS, min_size=1, max_size=6),
    lag=st.integers(0, 3),
)
def test_random_faults_and_kills_leave_no_duplicate_and_no_orphan(
    new_ledger: Path, faults: dict[str, list[str]], actions: list[str], lag: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(new_ledger, folder)
        vendor = FakeVendor(folder / "vendor.json", list_lag=lag)
        clock = Clock()

        def engine_of(provider: FakeProvider) -> Engine:
            return Engine(Ledger.open(folder / "ledger.db", now=clock.now), lambda _name: provider, open_rows, sleep=clock.sleep)

        engine = engine_of(DyingProvider(vendor, faults))
        spec = make_spec(folder)
        for action in ["submit", *actions]:
            known = engine.ledger.latest()
            try:
                match action:
                    case "submit":
                        engine.submit(spec, make_plan(spec))
                    case "reconcile":
                        engine.reconcile()
                    case "watch" if known:
                        engine.watch(known[0].id)
                    case "resume" if known:
                        engine.resume(known[-1].id)
                    case "refresh" if known:
                        engine.refresh(known[0].id)
                    case "cancel" if known:
                        engine.cancel(known[-1].id)
            except (TuneportError, Died):
                pass
        calm = engine_of(FakeProvider(vendor))
        calm.reconcile(resume=True)
        assert calm.ledger.unfinished_submissions() == []
        made, recorded = vendor.jobs, {r.key: r for r in calm.ledger.latest(limit=None)}
        assert len({job["key"] for job in made}) == len(made), "a job was made twice"
        assert {job["key"]: job["ref"] for job in made} == {key: r.ref for key, r in recorded.items() if r.ref is not None}, "an orphan"
        assert all(r.state in (JobState.FAILED, JobState.CANCELLED) for r in recorded.values() if r.ref is None)


def test_a_claim_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    hold = PRELUDE + "with ledger.claim('j-1') as held:\n    print('held', flush=True)\n    sys.stdin.readline()\n"
    process = run(hold, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    ledger = Ledger.open(tmp_path / "ledger.db")
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
