"""``tuneport check`` beyond the structure: overlap, near duplicates, personal data, languages, lengths, limits, the page."""

from __future__ import annotations

import html.parser
import json
import random
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tuneport.core.data import tokens
from tuneport.core.data.check import CheckOptions, CheckReport, Finding, VendorFit, check_data, check_files, check_spec
from tuneport.core.data.check_page import render_page, verdict, write_page
from tuneport.core.data.judge import Findings, judge_vendors
from tuneport.core.data.language import language_of
from tuneport.core.errors import DataError, MissingExtraError, TuneportError, UsageError
from tuneport.core.spec_file import load_spec

TODAY = date(2026, 11, 22)
DRAW = random.Random(7)
VOCABULARY = [f"{DRAW.choice('bcdfglmnprst')}{DRAW.choice('aeiou')}{DRAW.choice('klmnrst')}{number}" for number in range(2_000)]


def text(words: int = 40) -> str:
    return " ".join(DRAW.choices(VOCABULARY, k=words))


def chat(question: str, answer: str = "a", system: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *messages]}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return str(path)


def by_code(report: CheckReport) -> dict[str, Finding]:
    return {finding.code: finding for finding in report.findings}


def test_near_duplicates_and_conflicts(tmp_path: Path) -> None:
    one, two = text(60), text(60)
    rows = [chat(one, "yes indeed"), chat(f"{one} extra", "yes indeed")]
    rows += [chat(two, "no"), chat(two.upper() + "!", "no"), chat(two, "maybe so")]
    found = by_code(check_data(write(tmp_path / "t.jsonl", rows)))
    assert found["near_duplicates"].lines == (2, 4, 5)
    assert found["near_duplicates"].examples[0].startswith("1 ~ 2 (0.9")
    assert found["conflicting_answers"].lines == (5,)
    strict = by_code(check_data(str(tmp_path / "t.jsonl"), options=CheckOptions(near=1.0)))
    assert strict["near_duplicates"].lines == (4,)
    without = check_data(str(tmp_path / "t.jsonl"), options=CheckOptions(skip=frozenset({"near-duplicates"})))
    assert "near_duplicates" not in by_code(without)
    assert without.skipped == ("near-duplicates",)


def test_the_ways_in_which_splits_overlap(tmp_path: Path) -> None:
    base = [text(60) for _ in range(5)]
    train = write(tmp_path / "t.jsonl", [chat(one, "an answer") for one in base] + [chat(text()) for _ in range(20)])
    words = base[3].split()
    leaks = [
        chat(base[0], "another answer", system="s"),
        chat(f"  {base[1].title()} !", "x"),
        chat(f"{base[2]} more", "an answer"),
        chat(f"{text(80)} {' '.join(words[10:24])} {text(80)}"),
        chat(text()),
    ]
    reports = check_files(train, write(tmp_path / "v.jsonl", leaks[3:]), write(tmp_path / "x.jsonl", leaks))
    found = by_code(reports["test"])
    assert {code: found[code].lines for code in found if "train" in code} == {
        "overlap_train": (1,),
        "normalised_overlap_train": (2,),
        "near_overlap_train": (3,),
        "passage_overlap_train": (4,),
    }
    assert {found[code].severity for code in ("overlap_train", "normalised_overlap_train", "near_overlap_train")} == {"error"}
    assert found["passage_overlap_train"].severity == "warning"
    assert found["overlap_validation"].lines == (4, 5)
    assert by_code(reports["validation"])["passage_overlap_train"].lines == (1,)


def test_a_phrase_in_many_training_rows_is_no_leak(tmp_path: Path) -> None:
    phrase = text(20)
    train = write(tmp_path / "t.jsonl", [chat(f"{phrase} {text()}") for _ in range(30)])
    reports = check_files(train, test=write(tmp_path / "x.jsonl", [chat(f"{text(90)} {phrase}")]))
    assert not [code for code in by_code(reports["test"]) if "overlap" in code]


