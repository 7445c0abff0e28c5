"""The report: one source of truth, nothing that executes or loads, nothing unknown shown as zero."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

from tuneport.advisor.advise import advise
from tuneport.advisor.measurement import Calls, Confusion, Spread
from tuneport.advisor.report import words
from tuneport.advisor.report.model import Report, report_schema
from tuneport.advisor.report.render import render_html, render_json, render_markdown, write_report
from tuneport.core.errors import DataError, MissingExtraError
from tuneport.core.money import Range
from tuneport.tests.advice_cases import TODAY, arm, clear_gain, intake, measurement, plan, share

HOSTILE = "</svg></style></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|*[x](javascript:alert(3)){{ 7*7 }}&lt;\n# h"
PARTS = [
    "What it saves", "Options compared", "Evidence", "Economics", "Sensitivity", "Assumptions", "Risks", "Next step", "Reproducibility",
]  # fmt: skip
MADR = [
    "## Context and Problem Statement", "## Decision Drivers", "## Considered Options", "## Decision Outcome", "### Consequences",
    "### Confirmation", "## Pros and Cons of the Options", "## More Information",
]  # fmt: skip


@dataclass
class Page:
    """What a browser would see of a page."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    headings: list[str] = field(default_factory=list)


def parsed(html: str) -> Page:
    page = Page()

    class Reader(HTMLParser):
        inside = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            page.tags.append((tag, {name: value or "" for name, value in attrs}))
            self.inside = tag
            if tag == "h2":
                page.headings.append("")

        def handle_endtag(self, tag: str) -> None:
            self.inside = ""

        def handle_data(self, data: str) -> None:
            if self.inside != "style":
                page.text += data
            if page.headings and page.headings[-1] == "" and self.inside == "" and data.strip():
                page.headings[-1] = data.strip()

    Reader().feed(html)
    return page


@pytest.fixture(scope="module")
def report() -> Report:
    return advise(intake(), clear_gain(), [plan("openai", "gpt-4.1-mini"), plan("together", "qwen3-8b", usd=None), plan()], today=TODAY)


@pytest.fixture(scope="module")
def hostile() -> Report:
    arms = measurement(
        arm(f"few {HOSTILE}", share(200, 40), model=HOSTILE), arm(f"tuned {HOSTILE}", share(200, 180), kind="tuned"), warnings=(HOSTILE,)
    )
    asked = intake(
        title=HOSTILE.replace("\n", " ")[:120],
        problem=HOSTILE,
        wanted=HOSTILE,
        decision_makers=[HOSTILE],
        incumbent={"arm": f"few {HOSTILE}"},
    )
    return advise(asked, arms, [plan(refused={"x": HOSTILE}), plan()], today=TODAY)


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render_html(report)


@pytest.fixture(scope="module")
def hostile_html(hostile: Report) -> str:
    return render_html(hostile)


def test_json_is_the_whole_truth(report: Report) -> None:
    text = render_json(report)
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert Report.model_validate_json(text) == report
    jsonschema.Draft202012Validator(report_schema()).validate(document)
    assert document["version"] == 1


def test_the_parts_stand_in_their_order(html: str) -> None:
    page = parsed(html)
    assert len(page.headings) == 10
    assert [re.sub(r"^\d+", "", re.sub(r"<[^>]*>", "", h)) for h in re.findall(r"<h2[^>]*>(.*?)</h2>", html)][1:] == PARTS
    assert page.text.index("Fine-tune smollm2") < page.text.index("What it saves")


@pytest.mark.parametrize("which", ["html", "hostile_html"])
def test_nothing_executes_and_nothing_is_loaded(which: str, request: pytest.FixtureRequest) -> None:
    page = parsed(request.getfixturevalue(which))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "foreignobject", "use", "image"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("href", "#").startswith("#")
        assert "src" not in attributes
        assert "javascript:" not in attributes.get("style", "")
    source = request.getfixturevalue(which)
    assert "default-src 'none'" in source
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)


def test_hostile_text_is_shown_as_it_is(hostile_html: str) -> None:
    page = parsed(hostile_html)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == hostile_html.count("</svg>") == 6  # three charts in two widths
    assert sum(tag == "style" for tag, _ in page.tags) == 1


