"""Timings of the ledger and the engine with 100,000 jobs, and the memory of watching 500 jobs at once. Run it, or ``make bench``.

Each row is (what, seconds, ratio to its reference in the same run, limit or None). Rows of memory say MB and count megabytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

JOBS = 100_000
WATCHED = 500
Row = tuple[str, float, float, float | None]


def best(call: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of several runs in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def listing(folder: Path, store: str) -> list[Row]:
    """What commands ask of a ledger with 100,000 jobs."""
    from tuneport.core.calibration import totals
    from tuneport.core.engine import Engine
    from tuneport.core.job import JobState
    from tuneport.core.ledger import Ledger
    from tuneport.tests.fake_provider import Clock, FakeProvider, FakeVendor, make_plan, make_spec, open_rows
    from tuneport.tests.stores import place
    from tuneport.tests.test_ledger_stores import fill

    with place(store, folder) as where:
        ledger = Ledger.open(where)
        fill(ledger, folder, JOBS)
        provider = FakeProvider(FakeVendor(None))
        engine = Engine(ledger, lambda _name, _options: provider, open_rows, sleep=Clock().sleep)
        with ledger.database.transaction() as connection:
            reference = best(lambda: connection.run("SELECT id, state FROM jobs ORDER BY created_at DESC LIMIT 50"))
        spec = make_spec(folder)
        plan = make_plan(spec)

        def reopened() -> object:
            again = Ledger.open(where)
            found = again.latest(limit=50)
            again.close()
            return found

        calls: list[tuple[str, Callable[[], object], float | None]] = [
            ("open the ledger, list the latest 50", reopened, 0.5),
            ("list the latest 50 of one provider", lambda: ledger.latest(limit=50, provider="rare"), 0.5),
            ("list the running ones", lambda: ledger.latest(limit=50, states=[JobState.RUNNING]), 0.5),
            ("find unfinished submissions", ledger.unfinished_submissions, 0.5),
            ("estimate beside bill of 50, and totals", lambda: totals(engine.costs()), 0.5),
            ("calibration from a provider's bills", lambda: engine.calibration("rare"), 0.5),
            ("submit one more", lambda: engine.submit(spec, plan), 0.5),
        ]
        rows: list[Row] = [(f"{store}: 50 rows by SQL alone, of {JOBS:,} jobs (reference)", reference, 1.0, None)]
        for name, call, limit in calls:
            seconds = best(call)
            rows.append((f"{store}: {name}", seconds, seconds / reference, limit))
        ledger.close()
        if store == "sqlite":
            rows += command(folder, where)
    return rows


def command(folder: Path, where: str) -> list[Row]:
    """The command itself, as the user starts it; in seconds of processor time, which other work on the machine does not lengthen."""

    def processor(arguments: list[str], **named: Any) -> float:
        before = os.times()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, **named)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    start = min(processor([sys.executable, "-c", "import typer, rich.table"]) for _ in range(5))
    tuneport = [sys.executable, "-c", "from tuneport.cli import main; main()", "jobs"]
    environment = {**os.environ, "TUNEPORT_LEDGER": where, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first run compiles, as after an installation
    seconds = min(processor(tuneport, env=environment, cwd=folder) for _ in range(5))
    return [
        ("python -c 'import typer, rich.table' (reference)", start, 1.0, None),
        (f"tuneport jobs, {JOBS:,} jobs, from start to exit", seconds, seconds / start, 0.5),
    ]


WATCHER = """
import sys, time
from pathlib import Path
from tuneport.core.engine import Engine
from tuneport.core.ledger import Ledger
from tuneport.providers import registry
from tuneport.tests.fake_provider import Clock

def peak():  # of this program alone: ru_maxrss would count the parent that forked it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

clock = Clock()
ledger = Ledger.open(sys.argv[1], now=clock.now)
engine = Engine(ledger, registry.get, lambda spec: None, sleep=clock.sleep, clock=clock.seconds)
ids = [record.id for record in ledger.latest(limit=None)]
engine.job(ids[0]).refresh()
before, looks = peak(), []

def note(update):
    looks.append(clock.seconds())
    if len(looks) == len(ids):
        print("swept", flush=True)
        sys.stdin.readline()

