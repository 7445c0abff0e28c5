"""What a user installs: everything under ``tuneport.``, and nothing heavy until it is needed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import tuneport
from tuneport.core.data.load import job_data_for
from tuneport.core.ledger import Ledger
from tuneport.core.spec_file import load_spec
from tuneport.tests.fake_provider import make_plan, make_spec
from tuneport.tests.local_tiny import write_model

ROOT = Path(__file__).resolve().parent.parent
RANK = {"core": 0, "local_backend": 1, "providers": 1, "advisor": 2, "cli": 3}
PACKAGES = ("core", "providers", "advisor", "local_backend")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_everything_under_tuneport_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"tuneport"}
    assert "tuneport/py.typed" in names
    sources = [f for p in PACKAGES for f in (ROOT / p).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    missing = [str(f) for f in sources if f"tuneport/{f.relative_to(ROOT)}" not in names]
    assert not missing, f"not in the wheel: {missing}"


def test_top_level_is_the_agreed_one() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    tops = {name.partition("/")[0] for name in listed}
    agreed = {"pyproject.toml", "README.md", "providers", "core", "advisor", "local_backend", "tests", "cli.py"}
    tooling = {
        "Makefile", "constraints.txt", ".ci", ".dev", ".gitignore", "docs", "examples", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
        "__init__.py", "py.typed",
    }
    assert tops <= agreed | tooling
    assert agreed <= tops


def test_imports_run_downwards() -> None:
    upward = []
    for path in [ROOT / "cli.py", *(f for p in PACKAGES for f in (ROOT / p).rglob("*.py"))]:
        own = RANK[path.relative_to(ROOT).parts[0].removesuffix(".py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in modules:
                parts = (module or "").split(".")
                if parts[0] == "tuneport" and len(parts) > 1 and RANK.get(parts[1], 0) > own:
                    upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upward


HEAVY = ("torch", "transformers", "trl", "peft", "openai", "boto3", "together", "fireworks", "altair", "pyarrow")


@pytest.mark.parametrize(
    "command",
    [["--help"], ["providers"], ["models"], ["prices"], ["plan", str(ROOT / "examples/tickets/spec.yaml"), "--provider", "all", "--json"]],
    ids=lambda c: c[0],
)
def test_planning_imports_no_sdk_and_no_training_stack(command: list[str]) -> None:
    assert _imported_by(command, HEAVY) == []


def test_a_local_folder_counts_its_tokens_without_the_training_stack(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    rows = [{"messages": [{"role": "user", "content": "what is 2 + 2"}, {"role": "assistant", "content": "it is 4"}]}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"model": {"local": base.name, "together": "qwen3-8b"}, "data": {"train": "rows.jsonl"}}))
    assert _imported_by(["plan", str(spec), "-p", "local", "-p", "together", "--json"], HEAVY) == []
    mine, theirs = tuneport.plan(spec, "local"), tuneport.plan(spec, "together")
    assert f"tokens: counted with {base / 'tokenizer.json'}" in mine.time.basis and "tokenizer.json" not in str(theirs)
    data = job_data_for(load_spec(spec))
    exact = 4 * len("what is 2 + 2it is 4")  # the tiny model has a token for each byte
    assert (data("local").train.tokens.low, data("local").train.tokens.high) == (exact + 4 * 2 * 3, exact + 4 * (2 * 8 + 32))
    assert data("together").train.tokens.tokenizer.startswith("estimate")
    (base / "tokenizer.json").write_text("{}")
    assert job_data_for(load_spec(spec))("local") == data("together")  # the worker names what is wrong with it


SLOW = (*HEAVY, "sqlalchemy", "alembic", "asyncio", "pydantic", "numpy", "scipy", "jinja2", "yaml", "ssl", "tuneport.core.spec")


@pytest.mark.parametrize("command", [["--help"], ["jobs"], ["jobs", "--json"], ["logs", "j-aaaaaa"], ["deployments"]], ids=" ".join)
def test_listing_imports_nothing_that_is_slow_to_load(command: list[str], tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.add("j-aaaaaa", spec, make_plan(spec), {})
    assert _imported_by(command, SLOW) == []


def _imported_by(command: list[str], modules: Sequence[str]) -> list[str]:
    """Those of the modules that a command, which must succeed, has loaded when it ends."""
    code = (
        "import sys\n"
        "from tuneport.cli import main\n"
        f"sys.argv = ['tuneport', *{command!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"sys.stderr.write(' '.join(m for m in {tuple(modules)!r} if m in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / ".dev")}