def test_tables_and_charts_are_accessible(html: str) -> None:
    page = parsed(html)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(p["role"] == "img" and len(p["aria-labelledby"].split()) == 2 for p in pictures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {label for p in pictures for label in p["aria-labelledby"].split()} <= set(ids)
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1


def test_every_chart_has_its_numbers_in_a_table(report: Report, html: str) -> None:
    assert report.cash_flow is not None
    assert report.sensitivity is not None
    shown = html.replace("\n", " ")
    assert all(words.usd(p.tuned.p50) in shown for p in report.cash_flow.points)
    assert all(s.driver.replace("'", "&#39;") in shown for s in report.sensitivity.swings)
    assert report.cash_flow.points[-1].month == 24


@pytest.mark.parametrize("changes", [{}, {"volume_growth_per_year": [0.1, 0.6], "seasonality": [1, 2] * 6, "batch_share": 0.3}])
def test_the_likely_money_adds_up_from_its_lines_to_the_net_present_value(changes: dict[str, object]) -> None:
    """Also where volumes grow and base models end; the report prints one figure for each thing, with what it is."""
    asked = intake(incumbent={"provider": "openai", "model": "gpt-4.1-mini"}, costs={"incumbent_move_usd": 3000}, **changes)
    report = advise(asked, clear_gain(), [plan("openai", "gpt-4.1-mini"), plan("together", "qwen3-8b"), plan()], today=TODAY)
    priced = [o.economics for o in report.offers if o.economics]
    assert {round(money.months, 1) for money in priced} == {1.7, 24.0}
    for money in priced:
        likely, npv = money.likely, money.npv
        assert npv.p10 is not None and npv.p50 is not None and npv.p90 is not None
        parts = likely.saved_per_month * money.months - likely.spent_once + likely.moves + likely.discounting
        assert parts == pytest.approx(likely.npv)
        assert abs(likely.npv - npv.p50) < 0.02 * (npv.p90 - npv.p10)
        if likely.payback_months is not None and not changes:
            assert likely.payback_months == pytest.approx(likely.spent_once / likely.saved_per_month)
    money = report.savings.economics
    assert money is not None
    html, text, tune = render_html(report), render_markdown(report), next(o for o in report.decision.options if o.name == "Fine-tune")
    told = re.search(r"\$([\d,.]+) − \$([\d,.]+) = (−?)\$([\d,.]+) saved a month", text)
    assert told and told[0] in html
    now, then, saved = (float(told[k].replace(",", "")) for k in (1, 2, 4))
    assert abs(now - then) == pytest.approx(saved, abs=1.5)
    assert f"${float(f'{money.likely.tuned.total:.3g}'):,.0f} a month" in tune.cost
    for page in (html, text):
        assert "Net present value over 24 months, discounted at 5 % a year" in page and "against going on with openai gpt-4.1-mini" in page


def test_an_unknown_price_is_shown_as_unknown(report: Report, html: str) -> None:
    unpriced = next(o for o in report.offers if o.provider == "together")
    assert unpriced.status == "unpriced"
    row = html[html.index("<b>together</b>") :]
    assert row[: row.index("</tr>")].count(">unknown<") == 5
    line = next(line for line in render_markdown(report).splitlines() if line.startswith("| together"))
    assert "$0" not in line
    assert line.count("unknown") >= 3


def test_a_place_without_an_offer_is_named() -> None:
    without = advise(intake(), clear_gain(), [plan()], today=TODAY, unavailable={"bedrock": "the spec names no model for it"})
    for page in (render_html(without), render_markdown(without)):
        assert "No offer at bedrock" in page
        assert "the spec names no model for it" in page


def test_prices_carry_source_date_grade_and_age() -> None:
    old = advise(intake(), clear_gain(), [plan("fireworks", "qwen3-8b"), plan()], today=date(2027, 9, 1))
    price = next(p for o in old.offers if o.provider == "fireworks" for p in o.prices)
    assert price.source
    assert price.grade
    assert price.observed_on is not None
    assert price.stale.startswith("out of date")
    page = render_html(old)
    assert price.stale in page
    assert str(price.observed_on) in page


def test_without_a_measurement_the_report_still_stands() -> None:
    empty = advise(intake(), None, [], today=TODAY)
    page = parsed(render_html(empty))
    assert "Nothing was measured" in page.text
    assert "No plan was given" in page.text
    assert not any(tag == "svg" for tag, _ in page.tags)
    assert "Nothing was measured" in render_markdown(empty)


def test_markdown_drops_into_a_folder_of_decision_records(report: Report) -> None:
    text = render_markdown(report)
    places = [text.index(f"\n{heading}\n") for heading in MADR]
    assert places == sorted(places)
    assert text.startswith("---\nstatus: proposed\ndate: 2026-11-22\n")


def test_hostile_text_keeps_its_place_in_markdown(hostile: Report) -> None:
    text = render_markdown(hostile)
    body = text[text.index("\n# ") :]
    assert not re.search(r"(?<!\\)<script", body)
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    assert [line for line in body.splitlines() if line.startswith("# ")] == [body.splitlines()[1]]
    for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_the_same_inputs_give_the_same_report(report: Report, html: str) -> None:
    plans = [plan("openai", "gpt-4.1-mini"), plan("together", "qwen3-8b", usd=None), plan()]
    again = advise(intake(), clear_gain(), plans, today=TODAY)
    assert again == report
    assert render_html(again) == html
    other = advise(intake(), clear_gain(), plans, today=TODAY, seed=1)
    assert other.reproducibility.inputs_sha256 != report.reproducibility.inputs_sha256
    assert other.savings != report.savings


def test_writing_replaces_all_three_files(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_report(folder, report)
    assert [(kind, path.name) for kind, path in paths.items()] == [("html", "report.html"), ("md", "report.md"), ("json", "report.json")]
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "report.json", "report.md"]
    assert Report.model_validate_json(paths["json"].read_text(encoding="utf-8")) == report


def test_without_the_extra_nothing_is_written(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtraError, match=r"tuneport\[report\]"):
        write_report(tmp_path / "out", report)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_sentence(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(tmp_path / "file", report)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unknown"), (0, "$0"), (0.00062, "$0.00062"), (0.0000998, "$0.00010"), (0.5, "$0.50"), (4.5, "$4.50"), (12, "$12"),
        (1234.5, "$1,234"), (12345, "$12,300"), (999_960, "$1M"), (1_234_000, "$1.23M"), (2.5e9, "$2.5B"),
        (-20, "−$20"), (-0.002, "−$0.0020"),
    ],
)  # fmt: skip
def test_dollars_have_sensible_digits(value: float | None, shown: str) -> None:
    assert words.usd(value) == shown