began = time.perf_counter()
jobs = engine.watch_many(ids, note)
assert all(job.state == "succeeded" for job in jobs), {str(job.state) for job in jobs}
print(len(looks), time.perf_counter() - began, clock.seconds(), before, peak())
"""


@contextmanager
def openai_jobs(folder: Path, count: int) -> Iterator[tuple[Path, Callable[[], None], dict[str, str]]]:
    """A ledger with jobs that run at a fake OpenAI (over HTTP, met by OpenAI's own SDK), and the call that ends them all."""
    from tuneport.core.data.load import load_job_data, open_rows
    from tuneport.core.ledger import Ledger
    from tuneport.core.options import OpenAIOptions
    from tuneport.core.plan import compile_for
    from tuneport.core.spec import JobSpec
    from tuneport.providers import registry
    from tuneport.providers.conformance.openai_vendor import OpenAIVendor

    train = folder / "train.jsonl"
    row = '{"messages": [{"role": "user", "content": "ticket %d"}, {"role": "assistant", "content": "billing"}]}\n'
    train.write_text("".join(row % number for number in range(40)), encoding="utf-8")
    with OpenAIVendor() as vendor:
        os.environ.update(vendor.environment)
        spec = JobSpec.model_validate({"model": {"openai": "gpt-4.1-mini-2025-04-14"}, "data": {"train": str(train)}})
        provider = registry.get("openai", OpenAIOptions())
        plan = compile_for(provider, spec, load_job_data(spec), date(2026, 11, 22))
        ledger = Ledger.open(folder / "watched.db")
        files = provider.upload(plan, lambda part: open_rows(spec, part), "tp-000000-x9k3m2qa")
        for number in range(count):
            job_id = f"j-{number:06}"
            ledger.add(job_id, spec, plan, {})
            ledger.uploaded(job_id, files)
            ledger.creating(job_id)
            ledger.observe(job_id, provider.create(plan, files, ledger.get(job_id).key))
        ledger.close()

        def finish() -> None:
            for made in vendor.made:
                vendor.set_state(made.ref, "succeeded")

        for made in vendor.made:
            vendor.set_state(made.ref, "running")
        yield folder / "watched.db", finish, vendor.environment


def watching(folder: Path) -> list[Row]:
    """500 jobs watched by one process with a real SDK: its peak memory, and that the pace kept the rate."""
    from tuneport.core.watching import READS_PER_MINUTE

    with openai_jobs(folder, WATCHED) as (where, finish, environment):
        child = subprocess.Popen(
            [sys.executable, "-c", WATCHER, str(where)],
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "swept\n"
        finish()
        child.stdin.write("\n")
        child.stdin.flush()
        looks, seconds, simulated, before, peak = map(float, child.communicate(timeout=600)[0].split())
    return [
        ("watching 1 job at OpenAI: peak MB (reference)", before, 1.0, None),
        (f"watching {WATCHED} jobs at OpenAI: peak MB", peak, peak / before, 150.0),
        (f"watching {WATCHED} jobs: work for each look, {looks:.0f} looks", seconds / looks, seconds / looks / 1.0, 60 / READS_PER_MINUTE),
        (f"watching {WATCHED} jobs: looks a minute by the simulated clock", 60 * looks / simulated, 1.0, READS_PER_MINUTE),
    ]


def rows() -> list[Row]:
    """Everything."""
    with tempfile.TemporaryDirectory(prefix="tuneport-bench-") as name:
        found: list[Row] = []
        for part in ("sqlite", "postgresql", "watching"):
            folder = Path(name) / part
            folder.mkdir()
            found += watching(folder) if part == "watching" else listing(folder, part)
    return found


def show(found: list[Row]) -> int:
    """Print the table; the number of limits passed."""
    late = 0
    print(f"{'':76}{'seconds':>9}{'ratio':>9}{'limit':>8}")
    for name, seconds, ratio, limit in found:
        over = limit is not None and seconds > limit
        late += over
        print(f"{name:76}{seconds:9.3f}{ratio:9.2f}{f'{limit:8.2f}' if limit else '':>8}{'  over' if over else ''}")
    return late


if __name__ == "__main__":
    sys.exit(1 if show(rows()) else 0)