def test_personal_data_is_counted_and_masked(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"to": "call@corp.com"}'}}]}
    rows: list[Any] = [chat(f"I am user{n}@mail.com", "ok", system="ask boss@corp.com") for n in range(3)]
    calling = [{"role": "user", "content": "q"}, call, {"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]
    rows += [chat("key sk-abcdefghijklmnopqrstuvwx"), {"messages": calling}]
    report = check_data(write(tmp_path / "t.jsonl", rows))
    assert report.personal == {"email": 5, "secret": 1}
    found = by_code(report)
    assert (found["personal_secret"].severity, found["personal_secret"].lines) == ("error", (4,))
    assert found["personal_email"].lines == (1, 2, 3, 5)
    printed = report.model_dump_json()
    assert "user1@mail.com" not in printed and "sk-abcdefg" not in printed and "boss@corp.com" not in printed
    some = check_data(str(tmp_path / "t.jsonl"), options=CheckOptions(personal=("ip",)))
    assert some.personal == {}


def test_names_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from tuneport.core.data.patterns import presidio

    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    presidio.cache_clear()
    with pytest.raises(MissingExtraError):
        check_data(write(tmp_path / "t.jsonl", [chat("q")]), options=CheckOptions(names=True))


def test_languages(tmp_path: Path) -> None:
    english = [chat(f"Where is my parcel number {n}? It was promised for today and nobody has an answer.") for n in range(50)]
    german = [chat(f"Wo ist mein Paket Nummer {n}? Es sollte heute kommen und niemand kann mir das sagen.") for n in range(2)]
    report = check_data(write(tmp_path / "t.jsonl", [*english, *german, chat("これは日本語の質問です、どこにありますか")]))
    assert report.languages == {"de": 2, "en": 50, "ja": 1}
    finding = by_code(report)["mixed_languages"]
    assert finding.lines == (51, 52, 53)
    assert "mostly en" in finding.message


def test_suspicious_characters(tmp_path: Path) -> None:
    odd = ["fine é 日本 \U0001f600\ttab\nline", "bell \x07", "lost \ufffd", "cafÃ©", "zero\u200bwidth", "evil \u202etxt"]
    rows = [chat(question) for question in odd]
    found = by_code(check_data(write(tmp_path / "t.jsonl", rows)))
    lines = {code.removeprefix("characters_"): finding.lines for code, finding in found.items() if code.startswith("characters_")}
    assert lines == {"control": (2,), "replacement": (3,), "mojibake": (4,), "invisible": (5,), "direction": (6,)}
    assert "\\x07" in found["characters_control"].examples[0]


def test_labels(tmp_path: Path) -> None:
    answers = ["billing"] * 30 + ["refund"] * 30 + ["Billing", "refund.", "other"]
    path = write(tmp_path / "t.jsonl", [chat(text(12), answer) for answer in answers])
    found = by_code(check_data(path, options=CheckOptions(labels=("billing", "refund"))))
    assert found["unknown_label"].severity == "error"
    assert found["unknown_label"].lines == (61, 62, 63)
    assert found["label_variants"].lines == (61, 62)
    assert "'Billing' for 'billing'" in found["label_variants"].examples
    assert found["inconsistent_punctuation"].lines == (62,)
    assert "small_class" not in found  # the five answers are too many for so few rows to be sure that they are classes
    long = check_data(write(tmp_path / "l.jsonl", [chat("q", text())]), options=CheckOptions(labels=("a",)))
    assert "unknown_label" in by_code(long)


def test_no_report_shows_personal_data(tmp_path: Path) -> None:
    mail, card = "anna.maier@firma.de", "4111 1111 1111 1111"
    prompt = f"You write for the shop of {mail} at all times"
    rows = [chat(text(12), '{"a": "' + mail + '"}')] + [chat(text(12), "yes") for _ in range(40)]
    rows += [chat(text(12), answer, system=prompt) for answer in (mail, mail, mail.title(), card)]
    rows += [chat(f"{letter} \x07 {card} {mail}\u200b {mail[:4]}\u200b{mail[4:]}") for letter in "ab"]
    rows += [{"messages": [{"role": mail, "content": "x"}, {"role": "assistant", "content": "y"}]}]
    options = CheckOptions(labels=("yes", "no"))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    path, met = write(tmp_path / "t.jsonl", rows), set()
    more: dict[str, Any] = {"system_prompt": "p", "json_schema": schema}
    for given in (more, {}):
        report = check_data(path, options=options, **given)
        assert "firma" not in report.model_dump_json().lower() and "1111" not in report.model_dump_json()
        met |= {finding.code for finding in report.findings if "**" in finding.message or any("**" in shown for shown in finding.examples)}
    assert met >= {"unknown_label", "other_system_prompt", "schema_mismatch", "unknown_role", "characters_control", "characters_invisible"}


def test_answers_that_are_labels_are_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [chat(text(12), "rare" if n < 20 else "common") for n in range(300)])
    assert {"small_class", "unbalanced_classes"} <= by_code(check_data(path)).keys()


def test_the_production_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [chat("q1", system="old prompt"), chat("q2", system="p"), chat("q3")])
    found = by_code(check_data(path, system_prompt="p"))
    assert found["other_system_prompt"].lines == (1,)
    assert "old prompt" in found["other_system_prompt"].examples


