"""Arms: prompts of every kind, repeats and clusters, money that is capped, a run that is killed, and what the calls took."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuneport.advisor.arm import Progress, rescored, run_arm
from tuneport.advisor.measure import compare, measure
from tuneport.advisor.spending import Purse, rates_of, stated_rates
from tuneport.advisor.suite import Columns, EvalSuite, build_suite
from tuneport.core.data.rows import Row
from tuneport.core.errors import BudgetError, DataError, ProviderError, UsageError
from tuneport.core.provider import ChatReply, ChatRequest
from tuneport.tests.chat_server import chat_server
from tuneport.tests.test_measure import Scripted, answer_of, chat_row, number, right_for, rows, tickets

ROOT = Path(__file__).resolve().parent.parent
RATES = stated_rates("1/2")


def with_columns(count: int, **columns: Any) -> list[Row]:
    told = [{name: value(i) if callable(value) else value for name, value in columns.items()} for i in range(count)]
    return [chat_row(f"ticket {i}", answer_of(i), i, columns=told[i]) for i in range(count)]


# --- prompts ---


def test_context_stands_before_the_question_also_in_examples() -> None:
    train = [chat_row("ticket 99", answer_of(99), 99, columns={"found": ["one", "two"]})]
    suite = build_suite(with_columns(2, found="Order A-7 is late."), train, source="t", columns=Columns(context="found"))
    prompt = suite.prompts(1, context=True)[0]
    assert [m["content"] for m in prompt] == [
        "Context:\none\n\ntwo\n\nQuestion:\nticket 99", answer_of(99), "Context:\nOrder A-7 is late.\n\nQuestion:\nticket 0",
    ]  # fmt: skip
    assert suite.prompts()[0][-1]["content"] == "ticket 0"
    with pytest.raises(UsageError, match="no row of the suite has a context"):
        tickets(3).prompts(context=True)


def test_template_sees_the_row_and_the_examples_but_never_the_answer() -> None:
    template = "{% for e in examples %}{{ e.question }} => {{ e.answer }}\n{% endfor %}{{ row.tone }}: {{ question }} ({{ context }})"
    asked = [Row(kind="chat", file="t", line=1, messages=({"role": "user", "content": "2+2?"},), columns={"tone": "calm", "gold": "4"})]
    suite = build_suite(asked, rows(1000, 3), source="t", columns=Columns(reference="gold"), system_prompt="Be brief.")
    assert suite.prompts(0, template=template)[0] == (
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "calm: 2+2? ()"},
    )  # fmt: skip
    assert suite.prompts(1, "Other.", template=template)[0][0]["content"] == "Other."
    assert " => {" in suite.prompts(1, template=template)[0][1]["content"]
    for bad, says in (
        ("{{ question", "no Jinja template"), ("{{ answer }}{{ question }}", "uses answer"), ("hello", "nothing of the row"),
        ("{{ row.gold }}", "cannot be filled"), ("{{ question.__class__.__mro__ }}", "cannot be filled"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            suite.prompts(template=bad)
    with pytest.raises(UsageError, match="leaves the 2 few-shot examples out"):
        suite.prompts(2, template="{{ question }}")


# --- repeats and clusters ---


class Moody(Scripted):
    """Answers rightly on the first asking of a question, wrongly on the second."""

    def chat(self, model: str, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        met: Counter[int] = Counter()
        for request in requests:
            i = number(request.messages)
            met[i] += 1
            self.asked.append(request)
            yield ChatReply(request.id, answer_of(i) if met[i] == 1 or i < 2 else "{}", 10, 5, 0.1)


def test_repeats_reduce_noise_within_rows_and_add_no_rows(tmp_path: Path) -> None:
    suite, moody = tickets(12), Moody(right_for(lambda i: True))
    arm = run_arm(moody, "m", suite, name="a", repeats=2, cache=tmp_path)
    exact = arm.metrics["exact_match"]
    assert (len(moody.asked), exact.n, exact.value, exact.method) == (24, 12, (2 + 10 * 0.5) / 12, "t")
    assert arm.answers[5].others == ("{}",) and arm.repeats == 2
    again = run_arm(Scripted(right_for(lambda i: False)), "m", suite, name="a", repeats=2, cache=tmp_path)
    assert again.metrics == arm.metrics
    once = run_arm(Scripted(right_for(lambda i: True)), "m", suite, name="b")
    assert compare(arm, once, "exact_match").difference.method.startswith("bootstrap")


def test_f1_counts_every_repeat_and_is_as_unsure_as_its_rows() -> None:
    suite, moody = tickets(12), Moody(right_for(lambda i: True))
    twice = run_arm(moody, "m", suite, name="a", repeats=2)  # every first answer is right, ten of the twelve second ones are rubbish
    expected = [suite.scorer.label(item.expected) for item in suite.items]
    told = [suite.scorer.label(text) for answer in twice.answers for text in (answer.text, *answer.others)]
    labels = sorted({label for label in expected if label})
    by_hand = f1_score([label or "" for label in expected for _ in range(2)], [label or "" for label in told], labels=labels)
    found = twice.metrics["macro_f1"]
    assert found.value == pytest.approx(by_hand)
    assert (found.n, "12 clusters" in found.method) == (12, True)
    once = run_arm(Scripted(right_for(lambda i: True)), "m", suite, name="b")
    assert once.metrics["macro_f1"].value == 1
    thrice = run_arm(Moody(right_for(lambda i: True)), "m", suite, name="c", repeats=3)
    for other in (once, thrice):  # also beside an arm that was asked more or less often
        paired = compare(twice, other, "macro_f1", suite).difference
        assert paired.value == pytest.approx(other.metrics["macro_f1"].value - found.value)
        assert paired.n == 12


def f1_score(expected: list[str], answered: list[str], labels: list[str]) -> float:
    """Macro-F1 by its definition."""
    each = []
    for label in labels:
        hits = sum(e == a == label for e, a in zip(expected, answered, strict=True))
        each.append(2 * hits / max(1, expected.count(label) + answered.count(label)))
    return sum(each) / len(each)


def test_rows_that_hang_together_widen_the_interval_and_change_the_test() -> None:
    def suite(column: str | None) -> EvalSuite:
        return build_suite(with_columns(40, customer=lambda i: i // 8), source="t", columns=Columns(cluster=column))

    def arms(suite: EvalSuite) -> list[Any]:
        one = run_arm(Scripted(right_for(lambda i: i // 8 < 2)), "m", suite, name="a")
        return [one, run_arm(Scripted(right_for(lambda i: i // 8 < 4)), "m", suite, name="b")]

    apart, together = (measure(s, arms(s)) for s in (suite(None), suite("customer")))
    wide, narrow = (m.arm("a").metrics["exact_match"] for m in (together, apart))
    assert (together.clusters, apart.clusters) == (5, None)
    assert wide.value == narrow.value and wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    p = {m.clusters: next(c for c in m.comparisons if c.metric == "exact_match").p_value for m in (apart, together)}
    assert p[None] < 0.001 and p[5] > 0.05, "16 rows of 2 customers are no 16 independent rows"
    assert together.power.n == 5


def test_columns_that_say_nothing_useful_are_named() -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:0 says 'maybe' in column 'refuse'"):
        build_suite(with_columns(1, refuse="maybe"), source="t", columns=Columns(decline="refuse"))
    with pytest.raises(UsageError, match="compares answers with a context"):
        build_suite(rows(0, 2), source="t", extras=("context_precision",))


def test_refusals_are_counted_on_both_sides() -> None:
    suite = build_suite(with_columns(8, refuse=lambda i: i < 4), source="t", columns=Columns(decline="refuse"))
    arm = run_arm(Scripted(lambda m: "I'm sorry, but I can’t help with that." if number(m) in (0, 1, 2, 7) else answer_of(number(m))),
                  "m", suite, name="a")  # fmt: skip
    assert {name: arm.metrics[name].value for name in ("refusal_right", "declines_when_due", "answers_when_due")} == {
        "refusal_right": 0.75, "declines_when_due": 0.75, "answers_when_due": 0.75,
    }  # fmt: skip
    assert arm.metrics["declines_when_due"].n == 4
    found = {c.metric for c in measure(suite, [arm, arm.model_copy(update={"name": "b"})]).comparisons}
    assert {"declines_when_due", "answers_when_due"} <= found


# --- money, time ---


def test_calls_tell_time_and_money_per_accepted_answer() -> None:
    suite = tickets(10)

    def timed(messages: Any) -> ChatReply:
        i = number(messages)
        return ChatReply("", answer_of(i) if i < 4 else "{}", 1000, 500, seconds=(i + 1) / 10)

    calls = run_arm(Scripted(timed), "m", suite, name="a", rates=RATES).calls
    assert calls is not None and calls.latency is not None
    assert (calls.latency.p50, calls.latency.p95, calls.latency.p99) == (0.5, 1.0, 1.0)
    assert (calls.answered, calls.accepted, calls.first_token) == (10, 4, None)
    assert calls.usd_per_call is not None and calls.usd_per_call.high == pytest.approx(0.002)
    assert calls.usd_per_accepted is not None and calls.usd_per_accepted.high == pytest.approx(0.005)
    assert (calls.tokens_per_call, calls.tokens_per_accepted) == (1500, 3750)
    unpriced = run_arm(Scripted(timed), "m", suite, name="a").calls
    assert unpriced is not None and (unpriced.usd_per_call, unpriced.usd_per_accepted) == (None, None)


def test_a_service_that_is_down_stops_the_arm_and_the_next_run_goes_on(tmp_path: Path) -> None:
    answered = Scripted(lambda m: ChatReply("", answer_of(number(m))) if number(m) < 30 else ChatReply("", "", error="it is down"))
    with pytest.raises(ProviderError, match=r"no answer to 25 questions in a row \(it is down\)"):
        run_arm(answered, "m", tickets(400), name="a", cache=tmp_path)
    again = Scripted(right_for(lambda i: True))
    run_arm(again, "m", tickets(400), name="a", cache=tmp_path)
    assert len(again.asked) == 400 - len(list(answered_rows(answered)))


def answered_rows(scripted: Scripted) -> Iterator[int]:
    return (number(request.messages) for request in scripted.asked if number(request.messages) < 30)


def test_an_arm_kept_from_before_is_scored_by_todays_metrics() -> None:
    before = run_arm(Scripted(right_for(lambda i: i < 4)), "m", tickets(10), name="a", rates=RATES)
    suite = build_suite(rows(0, 10), rows(1000, 30), source="t", extras=("token_f1",), primary="token_f1")
    again = rescored(suite, before)
    assert next(iter(again.metrics)) == "token_f1"
    assert again == run_arm(Scripted(right_for(lambda i: i < 4)), "m", suite, name="a", rates=RATES)
    twice = run_arm(Moody(right_for(lambda i: True)), "m", tickets(10), name="r", repeats=2)
    assert rescored(tickets(10), twice) == twice
    silent = run_arm(Scripted(lambda m: ""), "m", tickets(10), name="s", repeats=2)
    assert rescored(tickets(10), silent) == silent, "an empty answer is no missing one"


def test_a_limit_is_not_promised_for_what_has_no_bound() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    asked = Row(kind="chat", file="t", line=1, columns={"gold": "a cat"}, messages=({"role": "user", "content": [picture]},))
    suite = build_suite([asked], source="t", task="text", columns=Columns(reference="gold"))
    with pytest.raises(BudgetError, match="what a row with an image may cost is not known"):
        run_arm(Scripted(lambda m: "a cat"), "m", suite, name="a", rates=RATES, purse=Purse(max_usd=1))
    assert run_arm(Scripted(lambda m: "a cat"), "m", suite, name="a", rates=RATES).metrics["exact_match"].value == 1


def test_confusion_counts_every_row_once() -> None:
    found = run_arm(Scripted(lambda m: answer_of(number(m) + 1) if number(m) < 6 else "rubbish"), "m", tickets(12), name="a").confusion
    assert found is not None
    assert found.labels == ('"billing"', '"returns"', '"shipping"')
    assert found.counts == ((0, 0, 2, 2), (2, 0, 0, 2), (0, 2, 0, 2))


def test_the_price_book_prices_base_and_tuned_and_says_when_it_cannot() -> None:
    base, tuned = (rates_of("openai", "gpt-4.1-mini", tuned=t) for t in (False, True))
    assert base is not None and tuned is not None and tuned.prompt.high > base.prompt.high > 0
    assert "observed" in base.source
    assert rates_of("openai", "no-such-model") is None
    for bad in ("1", "a/b", "-1/2", "1/2/3"):
        with pytest.raises(UsageError, match="names no two prices"):
            stated_rates(bad)


def test_money_is_capped_and_the_next_run_pays_only_for_the_rest(tmp_path: Path) -> None:
    suite = tickets(40)
    purse = Purse(max_usd=0.003)
    seen: list[Progress] = []
    first = Scripted(lambda m: ChatReply("", answer_of(number(m)), 10, 50))
    with pytest.raises(BudgetError, match=r"arm a stopped at --max-usd 0.003"):
        run_arm(first, "m", suite, name="a", cache=tmp_path, rates=RATES, purse=purse, on_progress=seen.append)
    assert 0 < len(first.asked) < 40
    assert purse.spent.high == pytest.approx(len(first.asked) * 0.00011)
    assert purse.spent.high <= 0.003 < purse.spent.high + 0.0005, "spent nearly up to the limit, and not beyond"
    assert seen[-1].usd is not None and seen[-1].usd.high == purse.spent.high and seen[-1].seconds_left is not None
    second = Scripted(lambda m: ChatReply("", answer_of(number(m)), 10, 50))
    run_arm(second, "m", suite, name="a", cache=tmp_path, rates=RATES, purse=Purse(max_usd=1))
    assert len(first.asked) + len(second.asked) == 40


def test_a_limit_without_a_price_is_refused_and_a_failed_call_counts_in_full() -> None:
    with pytest.raises(BudgetError, match="no price is known for m at scripted"):
        run_arm(Scripted(right_for(lambda i: True)), "m", tickets(3), name="a", purse=Purse(max_usd=1))
    purse = Purse(max_usd=1)
    run_arm(Scripted(lambda _: ChatReply("", "", error="timeout")), "m", tickets(3), name="a", rates=RATES, purse=purse)
    assert purse.spent.low == 0 < purse.spent.high


def test_kill_9_and_again_pays_no_answer_twice_that_had_come(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"messages": [*row.messages]}) + "\n" for row in rows(0, 120))
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(lines.replace("ticket", name))
    (tmp_path / "spec.yaml").write_text("model: gpt-4.1-mini\ndata: {train: train.jsonl, test: test.jsonl}\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".dev"), "OPENAI_API_KEY": "key-for-loopback"}
    with chat_server(tmp_path, delay=0.1) as server:
        command = [sys.executable, "-m", "tuneport.cli", "baseline", "spec.yaml", "--provider", "openai", "--shots", "0"]
        environment["OPENAI_BASE_URL"] = server.url
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
            deadline = time.monotonic() + 60
            while len(server.answered()) < 30 and time.monotonic() < deadline:
                time.sleep(0.01)
            first.send_signal(signal.SIGKILL)
        kept = len(list((tmp_path / "answers").rglob("*.json")))
        before = len(server.answered())
        assert 20 <= kept <= before < 120
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        answered = Counter(server.answered())
    assert len(answered) == 120
    assert answered.total() - 120 <= 8, "only what was on its way when the process died is asked again"
    measured = json.loads((tmp_path / "measurement.json").read_text())
    assert len(measured["arms"][0]["answers"]) == 120