def test_numbers_are_written_for_people() -> None:
    assert words.usd_range(Range(low=2, high=2)) == "$2"
    assert words.usd_range(None) == "unknown"
    assert words.count_range(Range(low=6000, high=1.5e6)) == "6,000 to 1.5M"
    assert words.probability(1.0) == "over 99 %"
    assert words.probability(0.0) == "under 1 %"
    assert words.points(-0.051) == "−5.1"
    assert words.p_value(1e-9) == "< 0.001"
    assert words.volume(None) == "none"
    assert (words.months_range(3.3, 25), words.months_range(3.0, None)) == ("3.3 to 25 months", "3.0 months to never")


def test_what_calls_take_and_cost_and_which_labels_are_mixed_up_is_shown() -> None:
    calls = Calls(
        answered=60, accepted=30, latency=Spread(p50=0.25, p95=1.5, p99=2.75, n=60), first_token=Spread(p50=0.11, p95=0.22, p99=0.33, n=60),
        tokens_per_call=540, tokens_per_accepted=1080, usd_per_call=Range(low=0.002, high=0.002),
        usd_per_accepted=Range(low=0.004, high=0.004), price_source="stated",
    )  # fmt: skip
    table = Confusion(labels=("red", HOSTILE), counts=((20, 7, 3), (9, 21, 0)))
    told = arm("few-shot", share(60, 30)).model_copy(update={"calls": calls, "confusion": table})
    page = parsed(render_html(advise(intake(), measurement(told, arm("zero-shot", share(60, 20))), [plan()], today=TODAY)))
    times = ("0.25 / 1.50 / 2.75", "0.11 / 0.22 / 0.33", "not streamed")
    for shown in (*times, "540 / 1,080", "$0.0020", "$0.0040", "none of them", HOSTILE[:30]):
        assert shown in page.text, shown
    assert not any(tag == "script" for tag, _ in page.tags)


