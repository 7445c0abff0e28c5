"""Asks models the rows of a suite, scores the answers, and compares arms on the same rows.

    suite = load_suite(spec)
    arms = [run_arm(provider, model, suite, name="zero-shot"), run_arm(provider, model, suite, name="few-shot (6)", shots=6)]
    measurement = measure(suite, arms)

Answers are kept on disk as they come, by a hash of all that decides them, so that a run that was killed asks only what
is left. Failed requests are not kept: they count as wrong in this run and are asked again in the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from tuneport.advisor.answers import AnswerCache, answer_key
from tuneport.advisor.measurement import Answer, Arm, Comparison, Estimate, Measurement, Power
from tuneport.advisor.metrics import MISSING, Scorer, parse_json, unfence
from tuneport.advisor.statistics import (
    ALPHA,
    ASSUMED_DISCORDANCE,
    bootstrap_macro_f1,
    bootstrap_macro_f1_difference,
    bootstrap_mean_difference,
    detectable_difference,
    holm,
    mcnemar_exact,
    mean_interval,
    newcombe_paired,
    power_statement,
    sample_size,
    wilson,
)
from tuneport.advisor.suite import EvalSuite
from tuneport.core.errors import ProviderError, UsageError
from tuneport.core.provider import ChatReply, ChatRequest, Provider

MACRO_F1 = "macro_f1"
WORTHWHILE = 0.05
"""A difference worth detecting, as a share: the "5 points" of the sample-size table in economics.md section 4."""
COARSE = 0.10
"""A suite that detects no less than this gets a warning with the rows it would need for ``WORTHWHILE``."""
FEW_PER_LABEL = 5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an arm is, in rows. ``cached`` of the ``done`` rows came from disk; tokens count new answers only."""

    arm: str
    done: int
    total: int
    cached: int
    errors: int
    prompt_tokens: int
    completion_tokens: int