def test_lengths_against_every_vendor(tmp_path: Path) -> None:
    rows = [chat(f"{n} {text(20)}") for n in range(50)] + [chat(text(9_000))]
    path = write(tmp_path / "t.jsonl", rows)
    report = check_data(path, options=CheckOptions(today=TODAY))
    assert [quantile.share for quantile in report.lengths] == [0.5, 0.9, 0.99, 1.0]
    assert report.lengths[0].high < 200 and report.lengths[-1].high > 10_000
    assert all(fit.problems for fit in report.vendors)  # limits that nobody asked for and nothing breaks say nothing
    assert "claude-3-haiku" not in {model for fit in report.vendors for model in fit.models}  # closed
    old = CheckOptions(models=("titan-text-express", "claude-3-haiku"), today=date(2025, 1, 1))
    long_ago = check_data(path, options=old)
    titan = next(fit for fit in long_ago.vendors if "titan-text-express" in fit.models)
    assert (titan.max_tokens, titan.surely_over, titan.perhaps_over) == (4096, 1, 1)
    claude = next(fit for fit in long_ago.vendors if "claude-3-haiku" in fit.models)
    assert (claude.min_rows, claude.max_rows) == (32, 10_000)
    everywhere = check_data(path, options=CheckOptions(providers=("openai", "bedrock", "together", "fireworks", "local"), today=TODAY))
    assert {fit.provider for fit in everywhere.vendors} == {"openai", "bedrock", "together", "fireworks", "local"}
    chosen = check_data(path, options=CheckOptions(models=("llama-3.1-8b-instruct",), providers=("bedrock",)))
    assert {fit.provider for fit in chosen.vendors} == {"bedrock"}
    assert by_code(chosen)["vendor_limit_bedrock"].severity == "error"  # at least 100 rows are needed
    assert by_code(check_data(path, options=CheckOptions(max_tokens=1_000)))["cut_rows"].lines == (51,)


def test_each_provider_has_one_line_and_closed_models_none(tmp_path: Path) -> None:
    for count in (29, 40):
        report = check_data(write(tmp_path / "t.jsonl", [chat(f"{n} {text(20)}") for n in range(count)]), options=CheckOptions(today=TODAY))
        lines = [finding for finding in report.findings if finding.code.startswith("vendor_limit_")]
        assert [(finding.code, finding.severity) for finding in lines] == [("vendor_limit_bedrock", "info")]
        assert lines[0].message.startswith(f"bedrock: {count} rows; at least 100 are needed (llama-") and "claude" not in lines[0].message


