"""Asks one model every row of a suite and scores the answers.

Answers are kept on disk as they come, by a hash of all that decides them, so that a run that was killed asks only what
is left. Failed requests are not kept: they count as wrong in this run and are asked again in the next.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneport.advisor.answers import AnswerCache, answer_key
from tuneport.advisor.asked import asked
from tuneport.advisor.failures import failure_groups
from tuneport.advisor.labels import asked_labels, confusion
from tuneport.advisor.measurement import Answer, Arm, Calls, Estimate, Spread
from tuneport.advisor.prompts import used_columns
from tuneport.advisor.spending import Purse, Rates
from tuneport.advisor.statistics import bootstrap_macro_f1, bootstrap_micro_f1, clustered_mean, mean_interval, wilson
from tuneport.advisor.suite import EvalSuite
from tuneport.advisor.text_metrics import CORPUS, corpus_score
from tuneport.core.errors import UsageError
from tuneport.core.money import Range
from tuneport.core.provider import ChatReply, ChatRequest, Provider

MACRO_F1, MICRO_F1 = "macro_f1", "micro_f1"
ACCEPTABLE = 0.5
"""A graded primary score that makes an answer accepted; a score of 0 or 1 must be 1."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an arm is. ``cached`` of the ``done`` askings came from disk; tokens and money count new answers only."""

    arm: str
    done: int
    total: int  # rows times repeats
    cached: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    usd: Range | None = None  # spent by the whole run so far, all arms together; None when a price is unknown
    seconds_left: float | None = None  # at the rate so far; None until an answer has come