def run_arm(
    provider: Provider,
    model: str,
    suite: EvalSuite,
    *,
    name: str,
    kind: Literal["prompted", "tuned"] = "prompted",
    shots: int = 0,
    instruction: str | None = None,
    job: str | None = None,
    cache: Path | None = None,
    scope: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> Arm:
    """Ask ``model`` every row of the suite, once, and score the answers.

    Rows with one and the same prompt are asked once and share the answer. A reply with an error, or a missing one, is
    an unanswered row: scores 0, counted, reported by ``measure``. ``cache`` is the folder that keeps answers (None: they
    are not kept). ``instruction`` stands in place of the rows' system prompt.
    ``scope`` is whatever else decides an answer beside provider, model, job and prompt, such as the
    address of the service or the hash of the weights.

    Errors that ``provider.chat`` raises pass through; what was answered before is kept. Raises ProviderError when a
    reply belongs to no request, or a second one to the same, and UsageError when the cache cannot be written.
    """
    prompts = suite.prompts(shots, instruction)
    keys = [
        answer_key(provider=provider.name, model=model, job=job or "", scope=scope, messages=messages, max_tokens=suite.max_tokens)
        for messages in prompts
    ]
    store = AnswerCache(cache) if cache is not None else None
    replies: dict[str, ChatReply] = {}
    if store is not None:
        replies = {key: found for key in dict.fromkeys(keys) if (found := store.get(key)) is not None}
    cached = sum(key in replies for key in keys)
    rows_of = Counter(keys)
    done, errors, tokens_in, tokens_out = cached, 0, 0, 0

    def report() -> None:
        if on_progress is not None:
            on_progress(Progress(name, done, len(keys), cached, errors, tokens_in, tokens_out))

    report()
    requests = {key: ChatRequest(key, prompt, suite.max_tokens) for key, prompt in zip(keys, prompts, strict=True) if key not in replies}
    for reply in _answers(provider, model, requests):
        replies[reply.id] = reply
        if store is not None and not reply.error:
            store.put(reply)
        done += rows_of[reply.id]
        errors += rows_of[reply.id] if reply.error else 0
        tokens_in += reply.prompt_tokens or 0
        tokens_out += reply.completion_tokens or 0
        report()
    if done < len(keys):
        errors, done = errors + len(keys) - done, len(keys)
        report()
    unanswered = ChatReply("", "", error="the provider gave no answer")
    answers = tuple(_scored(suite, row, replies.get(key, unanswered)) for row, key in enumerate(keys))
    return Arm(
        name=name,
        kind=kind,
        provider=provider.name,
        model=model,
        shots=shots,
        job=job,
        metrics=estimates(suite, answers),
        answers=answers,
    )


def estimates(suite: EvalSuite, answers: Sequence[Answer]) -> dict[str, Estimate]:
    """Every metric over all rows with its 95 % interval, the primary one first."""
    found = {metric: _estimate([answer.scores[metric] for answer in answers]) for metric in suite.scorer.metrics}
    if suite.scorer.has_labels:
        found[MACRO_F1] = bootstrap_macro_f1(_expected_labels(suite), _labels(suite.scorer, answers))
    return found


def compare(baseline: Arm, challenger: Arm, metric: str, suite: EvalSuite | None = None) -> Comparison:
    """Two arms on the same rows. Macro-F1 needs the suite, because it is no mean of scores per row.

    Where all scores are 0 or 1 the interval is Newcombe's for paired proportions and McNemar's exact test is added;
    otherwise a paired bootstrap. Raises UsageError when the arms do not fit each other or lack the metric.
    """
    if len(baseline.answers) != len(challenger.answers):
        raise UsageError(
            f"arms {baseline.name!r} and {challenger.name!r} have {len(baseline.answers)} and {len(challenger.answers)} rows",
            fix="run both on the same suite",
        )
    for arm in (baseline, challenger):
        if metric not in arm.metrics:
            raise UsageError(f"arm {arm.name!r} has no metric {metric!r}", fix=f"choose one of: {', '.join(arm.metrics)}")
    names = {"baseline": baseline.name, "challenger": challenger.name, "metric": metric}
    if metric == MACRO_F1:
        if suite is None:
            raise UsageError("comparing macro-F1 needs the suite", fix="pass the suite that the arms ran on")
        before, after = _labels(suite.scorer, baseline.answers), _labels(suite.scorer, challenger.answers)
        return Comparison(**names, difference=bootstrap_macro_f1_difference(_expected_labels(suite), before, after))
    one = [answer.scores[metric] for answer in baseline.answers]
    other = [answer.scores[metric] for answer in challenger.answers]
    if not _binary([*one, *other]):
        return Comparison(**names, difference=bootstrap_mean_difference(one, other))
    pairs = list(zip(one, other, strict=True))
    only_one, only_other = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    return Comparison(
        **names,
        difference=newcombe_paired(pairs.count((1.0, 1.0)), only_one, only_other, pairs.count((0.0, 0.0))),
        only_baseline=only_one,
        only_challenger=only_other,
        p_value=mcnemar_exact(only_one, only_other),
    )


def measure(suite: EvalSuite, arms: Sequence[Arm]) -> Measurement:
    """All arms on one suite: every pair compared on every metric, what the suite can detect, and what to beware of.

    In a pair the baseline is the prompted arm, or the earlier of two arms of one kind. Raises UsageError when two arms
    share a name or an arm has not answered the suite's rows.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise UsageError(f"two arms share a name ({', '.join(names)})", fix="give each arm its own name")
    for arm in arms:
        if [answer.row for answer in arm.answers] != list(range(len(suite))):
            raise UsageError(f"arm {arm.name!r} has {len(arm.answers)} answers for {len(suite)} rows", fix="run it on this suite")
    ordered = sorted(arms, key=lambda arm: arm.kind == "tuned")
    comparisons = tuple(
        compare(one, other, metric, suite) for one, other in combinations(ordered, 2) for metric in one.metrics if metric in other.metrics
    )
    primary = [comparison for comparison in comparisons if comparison.metric == suite.scorer.primary]
    deciding = _deciding(arms, primary)
    power = power_of(len(suite), deciding)
    return Measurement(
        suite=suite.source,
        suite_sha256=suite.sha256,
        task=suite.scorer.task,
        primary_metric=suite.scorer.primary,
        arms=tuple(arms),
        comparisons=comparisons,
        power=power,
        warnings=(
            *_about_power(power, deciding),
            *_about_suite(suite),
            *(warning for arm in arms for warning in _about_arm(suite, arm)),
            *_about_several(primary),
        ),
    )


def power_of(n: int, comparison: Comparison | None = None) -> Power:
    """What n rows detect, at the discordance of a comparison of two arms, or at an assumed one before there is any."""
    discordant: float | None = None
    if comparison is not None and comparison.only_baseline is not None and comparison.only_challenger is not None:
        # Two arms that never disagree tell nothing of what other arms would do.
        discordant = (comparison.only_baseline + comparison.only_challenger) / n or None
    share = ASSUMED_DISCORDANCE if discordant is None else discordant
    detectable = detectable_difference(n, share)
    return Power(
        n=n,
        discordant=share,
        discordant_source="assumed" if discordant is None else "measured",
        detectable=detectable,
        statement=power_statement(n, detectable),
    )


def _deciding(arms: Sequence[Arm], primary: Sequence[Comparison]) -> Comparison | None:
    """The comparison of the best prompted with the best tuned arm; of the first two arms when one kind is absent."""

    def best(kind: str) -> str | None:
        scores = {arm.name: arm.metrics[primary[0].metric].value for arm in arms if arm.kind == kind}
        return max(scores, key=lambda name: scores[name], default=None)

    if not primary:
        return None
    pair = (best("prompted"), best("tuned"))
    return next((c for c in primary if (c.baseline, c.challenger) == pair), primary[0])


def _answers(provider: Provider, model: str, requests: dict[str, ChatRequest]) -> Iterator[ChatReply]:
    """The provider's replies, each checked to answer a request that is still open."""
    if not requests:
        return
    waiting = set(requests)
    for reply in provider.chat(model, list(requests.values())):
        if reply.id not in waiting:
            fault = "answered one request twice" if reply.id in requests else "sent an answer to no request"
            raise ProviderError(f"{provider.name} {fault} (model {model})", fix="report this to whoever maintains the provider")
        waiting.remove(reply.id)
        yield reply


def _scored(suite: EvalSuite, row: int, reply: ChatReply) -> Answer:
    scorer = suite.scorer
    # Lone surrogates (a vendor's broken escape) cannot be written as UTF-8, and so could not be kept or reported.
    text = reply.text.encode("utf-8", "replace").decode("utf-8")
    return Answer(
        row=row,
        text="" if reply.error else text,
        scores=dict.fromkeys(scorer.metrics, 0.0) if reply.error else scorer.score(suite.items[row].expected, text),
        error=reply.error,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=reply.seconds,
    )


def _estimate(scores: Sequence[float]) -> Estimate:
    return wilson(round(sum(scores)), len(scores)) if _binary(scores) else mean_interval(scores)


def _binary(scores: Sequence[float]) -> bool:
    return all(score in (0.0, 1.0) for score in scores)


def _expected_labels(suite: EvalSuite) -> list[str]:
    """Each item's label; rows that lack the label field form a class of their own."""
    return [suite.scorer.label(item.expected) or "(none)" for item in suite.items]


def _labels(scorer: Scorer, answers: Sequence[Answer]) -> list[str | None]:
    """Each answer's label. A readable JSON answer that lacks the field says "(none)"; one that cannot be read says nothing."""
    found = []
    for answer in answers:
        label = None if answer.error else scorer.label(answer.text)
        lacking = label is None and not answer.error and isinstance(scorer.read(answer.text), dict)
        found.append("(none)" if lacking and scorer.task == "json" else label)
    return found


def _about_power(power: Power, deciding: Comparison | None) -> Iterator[str]:
    """A coarse suite is no fault where it was enough: where the deciding comparison came out significant."""
    settled = deciding is not None and deciding.p_value is not None and deciding.p_value <= ALPHA
    if power.detectable > COARSE and not settled:
        needed = sample_size(WORTHWHILE, power.discordant)
        yield f"The suite is small: {power.statement}; to detect {WORTHWHILE * 100:.0f} points it needs about {needed:,} rows."


def _about_suite(suite: EvalSuite) -> Iterator[str]:
    n, scorer = len(suite), suite.scorer
    if n > 1 and len({item.expected for item in suite.items}) == 1:
        yield "All expected answers are the same, so a constant answer would score full marks and the measurement says nothing."
    elif scorer.has_labels:
        labels = _expected_labels(suite)
        rare = [label for label in set(labels) if labels.count(label) < FEW_PER_LABEL]
        if len(set(labels)) == 1:
            yield "All rows have the same label, so macro-F1 says nothing."
        elif rare:
            yield f"{len(rare)} of {len(set(labels))} labels have fewer than {FEW_PER_LABEL} rows; macro-F1 is unsure there."
    if suite.contaminated:
        known = len(suite.contaminated)
        yield f"{known} of {n} test rows have a prompt that is also in the training rows; a tuned model may have memorised them."
    if suite.repeated:
        yield f"{suite.repeated} of {n} test rows repeat the prompt of an earlier one; the intervals are narrower than they should be."
    if scorer.schema is not None and scorer.task == "json":
        invalid = sum(not scorer.schema_valid(parse_json(item.expected)) for item in suite.items)
        if invalid:
            yield f"{invalid} of {n} expected answers break the JSON Schema; correct the schema or the rows."


def _about_arm(suite: EvalSuite, arm: Arm) -> Iterator[str]:
    n = len(arm.answers)
    failed = [answer for answer in arm.answers if answer.error]
    if failed:
        yield f"{len(failed)} of {n} rows of arm {arm.name} have no answer and count as wrong; the first reason: {failed[0].error[:200]}"
    cut = sum((answer.completion_tokens or 0) >= suite.max_tokens for answer in arm.answers)
    if cut:
        yield f"{cut} of {n} answers of arm {arm.name} reached the limit of {suite.max_tokens} tokens and may be cut short."
    if suite.scorer.task == "json":
        wrapped = sum(_only_wrapped(suite.scorer, answer.text) for answer in arm.answers)
        if wrapped:
            yield (
                f"{wrapped} of {n} answers of arm {arm.name} hold JSON inside a code fence and count as wrong;"
                " stripping the fence is cheaper than tuning."
            )


def _only_wrapped(scorer: Scorer, text: str) -> bool:
    if scorer.read(text) is not MISSING:
        return False
    inner = unfence(text)
    return inner is not None and parse_json(inner) is not MISSING


def _about_several(primary: Sequence[Comparison]) -> Iterator[str]:
    """Pairs that are significant alone but not after Holm's correction for the number of pairs."""
    pairs = {f"{c.challenger} against {c.baseline}": c.p_value for c in primary if c.p_value is not None}
    for name, adjusted in holm(pairs).items():
        if pairs[name] <= ALPHA < adjusted:
            yield (
                f"{name}: p = {pairs[name]:.3f} alone, but {adjusted:.3f} after Holm's correction for {len(pairs)} comparisons;"
                " do not rest a decision on it."
            )