def test_the_provider_that_takes_fewest_comes_first() -> None:
    def fit(provider: str, model: str, *problems: str) -> VendorFit:
        return VendorFit(provider=provider, models=(model,), problems=problems)

    fits = [fit("a", "m", "9 rows; at least 10 are needed"), fit("a", "n"), fit("c", "m", "9 rows; at least 20 are needed")]
    for order in (fits, fits[::-1]):
        findings = Findings()
        judge_vendors(findings, order, "info", {})
        assert [finding.message for finding in findings.all()] == [
            "c: 9 rows; at least 20 are needed (m)", "a: 9 rows; at least 10 are needed (m)",
        ]  # fmt: skip


def test_a_spec_is_set_against_its_own_models_and_providers(tmp_path: Path) -> None:
    data = {"train": write(tmp_path / "t.jsonl", [chat(f"{n} {text(20)}") for n in range(29)])}
    options = CheckOptions(today=TODAY)
    anywhere = check_spec(load_spec({"model": "llama-3.1-8b-instruct", "data": data}), options=options)["train"]
    assert by_code(anywhere)["vendor_limit_bedrock"].severity == "warning"
    assert {model for fit in anywhere.vendors for model in fit.models} == {"llama-3.1-8b-instruct"}
    named = check_spec(load_spec({"model": {"openai": "gpt-4.1-mini"}, "data": data}), options=options)["train"]
    assert {fit.provider for fit in named.vendors} == {"openai"} and named.ok
    tight = check_spec(load_spec({"model": {"bedrock": "llama-3.1-8b-instruct"}, "data": data}), options=options)["train"]
    assert by_code(tight)["vendor_limit_bedrock"].severity == "error"


def test_models_and_providers_must_be_known_open_and_tunable(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [chat("q")])
    for options, says in (
        (CheckOptions(models=("lama-3.1-8b-instruct",)), "did you mean llama-3.1-8b-instruct"),
        (CheckOptions(providers=("opnai",)), "did you mean 'openai'"),
        (CheckOptions(models=("gpt-4.1-mini",), providers=("bedrock",)), "bedrock does not offer gpt-4.1-mini"),
    ):
        with pytest.raises(UsageError, match=says):
            check_data(path, options=options)
    ended = by_code(check_data(path, options=CheckOptions(models=("claude-3-haiku",), today=TODAY)))["vendor_limit_bedrock"]
    assert ended.severity == "error" and "bedrock ended" in ended.message
    only_openai = CheckOptions(providers=("openai",), today=TODAY)
    untaught = check_data(write(tmp_path / "x.jsonl", [{"text": "x"}]), method="cpt", options=only_openai)
    assert "does not tune any of its models by cpt" in by_code(untaught)["vendor_limit_openai"].message


def test_counting_without_the_extra_is_refused_not_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    tokens._o200k.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"pip install 'tuneport\[tokens\]'"):
            check_data(write(tmp_path / "t.jsonl", [chat("q")]), options=CheckOptions(count_tokens=True))
    finally:
        tokens._o200k.cache_clear()


def test_a_language_is_named_only_when_it_is_clear(tmp_path: Path) -> None:
    for doubtful in ("I need a new PIN for a card", "Is a SWIFT transfer a service?", "A transfer is pending."):
        assert language_of(doubtful) in ("en", "unclear")
    report = check_data(write(tmp_path / "t.jsonl", [chat("Where is the card that I ordered from you?")] * 4 + [chat("ok")]))
    assert report.languages == {"en": 4, "unclear": 1} and "mixed_languages" not in by_code(report)
    assert "sample of 5 rows" in render_page([report]) and "(unclear: too few words to tell)" in render_page([report])


def test_bytes_that_are_no_text_are_told_from_another_encoding(tmp_path: Path) -> None:
    noise = tmp_path / "noise.jsonl"
    noise.write_bytes(random.Random(5).randbytes(2_000))
    with pytest.raises(DataError, match="no text file"):
        check_data(str(noise))
    old = tmp_path / "old.jsonl"
    old.write_bytes('{"messages": "ä"}\n'.encode("cp1252") * 3 + "Привет как дела\n".encode("cp1251") * 9)
    assert "UTF-8" in by_code(check_data(str(old)))["malformed_row"].message
    with pytest.raises(UsageError, match="standard input is not read"):
        check_data("-")