def run_arm(
    provider: Provider,
    model: str,
    suite: EvalSuite,
    *,
    name: str,
    kind: Literal["prompted", "tuned"] = "prompted",
    shots: int = 0,
    instruction: str | None = None,
    template: str | None = None,
    context: bool = False,
    repeats: int = 1,
    job: str | None = None,
    cache: Path | None = None,
    scope: str = "",
    concurrency: int | None = None,
    stream: bool = False,
    rates: Rates | None = None,
    purse: Purse | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Arm:
    """Ask ``model`` every row of the suite, ``repeats`` times, and score the answers.

    Rows with one and the same prompt are asked once and share the answer. A reply with an error, or a missing one, is
    an unanswered row: scores 0, counted, reported by ``measure``. ``cache`` is the folder that keeps answers (None: they
    are not kept). ``shots``, ``instruction``, ``template`` and ``context`` make the prompt (``prompts``).
    ``scope`` is whatever else decides an answer beside provider, model, job and prompt, such as the
    address of the service or the hash of the weights. ``rates`` price the answers, out of ``purse``.
    ``stream`` asks for the time to the first token.

    Errors that ``provider.chat`` raises pass through; what was answered before is kept. Raises ProviderError when a
    reply belongs to no request, or a second one to the same, UsageError when the cache cannot be written, and BudgetError
    when the purse is empty (what was answered is kept) or its limit cannot be watched for lack of prices.
    """
    if repeats < 1:
        raise UsageError(f"{repeats} repeats measure nothing", fix="ask each row at least once")
    purse = purse or Purse()
    purse.check(rates, f"{model} at {provider.name}")
    prompts = suite.prompts(shots, instruction, template=template, context=context)
    same = {"provider": provider.name, "model": model, "job": job or "", "scope": scope, "max_tokens": suite.max_tokens}
    keys = [[answer_key(**same, messages=messages, repeat=repeat) for repeat in range(repeats)] for messages in prompts]  # type: ignore[arg-type]
    rows_of = Counter(key for askings in keys for key in askings)
    store = AnswerCache(cache) if cache is not None else None
    replies: dict[str, ChatReply] = {}
    if store is not None:
        replies = {key: found for key in rows_of if (found := store.get(key)) is not None}
        if stream:  # an answer without the time to its first token is asked again
            replies = {key: reply for key, reply in replies.items() if reply.first_token_seconds is not None}
    cached = sum(rows_of[key] for key in replies)
    done, errors, tokens_in, tokens_out, began, new = cached, 0, 0, 0, time.monotonic(), 0

    def report() -> None:
        if on_progress is not None:
            left = (rows_of.total() - done) * (time.monotonic() - began) / new if new else None
            spent = None if purse.unpriced else purse.spent
            on_progress(Progress(name, done, rows_of.total(), cached, errors, tokens_in, tokens_out, spent, left))

    report()
    requests = {
        key: ChatRequest(key, prompt, suite.max_tokens, stream)
        for askings, prompt in zip(keys, prompts, strict=True)
        for key in askings
        if key not in replies
    }
    settings = {} if concurrency is None else {"concurrency": concurrency}
    for reply in asked(provider, model, requests, rates, purse, f"arm {name}", settings):
        replies[reply.id] = reply
        if store is not None and not reply.error:
            store.put(reply)
        done += rows_of[reply.id]
        new += rows_of[reply.id]
        errors += rows_of[reply.id] if reply.error else 0
        tokens_in += reply.prompt_tokens or 0
        tokens_out += reply.completion_tokens or 0
        report()
    if done < rows_of.total():
        errors += rows_of.total() - done
        done = rows_of.total()
        report()
    unanswered = ChatReply("", "", error="the provider gave no answer")
    answers = tuple(_scored(suite, row, [replies.get(key, unanswered) for key in askings]) for row, askings in enumerate(keys))
    return Arm(
        name=name,
        kind=kind,
        provider=provider.name,
        model=model,
        shots=shots,
        job=job,
        metrics=estimates(suite, answers),
        answers=answers,
        prompt=_in_words(shots, instruction, template, context=context),
        columns={which: seen for which in used_columns(template, context=context) if (seen := suite.columns_sha256(which))},
        repeats=repeats,
        calls=_calls(suite, answers, list(replies.values()), rates),
        confusion=confusion(suite, answers),
        failures=failure_groups(suite, answers),
    )


def saw_other_columns(suite: EvalSuite, arm: Arm) -> bool:
    """Did other contexts, or other columns, stand in this arm's prompts than stand in the suite's rows now?"""
    return any(suite.columns_sha256(which) not in (None, seen) for which, seen in arm.columns.items())


def rescored(suite: EvalSuite, arm: Arm) -> Arm:
    """An arm measured before, scored again by this suite's metrics from the answers it kept; what judges said of them stays."""

    def again(answer: Answer) -> Answer:
        texts = [answer.text, *answer.others]
        missing = set(range(len(texts))) if answer.error else set(answer.unanswered)
        replies = [
            ChatReply("", text, error=(answer.error or "no answer") * (repeat in missing), declined=answer.declined)
            for repeat, text in enumerate(texts)
        ]
        each = [_scores(suite, answer.row, reply, reply.text) for reply in replies]
        judged = {name: score for name, score in answer.scores.items() if name.startswith("judge.")}
        return answer.model_copy(update={"scores": {name: sum(s[name] for s in each) / len(each) for name in each[0]} | judged})

    answers = tuple(map(again, arm.answers))
    found = estimates(suite, answers)
    found |= {name: value for name, value in arm.metrics.items() if name.startswith("judge.")}
    calls = arm.calls
    if calls is not None:
        calls = calls.model_copy(update=_accepted(suite, answers, calls.tokens_per_call, calls.usd_per_call))
    changed = {"answers": answers, "metrics": found, "calls": calls}
    return arm.model_copy(update=changed | {"confusion": confusion(suite, answers), "failures": failure_groups(suite, answers)})


def estimates(suite: EvalSuite, answers: Sequence[Answer]) -> dict[str, Estimate]:
    """Every metric over the rows that have use for it with its 95 % interval, the primary one first."""
    found: dict[str, Estimate] = {}
    for metric in suite.scorer.metrics:
        rows = [answer for answer in answers if metric in answer.scores]
        if rows:
            found[metric] = estimate([answer.scores[metric] for answer in rows], suite, [answer.row for answer in rows])
    if suite.scorer.has_labels:
        asked_for = asked_labels(suite, answers)
        for name, bootstrap in ((MACRO_F1, bootstrap_macro_f1), (MICRO_F1, bootstrap_micro_f1)):
            found[name] = bootstrap(*asked_for).model_copy(update={"n": len(answers)})
    for metric in CORPUS:
        if metric in suite.scorer.extras:
            found[f"corpus_{metric}"] = corpus_score(metric, [item.expected for item in suite.items], [answer.text for answer in answers])
    return found


def estimate(scores: Sequence[float], suite: EvalSuite, rows: Sequence[int]) -> Estimate:
    """The mean of scores of these rows: cluster-robust where rows hang together, Wilson's for shares, else by t."""
    clusters = [suite.clusters[row] for row in rows] if suite.clusters else []
    if len(set(clusters)) < len(clusters):
        return clustered_mean(scores, clusters)
    return wilson(round(sum(scores)), len(scores)) if binary(scores) else mean_interval(scores)


def binary(scores: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    return all(score in (0.0, 1.0) for score in scores)


def _scored(suite: EvalSuite, row: int, replies: Sequence[ChatReply]) -> Answer:
    # Lone surrogates (a vendor's broken escape) cannot be written as UTF-8, and so could not be kept or reported.
    texts = ["" if reply.error else reply.text.encode("utf-8", "replace").decode("utf-8") for reply in replies]
    each = [_scores(suite, row, reply, text) for reply, text in zip(replies, texts, strict=True)]
    first = replies[0]
    return Answer(
        row=row,
        text=texts[0],
        scores={metric: sum(scores[metric] for scores in each) / len(each) for metric in each[0]},
        error=next((reply.error for reply in replies), "") if all(reply.error for reply in replies) else "",
        prompt_tokens=first.prompt_tokens,
        completion_tokens=first.completion_tokens,
        seconds=first.seconds,
        others=tuple(texts[1:]),
        declined=first.declined,
        unanswered=tuple(repeat for repeat, reply in enumerate(replies) if reply.error),
    )


def _scores(suite: EvalSuite, row: int, reply: ChatReply, text: str) -> dict[str, float]:
    item = suite.items[row]
    if reply.error:
        return suite.scorer.unanswered(context=item.context, should_decline=item.should_decline)
    return suite.scorer.score(item.expected, text, context=item.context, should_decline=item.should_decline, declined=reply.declined)


def _calls(suite: EvalSuite, answers: Sequence[Answer], replies: Sequence[ChatReply], rates: Rates | None) -> Calls:
    good = [reply for reply in replies if not reply.error]
    tokens = usd = None
    asked_for, answered = ([getattr(reply, name) for reply in good] for name in ("prompt_tokens", "completion_tokens"))
    if good and None not in asked_for and None not in answered:
        tokens = (sum(asked_for) + sum(answered)) / len(good)
        usd = rates.usd(sum(asked_for) / len(good), sum(answered) / len(good)) if rates is not None else None
    return Calls(
        answered=len(good),
        latency=_spread([reply.seconds for reply in good if not reply.batched]),
        first_token=_spread([reply.first_token_seconds for reply in good]),
        tokens_per_call=tokens,
        usd_per_call=usd,
        price_source=rates.source if rates else "",
        **_accepted(suite, answers, tokens, usd),
    )


def _accepted(suite: EvalSuite, answers: Sequence[Answer], tokens: float | None, usd: Range | None) -> dict[str, Any]:
    """How many answers were good enough, and what each of them took: a call that failed is paid for by those that did not."""
    primary = [answer.scores.get(suite.scorer.primary, 0.0) for answer in answers]
    bar = 1.0 if binary(primary) else ACCEPTABLE
    accepted = sum(score >= bar for score in primary)
    calls = len(answers) / accepted if accepted else None
    return {
        "accepted": accepted,
        "tokens_per_accepted": tokens * calls if calls and tokens is not None else None,
        "usd_per_accepted": usd * calls if calls and usd is not None else None,
    }


def _spread(seconds: Sequence[float | None]) -> Spread | None:
    import numpy as np  # noqa: PLC0415

    known = [s for s in seconds if s is not None]
    if not known:
        return None
    p50, p95, p99 = (float(q) for q in np.quantile(known, [0.5, 0.95, 0.99], method="inverted_cdf"))
    return Spread(p50=p50, p95=p95, p99=p99, n=len(known))


def _in_words(shots: int, instruction: str | None, template: str | None, *, context: bool) -> str:
    parts = [f"{shots} few-shot examples" if shots != 1 else "1 few-shot example"] if shots else ["zero-shot"]
    parts += ["an instruction of its own"] * bool(instruction) + ["a template"] * bool(template) + ["with context"] * context
    return ", ".join(parts)
