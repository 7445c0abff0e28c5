"""Suites, arms and measurements, with a scripted provider in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from tuneport.advisor.arm import Progress, run_arm
from tuneport.advisor.measure import compare, measure, power_of
from tuneport.advisor.measurement import Measurement
from tuneport.advisor.suite import Columns, EvalSuite, build_suite, load_suite
from tuneport.core.data.rows import Row
from tuneport.core.errors import DataError, ProviderError, TuneportError, UsageError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.core.spec import JobSpec

CATEGORIES = ("billing", "shipping", "returns")


class Scripted:
    """Answers by a function of the messages; replies in shuffled order; counts what it is asked."""

    name = "scripted"

    def __init__(self, answer: Callable[[Any], str | ChatReply], *, fail_after: int | None = None) -> None:
        self.answer = answer
        self.fail_after = fail_after
        self.asked: list[ChatRequest] = []

    def chat(self, model: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        everything = list(requests)
        shuffled = random.Random(0).sample(everything, len(everything))
        for request in shuffled:
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise ProviderError("the service went away", fix="run again")
            self.asked.append(request)
            reply = self.answer(request.messages)
            if isinstance(reply, str):
                yield ChatReply(request.id, reply, prompt_tokens=10, completion_tokens=5, seconds=0.1)
            else:
                yield ChatReply(request.id, reply.text, reply.prompt_tokens, reply.completion_tokens, reply.seconds, reply.error)


def answer_of(i: int) -> str:
    return json.dumps({"category": CATEGORIES[i % 3], "order": f"A-{i}"})


def chat_row(question: str, answer: str, line: int = 1, **rest: Any) -> Row:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer, "weight": 1})
    return Row(kind="chat", file="rows.jsonl", line=line, messages=messages, **rest)


def rows(start: int, count: int) -> list[Row]:
    return [chat_row(f"ticket {i}", answer_of(i), i) for i in range(start, start + count)]


def tickets(n: int = 12, **options: Any) -> EvalSuite:
    return build_suite(rows(0, n), rows(1000, 30), source="test.jsonl", **options)


def number(messages: Any) -> int:
    return int(messages[-1]["content"].split()[1])


def right_for(good: Callable[[int], bool]) -> Callable[[Any], str]:
    return lambda messages: answer_of(number(messages)) if good(number(messages)) else '{"category": "other", "order": "?"}'


# --- suite ---


def test_suite_asks_without_the_answer_and_detects_the_task() -> None:
    suite = tickets(system_prompt="Answer in JSON.")
    assert (suite.scorer.task, suite.scorer.label_field) == ("json", "category")
    assert suite.prompts()[0] == ({"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": "ticket 0"})
    assert all("weight" not in message for prompt in suite.prompts(3) for message in prompt)


def test_suite_hash_follows_content() -> None:
    assert tickets().sha256 == tickets().sha256 != tickets(11).sha256
    assert tickets(system_prompt="x").sha256 != tickets().sha256


def test_few_shot_covers_labels_evenly_and_comes_from_train_only() -> None:
    suite = tickets()
    chosen = suite.few_shot(6)
    assert sorted(json.loads(item.expected)["category"] for item in chosen) == sorted(CATEGORIES * 2)
    assert all(item.line >= 1000 for item in chosen)
    assert suite.few_shot(3) == chosen[:3]
    prompt = suite.prompts(2)[0]
    assert [message["role"] for message in prompt] == ["user", "assistant"] * 2 + ["user"]


def test_few_shot_depends_on_contents_and_seed_not_on_row_order() -> None:
    train = rows(1000, 300)
    forward, backward = (build_suite(rows(0, 9), order, source="t", seed=4) for order in (train, train[::-1]))
    assert forward.few_shot(7) == backward.few_shot(7)
    assert forward.few_shot(7) != build_suite(rows(0, 9), train, source="t", seed=5).few_shot(7)


def test_training_rows_that_are_tested_are_reported_and_never_shown() -> None:
    leaked = [chat_row("  TICKET 3 ", answer_of(3), 2000), chat_row("ticket 5", "another answer", 2001)]
    suite = build_suite(rows(0, 12), [*rows(1000, 4), *leaked, *rows(1000, 4)], source="t")
    assert suite.contaminated == (3, 5)
    assert {item.line for item in suite.few_shot(4)} == {1000, 1001, 1002, 1003}
    with pytest.raises(UsageError, match="at most 4"):
        suite.few_shot(5)


def test_training_rows_without_an_answer_are_no_candidates() -> None:
    bad = Row(kind="unpaired_preference", file="t", line=1, messages=chat_row("ticket 9000", "x").messages, desirable=False)
    text = Row(kind="text", file="t", line=2, text="a page")
    assert len(build_suite(rows(0, 3), [bad, text, *rows(1000, 1)], source="t").few_shot(1)) == 1


def test_answers_from_a_reference_column_and_from_preferences() -> None:
    question = ({"role": "user", "content": "2+2?"},)
    rft = Row(kind="chat", file="t", line=1, messages=question, columns={"answer": 4})
    assert build_suite([rft], source="t", columns=Columns(reference="answer")).items[0].expected == "4"
    four, five = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
    pair = Row(kind="preference", file="t", line=1, messages=question, chosen=four, rejected=five)
    assert build_suite([pair], source="t").items[0].expected == "4"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Row(kind="text", file="t.jsonl", line=7, text="x"), "t.jsonl:7 has no question"),
        (Row(kind="chat", file="t", line=1, messages=({"role": "user", "content": "?"},), columns={"gold": 1}), "gold"),
        (chat_row("q", ""), "without text"),
        (chat_row("q", "a", tools=({"type": "function"},)), "uses tools"),
        (Row(kind="unpaired_preference", file="t", line=1, messages=chat_row("q", "a").messages, desirable=False), "undesirable"),
    ],
)
def test_rows_that_cannot_be_measured_are_named(row: Row, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_suite([row], source="t")


def test_suite_from_a_spec_holds_out_rows_of_the_training_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": list(row.messages)}) + "\n" for row in rows(0, 40)))
    spec = JobSpec.model_validate({"model": "m", "data": {"train": str(tmp_path / "rows.jsonl"), "split": {"test": 0.25}}})
    suite = load_suite(spec, max_tokens=99)
    assert len(suite) == 10
    assert suite.contaminated == ()
    asked = {item.messages[-1]["content"] for item in suite.items}
    assert len(suite.few_shot(30)) == 30
    assert not asked & {item.messages[-1]["content"] for item in suite.few_shot(30)}
    assert suite.max_tokens == 99
    with pytest.raises(UsageError, match="holds no test rows out"):
        load_suite(JobSpec.model_validate({"model": "m", "data": {"train": str(tmp_path / "rows.jsonl")}}))


def test_suite_from_label_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"question {i}", "label": CATEGORIES[i % 3]}) for i in range(12)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(line.replace("question", name) for line in lines))
    spec = JobSpec.model_validate({"model": "m", "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}})
    suite = load_suite(spec)
    assert suite.scorer.task == "label"
    assert sorted(item.expected for item in suite.few_shot(3)) == sorted(CATEGORIES)


def test_an_empty_suite_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no test rows"):
        build_suite([], source="t")


# --- arms ---


def test_arm_scores_every_row_once_in_suite_order() -> None:
    suite = tickets(12)
    provider = Scripted(right_for(lambda i: i < 9))
    arm = run_arm(provider, "m", suite, name="zero-shot")
    assert sorted(number(request.messages) for request in provider.asked) == list(range(12))
    assert [answer.row for answer in arm.answers] == list(range(12))
    exact = arm.metrics["exact_match"]
    assert (exact.value, exact.n, exact.method) == (0.75, 12, "Wilson")
    assert next(iter(arm.metrics)) == "exact_match"
    assert arm.metrics["json_valid"].value == 1
    assert arm.metrics["field.category"].value == 0.75
    # per category 4 rows, 3 of them right and none wrongly claimed: F1 = 6/7
    assert arm.metrics["macro_f1"].value == pytest.approx(6 / 7)
    assert arm.mean_prompt_tokens == 10


def test_a_killed_run_resumes_without_asking_twice(tmp_path: Path) -> None:
    suite, cache = tickets(12), tmp_path / "answers"
    first = Scripted(right_for(lambda i: True), fail_after=5)
    with pytest.raises(ProviderError, match="went away"):
        run_arm(first, "m", suite, name="a", cache=cache)
    second = Scripted(right_for(lambda i: True))
    seen: list[Progress] = []
    arm = run_arm(second, "m", suite, name="a", cache=cache, on_progress=seen.append)
    assert len(first.asked) == 5
    assert len(second.asked) == 7
    assert not {r.id for r in first.asked} & {r.id for r in second.asked}
    assert (seen[0].done, seen[0].cached, seen[-1].done, seen[-1].total) == (5, 5, 12, 12)
    assert seen[-1].completion_tokens == 35
    third = Scripted(right_for(lambda i: False))
    assert run_arm(third, "m", suite, name="a", cache=cache) == arm
    assert not third.asked


@pytest.mark.parametrize("change", [{"model": "n"}, {"shots": 1}, {"job": "j2"}, {"scope": "https://other"}])
def test_answers_are_kept_apart_by_all_that_decides_them(tmp_path: Path, change: dict[str, Any]) -> None:
    suite, provider = tickets(4), Scripted(right_for(lambda i: True))
    settings: dict[str, Any] = {"model": "m", "name": "a", "cache": tmp_path}
    run_arm(provider, suite=suite, **settings)
    run_arm(provider, suite=suite, **(settings | change))
    assert len(provider.asked) == 8


def test_damaged_answers_are_asked_again(tmp_path: Path) -> None:
    suite, provider = tickets(4), Scripted(right_for(lambda i: True))
    run_arm(provider, "m", suite, name="a", cache=tmp_path)
    files = sorted(tmp_path.rglob("*.json"))
    for file, content in zip(files, ("", "[]", '{"text": 3}', '{"text": "x"}'), strict=True):
        file.write_text(content)
    again = run_arm(provider, "m", suite, name="a", cache=tmp_path)
    assert len(provider.asked) == 8
    assert again.metrics["exact_match"].value == 1
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_errors_count_as_wrong_are_reported_and_asked_again(tmp_path: Path) -> None:
    def flaky(messages: Any) -> str | ChatReply:
        return ChatReply("", "", error="429 too many requests") if number(messages) == 2 else answer_of(number(messages))

    suite = tickets(12)
    arm = run_arm(Scripted(flaky), "m", suite, name="zero-shot", cache=tmp_path)
    assert arm.metrics["exact_match"].value == pytest.approx(11 / 12)
    assert arm.answers[2].error == "429 too many requests"
    assert set(arm.answers[2].scores.values()) == {0.0}
    assert any("1 of 12 rows of arm zero-shot have no answer" in w and "429" in w for w in measure(suite, [arm]).warnings)
    retry = Scripted(right_for(lambda i: True))
    assert run_arm(retry, "m", suite, name="zero-shot", cache=tmp_path).metrics["exact_match"].value == 1
    assert len(retry.asked) == 1


def test_missing_replies_are_unanswered_rows() -> None:
    class Silent(Scripted):
        def chat(self, model: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
            return iter(list(super().chat(model, requests))[:-1])

    seen: list[Progress] = []
    arm = run_arm(Silent(right_for(lambda i: True)), "m", tickets(6), name="a", on_progress=seen.append)
    assert [a.error for a in arm.answers if a.error] == ["the provider gave no answer"]
    assert (seen[-1].done, seen[-1].errors) == (6, 1)


@pytest.mark.parametrize(("mangle", "words"), [(lambda r: [r[0], *r], "twice"), (lambda r: [ChatReply("x", "y"), *r], "no request")])
def test_replies_that_fit_no_request_are_provider_errors(mangle: Callable[[list[ChatReply]], list[ChatReply]], words: str) -> None:
    class Confused(Scripted):
        def chat(self, model: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
            return iter(mangle(list(super().chat(model, requests))))

    with pytest.raises(ProviderError, match=words):
        run_arm(Confused(right_for(lambda i: True)), "m", tickets(3), name="a")


def test_equal_prompts_are_asked_once_and_reported() -> None:
    suite = build_suite([*rows(0, 3), *rows(0, 3)], source="t")
    provider = Scripted(right_for(lambda i: True))
    arm = run_arm(provider, "m", suite, name="a")
    assert (len(provider.asked), len(arm.answers), arm.metrics["exact_match"].value) == (3, 6, 1)
    assert any("3 of 6 test rows repeat" in warning for warning in measure(suite, [arm]).warnings)


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    provider = Scripted(right_for(lambda i: True))
    with pytest.raises(UsageError, match="cannot keep answers"):
        run_arm(provider, "m", tickets(3), name="a", cache=tmp_path / "file")
    assert not provider.asked


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(TuneportError, match="No space left"):
        run_arm(Scripted(right_for(lambda i: True)), "m", tickets(3), name="a", cache=tmp_path)
    assert not list(tmp_path.rglob("*.part"))


# --- comparisons and measurements ---


def test_comparison_counts_pairs_and_agrees_with_mcnemar() -> None:
    suite = tickets(12)
    before = run_arm(Scripted(right_for(lambda i: i < 4)), "m", suite, name="zero-shot")
    after = run_arm(Scripted(right_for(lambda i: i > 0)), "m", suite, name="tuned", kind="tuned", job="j1")
    found = compare(before, after, "exact_match")
    assert (found.only_baseline, found.only_challenger) == (1, 8)
    assert found.difference.value == pytest.approx(7 / 12)
    assert found.difference.low < 7 / 12 < found.difference.high
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9)
    halves = run_arm(Scripted(lambda messages: answer_of(number(messages)).replace("A-", "B-")), "m", suite, name="halves")
    graded = compare(before, halves, "field_accuracy")
    assert graded.difference.value == pytest.approx(1 / 2 - 1 / 3)
    pairs = [[a.scores["field_accuracy"] for a in run.answers] for run in (before, halves)]
    assert graded.p_value == pytest.approx(ttest_rel(*pairs).pvalue, abs=1e-9)
    assert (graded.test, graded.only_baseline, found.test) == ("paired t", None, "exact McNemar")
    assert graded.difference.method.startswith("bootstrap")
    with pytest.raises(UsageError, match="needs the suite"):
        compare(before, after, "macro_f1")
    f1 = compare(before, after, "macro_f1", suite)
    assert f1.difference.value == pytest.approx(after.metrics["macro_f1"].value - before.metrics["macro_f1"].value)
    assert f1.p_value is not None
    assert f1.p_value < 0.05
    assert f1.difference.low > 0
    with pytest.raises(UsageError, match="no metric"):
        compare(before, after, "bleu")


def test_measurement_pairs_prompted_before_tuned_and_survives_json() -> None:
    suite = tickets(60, schema={"type": "object", "required": ["category"]})
    tuned = run_arm(Scripted(right_for(lambda i: i % 10 > 0)), "m", suite, name="tuned", kind="tuned", job="j")
    zero = run_arm(Scripted(right_for(lambda i: i % 10 > 6)), "m", suite, name="zero-shot")
    few = run_arm(Scripted(right_for(lambda i: i % 10 > 4)), "m", suite, name="few-shot (3)", shots=3)
    found = measure(suite, [tuned, zero, few])
    pairs = [(c.baseline, c.challenger) for c in found.comparisons if c.metric == found.primary_metric]
    assert pairs == [("zero-shot", "few-shot (3)"), ("zero-shot", "tuned"), ("few-shot (3)", "tuned")]
    assert found.arm("few-shot (3)").shots == 3
    # the best prompted arm is few-shot: 5 right in 10, tuned 9 in 10, so 4 in 10 rows are discordant
    assert (found.power.discordant, found.power.discordant_source) == (pytest.approx(0.4), "measured")
    assert not any("small" in warning for warning in found.warnings), "the difference was found, so the suite was large enough"
    assert Measurement.model_validate_json(found.model_dump_json()) == found


def test_hostile_answers_survive_the_whole_way(tmp_path: Path) -> None:
    hostile = ["\ud800", "[" * 9000, "x" * 1_500_000, "NaN", '{"a":1,"a":2}', "\x00<script>"]
    suite = tickets(6)
    arm = run_arm(Scripted(lambda messages: hostile[number(messages)]), "m", suite, name="a", cache=tmp_path)
    assert arm.metrics["json_valid"].high < 1
    assert arm.metrics["macro_f1"].value == 0
    measured = measure(suite, [arm])
    assert Measurement.model_validate_json(measured.model_dump_json()) == measured


def test_one_arm_has_an_assumed_power_and_a_small_suite_says_what_it_needs() -> None:
    suite = tickets(30)
    found = measure(suite, [run_arm(Scripted(right_for(lambda i: True)), "m", suite, name="a")])
    assert found.power.discordant_source == "assumed"
    assert found.power.statement == "30 rows can detect about 26 points"
    needs = "to detect 5 points it needs about 621 rows where arms disagree on 20% of the rows, as assumed"
    assert any(needs in warning for warning in found.warnings)
    assert power_of(120).statement == "120 rows can detect about 11 points"


def test_warnings_of_the_suite() -> None:
    same = build_suite([chat_row(f"q {i}", '{"a": "x"}', i) for i in range(8)], source="t", label_field="a", schema={"required": ["b"]})
    arm = run_arm(Scripted(lambda _: '```json\n{"a": "x"}\n```'), "m", same, name="zero-shot")
    told = measure(same, [arm])
    assert told.uniform
    text = "\n".join(told.warnings)
    assert "All expected answers are the same" in text
    assert "8 of 8 expected answers break the JSON Schema" in text
    assert "8 of 8 answers of arm zero-shot hold JSON inside a code fence" in text
    leaked = build_suite(rows(0, 9), rows(0, 2), source="t")
    cut = run_arm(Scripted(lambda _: ChatReply("", "{", completion_tokens=leaked.max_tokens)), "m", leaked, name="a")
    text = "\n".join(measure(leaked, [cut]).warnings)
    assert "2 of 9 test rows have a prompt that is also in the training rows" in text
    assert "9 of 9 answers of arm a reached the limit" in text
    assert "3 of 3 labels have fewer than 5 rows" in text


def test_holm_warns_of_a_difference_that_several_comparisons_explain() -> None:
    suite = tickets(60)
    # b beats a on 6 rows and loses none: p = 0.031 alone; against c nothing is significant.
    a = run_arm(Scripted(right_for(lambda i: i < 30)), "m", suite, name="a")
    b = run_arm(Scripted(right_for(lambda i: i < 36)), "m", suite, name="b")
    c = run_arm(Scripted(right_for(lambda i: i < 33)), "m", suite, name="c")
    assert any("b against a: p = 0.031 alone, but 0.094" in warning for warning in measure(suite, [a, b, c]).warnings)


def test_measure_refuses_arms_that_do_not_fit() -> None:
    suite = tickets(6)
    arm = run_arm(Scripted(right_for(lambda i: True)), "m", suite, name="a")
    with pytest.raises(UsageError, match="share a name"):
        measure(suite, [arm, arm])
    with pytest.raises(UsageError, match="6 answers for 5 rows"):
        measure(tickets(5), [arm])
    other = run_arm(Scripted(right_for(lambda i: True)), "m", tickets(5), name="b")
    with pytest.raises(UsageError, match="6 and 5 rows"):
        compare(arm, other, "exact_match")


def test_label_suite() -> None:
    labels = ["card lost", "refund", "top up"]
    suite = build_suite([chat_row(f"q {i}", labels[i % 3], i, label=labels[i % 3]) for i in range(30)], source="t")
    arm = run_arm(Scripted(lambda messages: labels[number(messages) % 3].title() + "."), "m", suite, name="a")
    assert (suite.scorer.task, list(arm.metrics)) == ("label", ["accuracy", "exact_match", "macro_f1", "micro_f1"])
    assert (arm.metrics["accuracy"].value, arm.metrics["exact_match"].value, arm.metrics["macro_f1"].value) == (1, 0, 1)


@given(st.lists(st.text(max_size=20), min_size=4, max_size=4))
def test_any_answers_make_a_measurement(answers: list[str]) -> None:
    suite = tickets(4)
    one = run_arm(Scripted(lambda messages: answers[number(messages)]), "m", suite, name="a")
    two = run_arm(Scripted(right_for(lambda i: i < 2)), "m", suite, name="b")
    found = measure(suite, [one, two])
    assert all(0 <= e.low <= e.value <= e.high <= 1 for arm in found.arms for e in arm.metrics.values())
    assert all(-1 <= c.difference.low <= c.difference.value <= c.difference.high <= 1 for c in found.comparisons)
