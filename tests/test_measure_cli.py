"""baseline and evaluate on the command line, against a chat service on loopback."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tuneport
from tuneport.advisor.spending import Purse
from tuneport.cli import application
from tuneport.core.errors import TuneportError, UsageError
from tuneport.core.job import JobState, RemoteJob
from tuneport.core.ledger import Ledger
from tuneport.core.spec_file import load_spec
from tuneport.tests.chat_server import ChatServer, chat_server

app = application()

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    with chat_server(tmp_path_factory.mktemp("service")) as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: ChatServer) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-loopback")
    monkeypatch.setenv("COLUMNS", "240")
    for part in ("train", "test"):
        rows = []
        for i in range(60):
            turns = [{"role": "user", "content": f"{HOSTILE} {part} {i} say word{i}"}, {"role": "assistant", "content": f"word{i}"}]
            rows.append(json.dumps({"messages": turns, "found": f"passage {i}"}) + "\n")
        (tmp_path / f"{part}.jsonl").write_text("".join(rows))
    (tmp_path / "spec.yaml").write_text("model: gpt-4.1-mini\ndata: {train: train.jsonl, test: test.jsonl}\n")
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    """What the command says, in this process; its exit code is that of the error that it raises."""
    done = CliRunner().invoke(app, arguments)
    error = done.exception
    assert error is None or isinstance(error, (TuneportError, SystemExit)), repr(error)
    assert (error.exit_code if isinstance(error, TuneportError) else done.exit_code) == code, f"{error}\n{done.output}"
    return done.output + str(error or "")


def measured(project: Path) -> Any:
    return json.loads((project / "measurement.json").read_text())


def test_before_anything_is_asked_it_says_what_the_rows_show_and_what_it_costs(project: Path, service: ChatServer) -> None:
    before = len(service.answered())
    said = run("baseline", "spec.yaml", "-p", "openai", "--dry-run")
    assert "60 rows can detect about 16 points (if two arms disagree on 20% of them); you need 621 rows to see 5 points" in said
    assert "zero-shot: gpt-4.1-mini-2025-04-14 at openai, at most $" in said and "few-shot (6)" in said
    assert len(service.answered()) == before and not (project / "measurement.json").exists()


def test_any_model_prompt_and_service_then_the_gate_side_by_side_and_general_suite(
    project: Path, service: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "template.txt").write_text("Notes: {{ context }}\n{{ question }}")
    own = ("--base-url", service.url, "--key-variable", "GATEWAY_API_KEY")
    monkeypatch.setenv("GATEWAY_API_KEY", "key-for-loopback")
    monkeypatch.delenv("OPENAI_API_KEY")
    said = run("baseline", "spec.yaml", "-p", "openai", "-m", "half", *own, "--template", "template.txt", "--name", "half",
               "--context-column", "found", "--metric", "token_f1", "--metric", "regex=^word", "--price", "1/2", "--concurrency", "16",
               "--stream")  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "key-for-loopback")
    assert "half: 60 of 60 answers (0 kept before), spent $0.0007" in said
    arm = measured(project)["arms"][0]
    assert arm["prompt"] == "zero-shot, a template, with context"
    assert 0.2 < arm["metrics"]["normalised_match"]["value"] < 0.8
    assert arm["metrics"]["regex=^word"]["value"] == arm["metrics"]["token_f1"]["value"] == arm["metrics"]["normalised_match"]["value"]
    assert arm["calls"]["first_token"]["n"] == 60 and arm["calls"]["price_source"] == "stated with --price"
    wrong = 60 - arm["calls"]["accepted"]
    assert arm["failures"] == [{"kind": "another answer", "count": wrong, "rows": arm["failures"][0]["rows"]}]

    evaluate = ("evaluate", "spec.yaml", "-p", "openai", "--price", "1/2", "--gate")
    said = run(*evaluate, "-m", "good", "--html", "side.html", "--general")
    assert "gate open: tuned is no more than 2 points below half" in said
    assert "general suite, tuned, general – base, general:" in said
    arms = [(a["name"], a["model"]) for a in measured(project)["general"]["arms"]]
    assert arms == [("base, general", "half"), ("tuned, general", "good")]
    for holds_answers in ("side.html", "measurement.json"):
        assert stat.S_IMODE((project / holds_answers).stat().st_mode) == 0o600
    page = (project / "side.html").read_text()
    assert "Only tuned right" in page and f"({wrong})" in page
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;alert(1)" in page
    tags: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            assert not any(name.startswith("on") or name in ("src", "srcdoc") for name, _ in attrs)

    Tags().feed(page)
    assert not tags & {"script", "img", "iframe", "object", "link", "form"}

    said = run(*evaluate, "-m", "broken", code=13)
    assert "tuned is worse than half" in said and "in normalised_match" in said
    assert measured(project)["arms"][1]["model"] == "broken", "what shuts the gate is written down first"
    said = run(*evaluate, "-m", "half", "--name", "again", "--against", "half", "--margin", "0.3")
    assert "gate open" in said
    said = run(*evaluate, "-m", "good", "--against", "nobody", code=2)
    assert "there is no arm 'nobody'" in said


def test_an_arm_that_stops_half_way_is_said_and_the_others_are_measured(project: Path, service: ChatServer) -> None:
    said = run("baseline", "spec.yaml", "-p", "openai", "--price", "1000/1000", "--max-usd", "1.5", code=6)
    assert "arm few-shot (6) stopped at --max-usd 1.5" in said
    found = measured(project)
    assert [arm["name"] for arm in found["arms"]] == ["zero-shot"]
    assert found["warnings"][0].startswith("arm few-shot (6) stopped: arm few-shot (6) stopped at --max-usd 1.5")
    before = len(service.answered())
    said = run("baseline", "spec.yaml", "-p", "openai", "--price", "1000/1000", "--max-usd", "40")
    assert "zero-shot: 60 of 60 answers (60 kept before), spent $0.00" in said
    assert len(service.answered()) - before < 60, "answers of the capped run are not paid again"
    (project / "other.txt").write_text("Be brief.")
    run("baseline", "spec.yaml", "-p", "openai", "--price", "1000/1000", "--max-usd", "1.6", "--instruction", "other.txt", code=6)
    again = {arm["name"]: arm["prompt"] for arm in measured(project)["arms"]}
    assert again == {"zero-shot": "zero-shot, an instruction of its own", "few-shot (6)": "6 few-shot examples"}, "the old one is kept"


def test_a_judge_who_answers_rubbish_is_said_and_shuts_nothing(project: Path, service: ChatServer) -> None:
    arguments = ("baseline", "spec.yaml", "-p", "openai", "--shots", "0", "--judge", "openai:j", "--rubric", "correctness")
    said = run(*arguments)
    assert "gave no readable verdict on 60 of 60 answers, so judge.correctness is left out" in said.replace("\n", " ")
    assert measured(project)["judges"][0]["unreadable"] == 60
    said = run(*arguments[:-2], "--rubric", "taste", code=2)
    assert "there is no rubric 'taste'" in said
    assert len(measured(project)["arms"]) == 1


@pytest.mark.parametrize("flags", [["--margin", "nan"], ["--max-usd", "nan"], ["--max-usd", "inf"], ["--tolerance", "nan"]])
def test_what_is_no_number_neither_opens_the_gate_nor_lifts_a_limit(flags: list[str], tmp_path: Path) -> None:
    """Every comparison with "nan" is false: a gate would open and a purse never be empty."""
    found = CliRunner().invoke(app, ["evaluate", str(tmp_path / "spec.yaml"), "-p", "openai", "-m", "m", "--gate", *flags])
    assert found.exit_code == 2
    assert "give a number" in found.output
    with pytest.raises(UsageError, match="no limit"):
        Purse(float("nan"))


def test_faulty_calls_are_one_sentence(project: Path, service: ChatServer) -> None:
    for arguments, code, says in (
        (("--metric", "beauty"), 2, "there is no metric 'beauty'"),
        (("--metric", "regex=("), 2, "no regular expression"),
        (("--primary", "bleu"), 2, "'bleu' is not measured here"),
        (("--context-column", "absent"), 2, "no row of the suite has a context"),
        (("--part", "validation"), 2, "holds no validation rows out"),
        (("--price", "cheap"), 2, "names no two prices"),
        (("--key-variable", "HOME"), 2, "key_variable"),
        (("--max-usd", "1", "-m", "unknown-model"), 6, "no price is known for unknown-model"),
    ):
        assert says in run("baseline", "spec.yaml", "-p", "openai", *arguments, code=code)
    assert "there is no tuned model to measure" in run("evaluate", "spec.yaml", code=2)
    (project / "measurement.json").write_text('{"version": 1}')
    assert "measurement.json is no measurement" in run("baseline", "spec.yaml", "-p", "openai", code=4)


def test_every_look_at_the_test_rows_is_in_the_ledger_and_validation_rows_need_none(project: Path) -> None:
    (project / "validation.jsonl").write_text((project / "test.jsonl").read_text().replace("test", "held"))
    spec = "model: gpt-4.1-mini\ndata: {train: train.jsonl, test: test.jsonl, validation: validation.jsonl}\n"
    (project / "spec.yaml").write_text(spec)
    baseline = ("baseline", "spec.yaml", "-p", "openai")
    run(*baseline, "--part", "validation")
    assert (measured(project)["part"], measured(project)["looks"]) == ("validation", [])
    said = run(*baseline)
    assert "holds other rows; its arms are not kept" in said
    for model in ("a", "b", "c", "d", "e"):
        said = run(*baseline, "-m", model, "--shots", "0")
    assert "these test rows were looked at 7 times" in said
    found = measured(project)
    assert [look["arm"] for look in found["looks"]] == ["zero-shot", "few-shot (6)", *(f"zero-shot, {m}" for m in "abcde")]
    assert {look["rows"] for look in found["looks"]} == {60}
    assert any(w.startswith("The test set was looked at with 7 arms") for w in found["warnings"])
    again = Ledger.open().looks.of(found["suite_sha256"])
    assert [look.model for look in again][2:] == ["a", "b", "c", "d", "e"]
    assert Ledger.open().looks.of("another") == []


def test_an_arm_that_saw_other_passages_is_not_kept_beside_new_ones(project: Path) -> None:
    baseline = ("baseline", "spec.yaml", "-p", "openai", "--shots", "0", "--context-column", "found")
    (project / "tone.txt").write_text("{{ question }}, as in {{ row.found }}")
    run(*baseline, "--name", "old passages")
    run(*baseline[:-2], "--name", "no passages")
    run(*baseline, "--name", "by template", "--template", "tone.txt")
    said = run(*baseline, "--name", "same passages")
    assert "not kept" not in said and len(measured(project)["arms"]) == 4
    rows = (project / "test.jsonl").read_text()
    (project / "test.jsonl").write_text(rows.replace("passage", "newer passage"))
    said = run(*baseline, "--name", "new passages")
    for name in ("old passages", "same passages", "by template"):
        assert f"arm {name} was asked with other passages or columns" in said
    assert [arm["name"] for arm in measured(project)["arms"]] == ["no passages", "new passages"]


def test_a_ledger_that_cannot_be_written_shows_no_score(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "bad.db").write_text("no database")
    monkeypatch.setenv("TUNEPORT_LEDGER", str(project / "bad.db"))
    said = run("baseline", "spec.yaml", "-p", "openai", "--shots", "0", code=10)
    assert "normalised_match" not in said and not (project / "measurement.json").exists()


def test_a_jobs_model_is_measured_at_its_own_provider(project: Path) -> None:
    spec = load_spec("spec.yaml")
    ledger = Ledger.open()
    ledger.add("j-aaaaaa", spec, tuneport.plan(spec, "openai"), {})
    ledger.observe("j-aaaaaa", RemoteJob(ref="ftjob-1", state=JobState.SUCCEEDED, raw_state="succeeded", tuned_model="ft:good"))
    run("baseline", "spec.yaml", "-p", "openai", "--shots", "0")
    said = run("evaluate", "spec.yaml", "--job", "last", "--max-usd", "1")
    assert "tuned: ft:good at openai, at most $0." in said
    arm = measured(project)["arms"][1]
    assert (arm["kind"], arm["job"], arm["model"], arm["metrics"]["normalised_match"]["value"]) == ("tuned", "j-aaaaaa", "ft:good", 1)
    assert "observed" in arm["calls"]["price_source"]
