"""Today's model as the decision file names it: tuned at OpenAI, misspelt, or one that nobody knows."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tuneport.advisor.advise import advise
from tuneport.advisor.report.render import render_html, render_markdown
from tuneport.advisor.spending import rates_of
from tuneport.core.catalogue import lifetime_warnings, load_catalogue
from tuneport.core.errors import CatalogueError
from tuneport.core.spec import Data, JobSpec
from tuneport.tests.advice_cases import TODAY, arm, intake, measurement, plan, share

TUNED = "ft:gpt-4.1-mini-2025-04-14:acme::abc123"
BASE = {"provider": "openai", "model": "gpt-4.1-mini", "arm": None}


@pytest.mark.parametrize("incumbent", [{**BASE, "model": TUNED}, {**BASE, "tuned": True}], ids=["by its id", "by a catalogue name"])
def test_a_model_tuned_at_openai_has_its_price_and_its_end(incumbent: dict[str, object]) -> None:
    report = advise(intake(incumbent=incumbent), None, [plan()], today=TODAY)
    paid = {note.item.split(" today")[0]: note.usd.low for note in report.todays_prices if note.usd}
    assert paid == {"input tokens": 0.8, "cached input tokens": 0.2, "output tokens": 3.2}  # of a tuned gpt-4.1-mini, not of the base
    assert any(risk.name == "End of today's model" and "2027-01-14" in risk.statement for risk in report.risks)
    assert any("before 2027-01-14" in step for step in report.decision.next_steps)
    untuned = advise(intake(incumbent=BASE), None, [plan()], today=TODAY)
    assert next(note.usd.low for note in untuned.todays_prices if note.usd) == 0.4


def test_moving_from_openai_is_decided_on_the_tuned_model_that_was_measured() -> None:
    """Today's tuned model is the bar, never the candidate; a model tuned anew from the same base is."""
    asked = intake(incumbent={**BASE, "model": TUNED}, quality={"bar": 0.7})
    today = arm("today", share(300, 250), kind="tuned", provider="openai", model=TUNED)
    prompt = arm("few-shot", share(300, 60))
    moved = advise(asked, measurement(prompt, today), [plan()], today=TODAY)
    assert moved.decision.verdict == "pilot" and "2027-01-14" in " ".join(moved.decision.next_steps)
    lasting = arm("few-shot", share(300, 240))
    assert advise(asked, measurement(lasting, today), [plan()], today=TODAY).decision.verdict == "migrate"
    anew = arm("tuned", share(300, 270), kind="tuned", provider="openai", model=TUNED.replace("abc123", "def456"))
    tuned = advise(asked, measurement(prompt, today, anew), [plan(), plan("openai", "gpt-4.1-mini")], today=TODAY)
    assert next(o.quality for o in tuned.offers if o.provider == "openai") == "measured"


def test_measuring_a_tuned_model_has_its_price() -> None:
    rates = rates_of("openai", TUNED)
    assert rates is not None and (rates.prompt.low, rates.completion.low) == (0.8, 3.2)


def test_a_plan_for_a_tuned_id_says_how_to_continue_it() -> None:
    with pytest.raises(CatalogueError) as refused:
        load_catalogue().offering(JobSpec(model=TUNED, data=Data(train="-")), "openai")
    assert f"continue_from: {TUNED}" in refused.value.fix and "model: gpt-4.1-mini-2025-04-14" in refused.value.fix
    verbatim = load_catalogue().offering(JobSpec(model={"openai": TUNED}, data=Data(train="-")), "openai")
    assert "continue_from" in lifetime_warnings(verbatim, TODAY)[0].message


@pytest.mark.parametrize(
    ("incumbent", "says"),
    [
        ({"provider": "openia", "model": "gpt-4.1-mini"}, "did you mean openai?"),
        ({"provider": "openai", "model": "gpt-4.1-mni"}, "did you mean gpt-4.1-mini?"),
        ({"provider": "openai", "model": TUNED.replace("gpt-4.1", "gtp-4.1")}, "did you mean gpt-4.1-mini-2025-04-14?"),
        ({"provider": "our-gateway", "model": "house-model"}, "no price for house-model at our-gateway"),
    ],
)
def test_an_unknown_incumbent_is_warned_of(incumbent: dict[str, str], says: str) -> None:
    report = advise(intake(incumbent=incumbent), None, [plan()], today=TODAY)
    assert says in " ".join(report.warnings)
    assert all(says in text.replace("\\", "") for text in (render_markdown(report), render_html(report)))
    assert not advise(intake(), None, [plan()], today=TODAY).warnings


def test_an_unknown_metric_is_a_fault_that_names_the_known_ones() -> None:
    with pytest.raises(ValidationError) as refused:
        intake(quality={"metric": "exct_match"})
    assert "did you mean exact_match?" in str(refused.value) and "token_f1" in str(refused.value)
    for metric in ("field.category", "judge.house_style", "regex=^A", "corpus_bleu", "macro_f1"):
        assert intake(quality={"metric": metric}).quality.metric == metric
