"""Metrics for running text, each from 0 to 1, chosen by name (``tuneport baseline --metric``):

    token_f1           overlap of words, as SQuAD 1.1 counts them: lower case, without punctuation and English articles
    rouge_l            F1 of the longest common subsequence of words (Lin 2004), without stemming            extra: metrics
    bleu               sentence BLEU of sacrebleu: exponential smoothing, effective order; /100               extra: metrics
    chrf               sentence chrF2 of sacrebleu; /100                                                      extra: metrics
    contains           the expected answer stands in the answer, as whole words, after normalising
    numeric            the last number of the answer is the last number of the expected one, within the suite's tolerance
    regex=PATTERN      PATTERN is found in the answer (anchor it with ^ and $ to mean the whole answer)       extra: metrics
    context_precision  share of the answer's words that stand in the row's context: K-precision, which follows human judgement
                       of faithfulness better than recall or F1 do (Adlakha et al., TACL 12:681, 2024)

``bleu`` and ``chrf`` also get a value over the whole corpus, which is what publications report.
Texts are cut at 20,000 characters, a search by regex after one second (it then scores 0): no answer can hold up a run.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from tuneport.advisor.measurement import Estimate
from tuneport.core.errors import MissingExtraError, UsageError

TextMetric = Callable[[str, str, str | None], float | None]
"""(expected, answer, context) -> 0..1, or None where the row lacks what the metric needs."""

MAX_CHARS = 20_000
SEARCH_S = 1.0
RESAMPLES = 1_000
NEEDS_CONTEXT = frozenset({"context_precision"})
CORPUS = ("bleu", "chrf")
TEXT_METRICS = ("token_f1", "rouge_l", *CORPUS, "contains", "numeric", "context_precision")
"""Metrics that have one name; ``regex=PATTERN`` comes to these."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def text_metric(name: str, tolerance: float = 0.0) -> TextMetric:
    """The metric of that name. Raises UsageError for an unknown one, MissingExtraError where its library is not installed."""
    kind, _, argument = name.partition("=")
    if kind == "regex":
        return _searcher(argument)
    found: dict[str, Callable[[str, str], float]] = {
        "token_f1": token_f1,
        "contains": contains,
        "numeric": lambda expected, answer: same_number(expected, answer, tolerance),
    }
    if name in found:
        metric = found[name]
        return lambda expected, answer, _: metric(expected[:MAX_CHARS], answer[:MAX_CHARS])
    if name == "rouge_l":
        _library("rapidfuzz")
        return lambda expected, answer, _: rouge_l(expected[:MAX_CHARS], answer[:MAX_CHARS])
    if name in CORPUS:
        scorer = _sacrebleu(name, sentence=True)
        return lambda expected, answer, _: _percent(scorer.sentence_score(answer[:MAX_CHARS], [expected[:MAX_CHARS]]).score)
    if name == "context_precision":
        return lambda _, answer, context: None if context is None else context_precision(answer[:MAX_CHARS], context)
    raise UsageError(f"there is no metric {name!r}", fix=f"choose from {', '.join(TEXT_METRICS)}, regex=PATTERN")


def token_f1(expected: str, answer: str) -> float:
    """F1 of the words, each counted as often as it stands there; 1 where both texts have no word."""
    one, other = ([w for w in t.lower().translate(_PUNCTUATION).split() if w not in _ARTICLES] for t in (expected, answer))
    return _f1(sum((Counter(one) & Counter(other)).values()), len(one), len(other))


def rouge_l(expected: str, answer: str) -> float:
    """F1 of the longest common subsequence of words."""
    from rapidfuzz.distance import LCSseq  # noqa: PLC0415 -- an extra

    one, other = words(expected), words(answer)
    return _f1(int(LCSseq.similarity(one, other)), len(one), len(other))


def contains(expected: str, answer: str) -> float:
    """Whether the expected words stand in the answer, in their order and without gaps."""
    one, other = words(expected), words(answer)
    return float(bool(one) and f" {' '.join(one)} " in f" {' '.join(other)} ")


def same_number(expected: str, answer: str, tolerance: float) -> float:
    """Whether both texts end with the same number; ``tolerance`` is relative. 0 where one of them has none."""
    one, other = _last_number(expected), _last_number(answer)
    return float(one is not None and other is not None and (one == other or math.isclose(one, other, rel_tol=tolerance)))


def context_precision(answer: str, context: str) -> float:
    """Share of the answer's words, each as often as it stands there, that stand in the context; 1 for an answer without words."""
    said, given = Counter(words(answer)), frozenset(words(context))
    return sum(count for word, count in said.items() if word in given) / total if (total := said.total()) else 1.0


def words(text: str) -> list[str]:
    """Runs of letters and digits, in one case."""
    return _WORD.findall(text.casefold())


def corpus_score(name: str, expected: Sequence[str], answers: Sequence[str], seed: int = 0) -> Estimate:
    """BLEU or chrF2 of all rows together, as a share, with sacrebleu's bootstrap interval over rows."""
    import numpy as np  # noqa: PLC0415

    from tuneport.advisor.statistics import without_spread  # noqa: PLC0415

    scorer = _sacrebleu(name, sentence=False)
    pairs = [(e[:MAX_CHARS], a[:MAX_CHARS]) for e, a in zip(expected, answers, strict=True)]
    value = _percent(scorer.corpus_score([a for _, a in pairs], [[e for e, _ in pairs]]).score)
    draw = np.random.default_rng(seed)
    statistics = _row_statistics(scorer, pairs)
    draws = [
        _percent(scorer._compute_score_from_stats(list(statistics[draw.integers(0, len(pairs), len(pairs))].sum(axis=0))).score)
        for _ in range(RESAMPLES)
    ]
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    method = f"bootstrap ({RESAMPLES:,} resamples, seed {seed})"
    if low == high:
        low, high = without_spread(value, len(pairs))
        method = "Wilson (no spread in the sample)"
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=len(pairs), method=method)


def _row_statistics(scorer: Any, pairs: Sequence[tuple[str, str]]) -> Any:
    import numpy as np  # noqa: PLC0415

    return np.array(scorer._extract_corpus_statistics([a for _, a in pairs], [[e for e, _ in pairs]]))


@lru_cache(maxsize=4)
def _sacrebleu(name: str, *, sentence: bool) -> Any:
    metrics = _library("sacrebleu").metrics
    return metrics.CHRF() if name == "chrf" else metrics.BLEU(effective_order=sentence)


def _searcher(pattern: str) -> TextMetric:
    regex = _library("regex")
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise UsageError(f"{pattern!r} is no regular expression ({error})", fix="correct the pattern of --metric regex=...") from None
    if not pattern:
        raise UsageError("--metric regex has no pattern", fix="write --metric 'regex=^[A-Z]{2}$'")

    def found(_: str, answer: str, __: str | None) -> float:
        try:
            return float(compiled.search(answer[:MAX_CHARS], timeout=SEARCH_S) is not None)
        except TimeoutError:
            return 0.0

    return found


def _library(name: str) -> Any:
    from importlib import import_module  # noqa: PLC0415

    try:
        return import_module(name)
    except ImportError:
        raise MissingExtraError(f"{name} is not installed, and a metric needs it", "metrics") from None


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _f1(common: int, one: int, other: int) -> float:
    return 2 * common / (one + other) if one + other else 1.0


def _percent(score: float) -> float:
    return min(1.0, max(0.0, score / 100))
