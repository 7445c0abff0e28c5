"""deploy, deployments, undeploy, chat, serve and delete on the command line, over Together's fake."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tuneport.providers.conformance")
pytest.importorskip("together")

from tuneport import cli  # noqa: E402
from tuneport.core.errors import UsageError  # noqa: E402
from tuneport.core.spec import JobSpec  # noqa: E402
from tuneport.providers.conformance.bench import Bench  # noqa: E402
from tuneport.providers.deployment_commands import seconds  # noqa: E402
from tuneport.tests import test_conformance_openai as openai  # noqa: E402
from tuneport.tests import test_conformance_together as together  # noqa: E402

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with together.TestTogether().open_bench(tmp_path) as bench:
        for name, value in bench.vendor.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
        monkeypatch.setenv("COLUMNS", "220")
        yield bench


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuneport", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    return run


def at_vendor(bench: Bench, name: str) -> str:
    entry = next(e for e in bench.vendor.snapshot()["deployments"].values() if e["name"].endswith(name))
    return f"endpoints/{entry['endpointId']}/deployments/{entry['id']}"


def test_from_deploy_to_delete(bench: Bench, run: Run) -> None:
    job = bench.trained()
    code, _, said = run("deploy", job.id)
    assert code == 2 and "needs your consent; add --yes" in said
    assert bench.vendor.deployed == []
    code, shown, said = run("deploy", job.id, "--ttl", "2h", "--yes", "--detach")
    assert code == 0, said
    assert "$5.49 per hour, $4,007.70 per month of 730 h: 1 x H100" in shown and "at most $10.98 in 2 h" in shown
    (record,) = bench.engine.deployments.latest()
    assert f"tuneport watch {record.id}" in shown and record.expires_at is not None
    bench.vendor.set_deployment(bench.vendor.deployed[0].ref, "DEPLOYMENT_STATE_READY")
    bench.engine.deployments.wait(record.id)
    code, shown, _ = run("deployments")
    assert code == 0 and record.id in shown and "ready" in shown and "all together" in shown
    (listed,) = json.loads(run("deployments", "--json")[1])
    assert listed["usd_per_hour"] == [5.49, 5.49] and listed["cost_usd"][1] > 0 and listed["job"] == job.id
    code, shown, said = run("chat", job.id, "where is my card?")
    assert code == 0 and "where is my card?" in shown
    assert "for at most 256 tokens" in said and "cut short" not in said
    code, shown, said = run("chat", job.id, "where is my card?", "--max-tokens", "1")
    assert code == 0 and "reached the limit of 1 tokens and may be cut short; ask again with --max-tokens 2" in said
    bench.provider.deployments().create(bench.ledger.deployments.plan(record.id), "by-hand")
    code, shown, said = run("deployments", "--at", "together")
    assert code == 0 and shown.count("projects/proj-acme/") == 2 and record.id in shown and " no" in shown
    bench.provider.deployments().remove(bench.ledger.deployments.plan(record.id), f"projects/proj-acme/{at_vendor(bench, 'by-hand')}")
    code, _, said = run("delete", job.id, "--yes")
    assert code == 2 and f"tuneport undeploy {record.id}" in said
    code, shown, _ = run("undeploy", job.id)
    assert code == 0 and f"{record.id} undeployed at together; it has cost $0.00" in shown
    assert run("deployments")[1] == "nothing is deployed\n"
    assert record.id in run("deployments", "--all")[1]
    code, shown, said = run("delete", job.id)
    assert code == 2 and "will delete model" in shown and "needs your consent" in said
    assert bench.vendor.snapshot()["jobs"]
    code, shown, _ = run("delete", job.id, "--yes")
    assert code == 0 and "deleted model" in shown and not bench.vendor.snapshot()["jobs"]


def test_the_budget_is_held_before_anything_is_asked(bench: Bench, run: Run) -> None:
    bench.spec = JobSpec.model_validate(bench.spec.model_dump() | {"model": together.MODEL, "budget": {"max_usd": 10}})
    job = bench.trained()
    code, _, said = run("deploy", job.id, "--yes")
    assert code == 6 and "add --ttl" in said
    code, _, said = run("deploy", job.id, "--yes", "--ttl", "3h")
    assert code == 6 and "$" not in said and "may cost up to 16.47 USD" in said
    assert bench.vendor.deployed == []


def test_what_has_outlived_its_time_goes_at_the_next_look(bench: Bench, run: Run) -> None:
    job = bench.trained()
    assert run("deploy", job.id, "--ttl", "1s", "--yes", "--detach")[0] == 0
    (record,) = bench.engine.deployments.latest()


    time.sleep(1.1)
    shown = run("deployments")[1]
    assert f"{record.id} has outlived its time and is undeployed" in shown and "nothing is deployed" in shown
    assert bench.vendor.billing == []


def test_without_a_ledger_nothing_is_deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "none.db"))
    assert run("deployments")[:2] == (0, "nothing is deployed\n") and run("deployments", "--json")[:2] == (0, "[]\n")
    assert run("watch", "--all")[0] == 0
    assert not (tmp_path / "none.db").exists()


def test_serve_and_watch_say_what_they_are_for(bench: Bench, run: Run) -> None:
    job = bench.trained()
    code, _, said = run("serve", job.id)
    assert code == 2 and f"tuneport deploy {job.id}" in said
    code, _, said = run("watch", "d-zzzzzz")
    assert code == 2 and "there is no deployment 'd-zzzzzz'" in said
    code, _, said = run("undeploy")
    assert code == 2 and "--all" in said


def test_there_is_nothing_to_deploy_at_openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    with openai.TestOpenAI().open_bench(tmp_path) as bench:
        for name, value in bench.vendor.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TUNEPORT_LEDGER", str(tmp_path / "ledger.db"))
        job = bench.trained()
        code, shown, _ = run("deploy", job.id)
        assert code == 0 and "there is nothing to deploy" in shown and str(job.tuned_model) in " ".join(shown.split())
        code, _, said = run("export", job.id)
        assert code == 8 and "OpenAI gives no access to tuned weights" in said
        assert "hello" in run("chat", job.id, "hello")[1]


@pytest.mark.parametrize(("text", "found"), [("90s", 90), ("30min", 1800), ("1.5h", 5400), ("2d", 172_800)])
def test_lengths_of_time(text: str, found: float) -> None:
    assert seconds(text) == found
    for wrong in ("2", "h", "0h", "two hours"):
        with pytest.raises(UsageError, match="30min, 2h, 1d"):
            seconds(wrong)