def test_counted_tokens(tmp_path: Path) -> None:
    pytest.importorskip("bpe_openai")
    path = write(tmp_path / "t.jsonl", [chat("hello world", "hello")])
    report = check_data(path, options=CheckOptions(count_tokens=True))
    assert report.tokens is not None and report.tokens.exact
    assert report.tokens.low == report.tokens.high == 4 + 2 + 4 + 1


def test_parts_of_the_check_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [chat("mail a@corp.com")] * 2)
    report = check_data(path, options=CheckOptions(skip=frozenset({"duplicates", "personal-data", "tokens"})))
    assert report.tokens is None and report.lengths == () and report.personal == {}
    assert report.answers is not None and report.answers.distinct is None
    assert "duplicate_rows" not in by_code(report)
    with pytest.raises(UsageError):
        CheckOptions(skip=frozenset({"everything"}))  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        CheckOptions(near=0)


def test_preference_pairs_and_sides(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": chosen, "rejected": rejected} for chosen, rejected in (("a", "a"), (" ", "b"), ("c", "d"))]
    found = by_code(check_data(write(tmp_path / "t.jsonl", rows), method="dpo"))
    assert found["identical_pair"].lines == (1,)
    assert found["empty_turn"].lines == (2,)


def test_progress_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [chat(f"q{n}") for n in range(100)])
    told: list[tuple[str, int, int | None]] = []
    check_data(path, on_progress=lambda *step: told.append(step))
    size = Path(path).stat().st_size
    assert told[-1] == (path, size, size)


def test_no_schema_is_fetched(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [chat("q", '{"a": 1}')])
    assert by_code(check_data(path, json_schema={"type": "object", "required": ["b"]}))["schema_mismatch"].count == 1
    local = {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    assert check_data(path, json_schema=local).ok


@pytest.mark.parametrize("extra", [True, False], ids=["with jsonschema-rs", "without"])
def test_a_schema_reaches_no_file_and_a_reference_to_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: bool
) -> None:
    if not extra:
        monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    path = write(tmp_path / "t.jsonl", [chat("q", '{"a": 1}')])
    (tmp_path / "s.json").write_text('{"type": "array"}')
    for ref, says in (((tmp_path / "s.json").as_uri(), "another document"), ("#/$defs/none", "#/$defs/none, which it does not hold")):
        with pytest.raises(UsageError, match=re.escape(says)):
            check_data(path, json_schema={"properties": {"a": {"$ref": ref}}})
    finding = by_code(check_data(path, json_schema={"properties": {"a": {"$ref": "#nowhere"}}}))["schema_mismatch"]
    assert "refers to an anchor that it does not hold" in finding.message


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]


def test_the_page_is_whole_escaped_and_without_script(tmp_path: Path) -> None:
    rows = [{"text": f"{text(9)} a{n}@corp.com", "label": "<script>alert(1)</script>" if n % 2 else "b"} for n in range(60)]
    report = check_data(write(tmp_path / "<b>t.jsonl", [*rows, {"text": "x"}]))
    page = render_page([report])
    tags = _Tags()
    tags.feed(page)
    assert not tags.tags & {"script", "img", "link", "iframe", "object", "b"} and not tags.links
    assert "&lt;script&gt;alert(1)" in page and "alert(1)</script>" not in page
    assert all(finding.code in page for finding in report.findings)
    write_page(tmp_path / "page.html", [report])
    assert (tmp_path / "page.html").read_text() == page
    assert verdict([report]) == "1 of 61 rows has faults of 1 kind: mend before training."
    (tmp_path / "file").write_text("")
    for place, why in (("file", "cannot be written"), ("none", "none does not exist")):
        with pytest.raises(TuneportError, match=why) as caught:
            write_page(tmp_path / place / "page.html", [report])
        assert caught.value.exit_code == 1  # the machine's fault, not the data's (docs/errors.md)