def test_what_a_cache_costs_to_write_is_shown_with_its_assumption() -> None:
    model = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
    asked = intake(incumbent={"provider": "bedrock", "model": model}, cache_hit_share=0.6)
    told = {a.what: a for a in advise(asked, None, [plan()], today=TODAY).assumptions}
    surcharge = next(a for what, a in told.items() if what.startswith("Surcharge for writing to the cache today"))
    assert surcharge.value.startswith("$0.28 per 1M tokens")
    assert surcharge.grade == "M"
    assert surcharge.observed_on is not None
    notes = [a.value for a in advise(asked, None, [plan()], today=TODAY).assumptions if a.what == "Note on today's model"]
    assert any("follows from the volume" in note and "5 minutes" in note for note in notes)
    steep = intake(incumbent={"provider": "bedrock", "model": model}, cache_hit_share=0.95, volume_per_month=1000)
    assert any("at most 11% of the requests" in warning for warning in advise(steep, None, [plan()], today=TODAY).warnings)
    unknown = intake(incumbent={"provider": "vertex", "model": "gemini-2.5-pro"}, cache_hit_share=0.5)
    assert advise(unknown, None, [plan()], today=TODAY).savings.economics is None  # nothing of it is priced


def test_what_the_decision_file_leaves_out_is_never_called_stated() -> None:
    def sources(**changes: object) -> dict[str, str]:
        return {a.what: a.source for a in advise(intake(**changes), None, [plan()], today=TODAY).assumptions}

    left_out = sources()
    given = sources(
        costs={"monitoring_usd_per_month": 0}, runs={"planned": 3}, retraining={"every_months": 6}, seasonality=[1] * 12
    )
    for what in ("Monitoring per month", "Training runs until one is kept", "Retraining", "Seasons"):
        assert left_out[what].startswith("tuneport's default") and given[what] == "stated in the decision file"
    for what in ("Share of runs that fail and are paid for", "Hours of a month in which requests arrive", "Cache-hit share, after tuning"):
        assert given[what].startswith("tuneport's default")
    assert left_out["Moving when today's model ends, one-time"] == "not stated in the decision file"
    assert left_out["Requests per month"] == "stated in the decision file"


def test_words_of_the_report_agree_and_stay_apart() -> None:
    """Before anything is measured no cost of misses is counted, and no part of the report says that it is."""
    report = advise(intake(incumbent={"provider": "openai", "model": "gpt-4.1-mini"}), None, [plan()], today=TODAY)
    html, text = render_html(report), render_markdown(report)
    counted = any(o.economics and o.economics.misses_counted for o in report.offers)
    assert not counted and "What wrong answers cost is counted" not in html and "None of the 0" not in html
    assert "; tuneport 0" in text and ", python 3" in text and not re.search(r",python|grade \w+\(", text)
    assert '<a href="#decision">1 Decision</a>' in html
    step = report.decision.next_steps[0]
    assert "tuneport baseline YOUR-SPEC.yaml -p openai -m gpt-4.1-mini-2025-04-14" in step
    named = advise(report.intake, None, [plan()], today=TODAY, spec_file="my jobs/tickets.yaml")
    assert "tuneport baseline 'my jobs/tickets.yaml' -p openai" in named.decision.next_steps[0]
    assert "step above" not in " ".join(report.decision.would_change)


def test_months_without_a_request_divide_nothing() -> None:
    """A school's answers: none in the weeks that an ending model has left."""
    asked = intake(incumbent={"provider": "openai", "model": "gpt-4.1-mini"}, seasonality=[0, 0, *[1] * 10])
    report = advise(asked, None, [plan("openai", "gpt-4.1-mini")], today=TODAY)
    money = report.savings.economics
    assert money is not None
    assert (money.likely.requests_per_month, money.likely.per_request_today) == (0, None)
    assert "no request" in render_html(report)
    assert render_markdown(report)
