"""The command line: what a person sees when all is well, and one sentence with the right exit code when it is not."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from tuneport.providers.conformance.forks import Forks

ROOT = Path(__file__).resolve().parent.parent
SPEC = "model: llama-3.1-8b-instruct\ndata: {train: train.jsonl}\ntraining: {epochs: 2}\n"
LOADED = (
    "core.commands", "core.data.check", "core.data.load", "core.spec_file", "providers.plan_commands", "providers.job_commands",
    "advisor.commands", *(f"providers.{vendor}.compile" for vendor in ("openai", "bedrock", "together", "fireworks", "local")),
)  # fmt: skip
"""Modules that commands load when they are called."""


def rows(count: int = 12) -> str:
    row = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
    return "".join(json.dumps(row | {"id": i}) + "\n" for i in range(count))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(rows(), encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    return tmp_path


def environment(folder: Path, **extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / ".dev"), "TUNEPORT_LEDGER": str(folder / "ledger.db"), "COLUMNS": "160", **extra}


@lru_cache(maxsize=1)
def forks() -> Forks:
    made = Forks("tuneport.cli", *(f"tuneport.{name}" for name in LOADED))
    atexit.register(made.close)
    return made


def tuneport(folder: Path, *arguments: str, stdout: int | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    started = forks().start("tuneport.cli:main", *arguments, cwd=folder, env=environment(folder, **extra), stdout=stdout)
    out, err = started.communicate(timeout=120)
    assert started.returncode is not None
    return subprocess.CompletedProcess(arguments, started.returncode, out, err)


def fails(folder: Path, code: int, *arguments: str, says: str, **extra: str) -> str:
    done = tuneport(folder, *arguments, **extra)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("tuneport: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_plan_for_all_providers_is_a_table_and_json(project: Path) -> None:
    shown = tuneport(project, "plan", "spec.yaml", "--provider", "all")
    assert shown.returncode == 0, shown.stderr
    for name in ("openai", "bedrock", "together", "fireworks", "local"):
        assert name in shown.stdout
    printed = json.loads(tuneport(project, "plan", "spec.yaml", "--json").stdout)
    assert "unavailable" in printed["openai"]
    assert printed["together"]["payload"]["n_epochs"] == 2
    assert printed["together"]["epochs"] == {"low": 2, "high": 2} and "different numbers of epochs" not in shown.stdout
    spec = project / "spec.yaml"
    spec.write_text(spec.read_text(encoding="utf-8") + "overrides: {fireworks: {training.epochs: null}}\n", encoding="utf-8")
    shown = tuneport(project, "plan", "spec.yaml", "-p", "together", "-p", "fireworks")
    assert "cost and time are for different numbers of epochs: overrides set them apart" in shown.stdout
    assert {o["outcome"] for o in printed["together"]["outcomes"]} <= {"mapped", "converted", "defaulted", "refused"}


def test_a_plan_that_is_refused_says_so_and_exits_5(project: Path) -> None:
    (project / "spec.yaml").write_text(SPEC + "method: kto\n", encoding="utf-8")
    (project / "train.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}\n' * 12, encoding="utf-8")
    done = tuneport(project, "plan", "spec.yaml", "--provider", "together")
    assert done.returncode == 5
    assert "refused" in done.stdout


def test_check_passes_good_rows_and_exits_4_on_bad_ones(project: Path) -> None:
    assert tuneport(project, "check", "train.jsonl").returncode == 0
    (project / "train.jsonl").write_text(rows(3) + "{broken\n", encoding="utf-8")
    done = tuneport(project, "check", "spec.yaml")
    assert done.returncode == 4
    assert "4" in done.stdout and "Traceback" not in done.stderr  # line 4


@pytest.mark.parametrize("command", ["providers", "models", "prices", "schema"])
def test_facts_are_listed_as_text_and_json(tmp_path: Path, command: str) -> None:
    arguments = [command] if command == "schema" else [command, "--json"]
    assert json.loads(tuneport(tmp_path, *arguments).stdout)
    assert tuneport(tmp_path, command).stdout.strip()


@pytest.mark.parametrize("what", ["spec", "plan", "decision", "report", "models", "prices"])
def test_schemas_are_json_schemas(tmp_path: Path, what: str) -> None:
    assert "properties" in json.loads(tuneport(tmp_path, "schema", what).stdout)


def test_schemas_accept_what_the_tool_accepts(tmp_path: Path) -> None:
    examples = ROOT / "examples/tickets"
    for what, files in (("decision", [examples / "decision.yaml"]), ("spec", [examples / "spec.yaml", ROOT / "core/starter.yaml"])):
        schema = json.loads(tuneport(tmp_path, "schema", what).stdout)
        for file in files:
            jsonschema.validate(yaml.safe_load(file.read_text(encoding="utf-8")), schema)
        if what == "decision":
            wrong = yaml.safe_load(files[0].read_text(encoding="utf-8")) | {"volume_per_month": "many"}
            assert not jsonschema.Draft202012Validator(schema).is_valid(wrong)


def test_a_file_of_another_kind_is_named_in_one_sentence(project: Path) -> None:
    (project / "plan.json").write_text('{"local": {"version": 1}}', encoding="utf-8")
    for arguments, says in (
        (["advise", "spec.yaml"], "spec.yaml is a job spec, not a decision file"),
        (["advise", "plan.json"], "plan.json is no decision file"),
        (["advise", "spec.yaml", "--measurement", "plan.json"], "plan.json is no measurement file; make one with tuneport baseline"),
    ):
        done = tuneport(project, *arguments)
        assert done.returncode == 4 and says in " ".join(done.stderr.split())
        assert len(done.stderr.strip().splitlines()) <= 2 and "required" not in done.stderr.lower()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["plan", "none.yaml"], 4, "does not exist"),
        (["plan", "spec.yaml", "-p", "opnai"], 2, "did you mean 'openai'?"),
        (["plan", "spec.yaml", "-p", "openai"], 12, "does not offer"),
        (["check", "none.jsonl"], 4, "none.jsonl"),
        (["check", "train.jsonl", "--format", "chatt"], 2, "choose one of"),
        (["submit", "spec.yaml", "-p", "together"], 2, "--yes"),
        (["status", "j-nope"], 10, "ledger"),
        (["schema", "nope"], 2, "choose"),
        (["advise", "none.yaml"], 4, "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_faults_are_one_sentence_with_their_exit_code(project: Path, arguments: list[str], code: int, says: str) -> None:
    fails(project, code, *arguments, says=says)


def test_unknown_options_exit_2(project: Path) -> None:
    done = tuneport(project, "plan", "spec.yaml", "--provder", "all")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_every_fault_of_a_spec_is_listed(project: Path) -> None:
    (project / "spec.yaml").write_text("model: m\ndata: {train: t}\nepochs: 3\ntraining: {epochs: -1}\n", encoding="utf-8")
    message = fails(project, 3, "plan", "spec.yaml", says="did you mean `training.epochs`?")
    assert "greater than 0" in message


def test_an_unknown_model_is_named_with_a_suggestion(project: Path) -> None:
    (project / "spec.yaml").write_text(SPEC.replace("llama-3.1-8b-instruct", "llama-3.1-8b-instrct"), encoding="utf-8")
    fails(project, 12, "plan", "spec.yaml", "-p", "together", says="did you mean llama-3.1-8b-instruct")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "train.jsonl"),
        ("{\"text\": \"h\u00e9\"}\n".encode("utf-16"), "train.jsonl"),
        (b'{"a": "' + b"x" * 50_000_000 + b'"}\n', "train.jsonl"),
        (b"[" * 100_000 + b"\n", "train.jsonl"),
        (b"\x00\x00\x00\n", "train.jsonl"),
    ],
    ids=["empty", "utf-16", "50 MB line", "deep", "NUL"],
)
def test_unreadable_data(project: Path, content: bytes, says: str) -> None:
    (project / "train.jsonl").write_bytes(content)
    fails(project, 4, "plan", "spec.yaml", "-p", "together", says=says)


def test_no_credentials(project: Path) -> None:
    fails(project, 7, "submit", "spec.yaml", "-p", "together", "--yes", says="TOGETHER_API_KEY")
    listed = json.loads(tuneport(project, "jobs", "--json").stdout)
    assert [job["state"] for job in listed] == ["failed"]  # it stands in the ledger, and nothing was made


def test_a_budget_below_the_upper_estimate_blocks(project: Path) -> None:
    (project / "spec.yaml").write_text(SPEC + "budget: {max_usd: 0.000001}\n", encoding="utf-8")
    fails(project, 6, "submit", "spec.yaml", "-p", "together", "--yes", says="max_usd")


def test_a_place_that_cannot_be_written(project: Path) -> None:
    fails(project, 10, "submit", "spec.yaml", "-p", "together", "--yes", says="ledger", TUNEPORT_LEDGER="/proc/nowhere/ledger.db")


def test_a_full_disk_behind_stdout(project: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = tuneport(project, "schema", stdout=full.fileno())
    assert done.returncode == 1
    assert "No space left" in done.stderr and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_stops_early_is_no_fault(project: Path) -> None:
    command = f"{sys.executable} -m tuneport.cli schema | head -1"
    done = subprocess.run(command, shell=True, cwd=project, env=environment(project), capture_output=True, text=True, check=False)
    assert done.stdout == "{\n" and done.stderr == ""


def test_debug_shows_the_traceback(project: Path) -> None:
    assert "Traceback" in tuneport(project, "plan", "none.yaml", "--debug").stderr


@pytest.mark.parametrize("after", [0.05, 0.25, 0.6])
def test_ctrl_c_at_any_moment(project: Path, after: float) -> None:
    command = [sys.executable, "-m", "tuneport.cli", "plan", "spec.yaml"]
    (project / "train.jsonl").write_text(rows(40_000), encoding="utf-8")
    running = subprocess.Popen(command, cwd=project, env=environment(project), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    if "import site" not in stderr and "<frozen" not in stderr:  # before Python has started there is nobody to catch it
        assert running.returncode in (0, 130, -signal.SIGINT)
        assert "Traceback" not in stderr
