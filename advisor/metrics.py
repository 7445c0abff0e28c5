"""Scoring one answer against the expected one.

Three tasks, each with its own metrics (all 0 or 1 per row, except ``field_accuracy``):

    json   exact_match (primary), normalised_match, json_valid, schema_valid (with a schema), field.<name>, field_accuracy
    label  accuracy (primary: labels equal after normalising), exact_match
    text   normalised_match (primary), exact_match

Further ones may be asked for by name: those of ``text_metrics`` and, for rows that say whether a model should decline, ``refusal_right``
with its two halves, ``declines_when_due`` and ``answers_when_due``.

Strict reading of JSON: the whole answer, without surrounding white space, must be one JSON value. JSON inside a code
fence counts only where ``fenced`` says so, because a program that reads the answer would fail on the fence.
Not JSON either: NaN and infinities, an object with one key twice, nesting deeper than 100, more than 1,000,000
characters. No answer, however hostile, raises: what cannot be read scores 0.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneport.advisor.refusals import declines
from tuneport.advisor.text_metrics import CORPUS, TEXT_METRICS, TextMetric, text_metric
from tuneport.core.data.schemas import validator
from tuneport.core.errors import DataError, UsageError

Task = Literal["json", "label", "text"]

MAX_CHARS = 1_000_000
MAX_DEPTH = 100
MAX_FIELDS = 40  # metrics, not data: objects with free keys would otherwise make a metric of each key
MAX_LABELS = 50  # values of a field that still reads as a category
MAX_LABEL_CHARS = 80

PRIMARY: Mapping[Task, str] = {"json": "exact_match", "label": "accuracy", "text": "normalised_match"}
"""The metric that comparisons and the decision rest on."""

REFUSALS = ("refusal_right", "declines_when_due", "answers_when_due")

METRICS = (
    "exact_match", "normalised_match", "accuracy", "json_valid", "schema_valid", "field_accuracy", "macro_f1", "micro_f1", *REFUSALS,
    *TEXT_METRICS, *(f"corpus_{name}" for name in CORPUS),
)  # fmt: skip
"""Every metric that has one name."""
METRIC_FAMILIES: Mapping[str, str] = {"field.": "NAME", "judge.": "RUBRIC", "regex=": "PATTERN"}
"""How the names of the others begin, and what follows."""

_FENCE = "```"
_QUOTES = " \"'`*"
_STOPS = _QUOTES + ".,;:!?"


class _Missing:
    """Stands for "no such value"; equal to nothing that JSON can say."""


MISSING = _Missing()


@dataclass(frozen=True)
class Scorer:
    """Scores answers for one suite. Build it with ``make_scorer``; all fields may be set by hand.

    ``fields`` are the top-level keys that get an accuracy of their own; ``label_field`` is the one macro-F1 is taken
    over (json). ``tolerance`` is relative: numbers that differ by at most that share are the same, except in exact_match.
    """

    task: Task
    fields: tuple[str, ...] = ()
    label_field: str | None = None
    schema: dict[str, Any] | bool | None = None
    fenced: bool = False
    tolerance: float = 0.0
    extras: tuple[str, ...] = ()  # names of ``text_metrics``
    refusals: bool = False  # rows say whether a model should decline
    primary_metric: str | None = None  # in place of the task's own
    _validator: Any = field(init=False, repr=False, compare=False, default=None)
    _extra: Mapping[str, TextMetric] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema is not None:
            object.__setattr__(self, "_validator", validator(self.schema))
        object.__setattr__(self, "_extra", {name: text_metric(name, self.tolerance) for name in self.extras})
        if self.primary_metric is not None and self.primary_metric not in self.metrics:
            raise UsageError(f"{self.primary_metric!r} is not measured here", fix=f"choose one of: {', '.join(self.metrics)}")

    @property
    def primary(self) -> str:
        """Name of the metric that decisions rest on."""
        return self.primary_metric or PRIMARY[self.task]

    @property
    def has_labels(self) -> bool:
        """True when macro-F1 has a meaning here."""
        return self.task == "label" or (self.task == "json" and self.label_field is not None)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics per row, the primary one first."""
        names = (*self._of_task, *self.extras, *(REFUSALS if self.refusals else ()))
        return tuple(sorted(names, key=lambda name: name != self.primary))

    @property
    def _of_task(self) -> tuple[str, ...]:
        if self.task == "label":
            return ("accuracy", "exact_match")
        if self.task == "text":
            return ("normalised_match", "exact_match")
        schema = ("schema_valid",) if self.schema is not None else ()
        fields = (*(f"field.{name}" for name in self.fields), "field_accuracy") if self.fields else ()
        return ("exact_match", "normalised_match", "json_valid", *schema, *fields)

    def score(
        self, expected: str, answer: str, *, context: str | None = None, should_decline: bool | None = None, declined: bool = False
    ) -> dict[str, float]:
        """Each metric of ``metrics`` that the row has use for, in 0..1. Never raises on the answer's account.

        ``declined``: the vendor marks the answer as a refusal; otherwise its wording tells.
        """
        scores = self._task_scores(expected, answer)
        scores |= {name: value for name, metric in self._extra.items() if (value := metric(expected, answer, context)) is not None}
        if self.refusals and should_decline is not None:
            right = float((declined or declines(answer)) == should_decline)
            scores |= {"refusal_right": right, "declines_when_due" if should_decline else "answers_when_due": right}
        return {name: scores[name] for name in self.metrics if name in scores}

    def unanswered(self, *, context: str | None = None, should_decline: bool | None = None) -> dict[str, float]:
        """The scores of a row without an answer: 0 in whatever the row has use for."""
        return dict.fromkeys(self.score("", "", context=context, should_decline=should_decline), 0.0)

    def _task_scores(self, expected: str, answer: str) -> dict[str, float]:
        if len(answer) > max(MAX_CHARS, 2 * len(expected)):
            return dict.fromkeys(self._of_task, 0.0)
        if self.task == "json":
            return self._score_json(expected, answer)
        exact = expected.strip() == answer.strip()
        match = exact or _same_text(expected, answer, self.tolerance)
        return {PRIMARY[self.task]: float(match), "exact_match": float(exact)}

    def label(self, text: str) -> str | None:
        """The label that a text carries, in a form that compares; None when it carries none (or is too long to be one)."""
        if self.task == "label":
            return normalise(text) if len(text) <= MAX_CHARS else None
        if self.label_field is None:
            return None
        value = self.read(text)
        found = value.get(self.label_field, MISSING) if isinstance(value, dict) else MISSING
        if isinstance(found, float) and found.is_integer():
            found = int(found)  # 1.0 and 1 are one number in JSON
        return None if found is MISSING else json.dumps(found, sort_keys=True)

    def read(self, text: str) -> Any:
        """The JSON value of an answer, or MISSING when it is not one (see the module's rules)."""
        value = parse_json(text)
        if value is MISSING and self.fenced:
            inner = unfence(text)
            return MISSING if inner is None else parse_json(inner)
        return value

    def schema_valid(self, value: Any) -> bool:
        """Whether a JSON value meets the schema; False for MISSING, True without a schema."""
        if value is MISSING:
            return False
        if self._validator is None:
            return True
        from referencing.exceptions import Unresolvable  # noqa: PLC0415  comes with jsonschema

        try:
            return bool(self._validator.is_valid(value))
        except (RecursionError, Unresolvable):  # a schema that calls itself without end, or an anchor that is not there
            return False

    def _score_json(self, expected: str, answer: str) -> dict[str, float]:
        want, got = parse_json(expected), self.read(answer)
        valid = got is not MISSING
        scores = {
            "exact_match": float(valid and same_json(want, got)),
            "normalised_match": float(valid and same_json(want, got, normalised=True, tolerance=self.tolerance)),
            "json_valid": float(valid),
        }
        if self.schema is not None:
            scores["schema_valid"] = float(self.schema_valid(got))
        if self.fields:
            right = [self._field_right(name, want, got) for name in self.fields]
            scores |= {f"field.{name}": float(ok) for name, ok in zip(self.fields, right, strict=True)}
            scores["field_accuracy"] = sum(right) / len(right)
        return scores

    def _field_right(self, name: str, want: Any, got: Any) -> bool:
        """A field is right when its value is; a field that the expected answer lacks must be lacking."""
        if not isinstance(got, dict):
            return False
        wanted = want.get(name, MISSING) if isinstance(want, dict) else MISSING
        found = got.get(name, MISSING)
        if wanted is MISSING or found is MISSING:
            return wanted is found
        return same_json(wanted, found, tolerance=self.tolerance)


def make_scorer(
    expected: Sequence[str],
    *,
    task: Task | None = None,
    labelled: bool = False,
    label_field: str | None = None,
    schema: dict[str, Any] | bool | None = None,
    fenced: bool = False,
    tolerance: float = 0.0,
    extras: tuple[str, ...] = (),
    refusals: bool = False,
    primary: str | None = None,
) -> Scorer:
    """A scorer for these expected answers.

    Task, unless given: *json* when every expected answer is a JSON object or array; *label* when the rows are of a
    classification format (``labelled``) or the answers are short, single lines that repeat (at most half as many kinds
    as rows); else *text*. ``label_field``, unless given, is the first field with 2 to 50 kinds of short values that
    repeat. Raises DataError when the task does not fit the expected answers, or the field is in none of them.
    """
    parsed = [parse_json(text) for text in expected]
    chosen = task or _detect(expected, parsed, labelled)
    more: dict[str, Any] = {"tolerance": tolerance, "extras": extras, "refusals": refusals, "primary_metric": primary}
    if chosen != "json":
        return Scorer(task=chosen, **more)
    unreadable = sum(value is MISSING for value in parsed)
    if unreadable:
        raise DataError(f"{unreadable} of {len(parsed)} expected answers are not JSON", fix="correct these rows, or measure with task text")
    objects = [value for value in parsed if isinstance(value, dict)]
    counts = Counter(name for value in objects for name in value)
    if label_field is not None and label_field not in counts:
        raise DataError(f"no expected answer has the field {label_field!r}", fix=f"choose one of: {', '.join(list(counts)[:20]) or 'none'}")
    kept = {name for name, _ in counts.most_common(MAX_FIELDS)}
    fields = tuple(name for name in counts if name in kept)
    by = label_field or next((name for name in fields if _is_category([v.get(name, MISSING) for v in objects])), None)
    return Scorer(task="json", fields=fields, label_field=by, schema=schema, fenced=fenced, **more)


def load_schema(path: Path) -> dict[str, Any] | bool:
    """A JSON Schema from a file. Raises DataError when it cannot be read, is no valid schema, or refers elsewhere."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fix = "give a file with one JSON Schema"
        raise DataError(f"cannot read the JSON Schema {path} ({type(error).__name__}: {error})", fix=fix) from error
    if not isinstance(value, dict | bool):
        raise DataError(f"{path} holds no JSON Schema but a {type(value).__name__}", fix="give a file with one JSON Schema")
    validator(value, source=str(path))
    return value


def parse_json(text: str) -> Any:
    """The value when the whole text is one JSON value, else MISSING. Stricter than ``json.loads`` (see the module)."""
    if len(text) > MAX_CHARS:
        return MISSING
    try:
        value = json.loads(text.strip(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        return MISSING
    return value if _depth_within(value, MAX_DEPTH) else MISSING


def unfence(text: str) -> str | None:
    """What the only code fence of an answer holds; None when there is no fence or more than one."""
    parts = text.split(_FENCE, 3) if len(text) <= MAX_CHARS else []
    if len(parts) != 3:
        return None
    language, _, inside = parts[1].partition("\n")
    return inside if language.strip().isalnum() or not language.strip() else None


def normalise(text: str) -> str:
    """Text with case, Unicode form (NFKC), runs of white space, quotes around it and punctuation at its end made equal."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    flat = " ".join(folded.split())
    return flat.rstrip(_STOPS).lstrip(_QUOTES) or flat  # an answer of nothing but punctuation stays what it is


def same_json(one: Any, other: Any, *, normalised: bool = False, tolerance: float = 0.0) -> bool:
    """Whether two JSON values say the same: key order does not matter, 1 equals 1.0, true does not equal 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            same_json(one[key], other[key], normalised=normalised, tolerance=tolerance) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            same_json(a, b, normalised=normalised, tolerance=tolerance) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or _close(one, other, tolerance)
    if isinstance(one, str) and isinstance(other, str):
        return one == other or (normalised and _same_text(one, other, tolerance))
    return type(one) is type(other) and bool(one == other)


def _same_text(one: str, other: str, tolerance: float) -> bool:
    a, b = normalise(one), normalise(other)
    if a == b:
        return True
    if not tolerance or max(len(a), len(b)) > 400:
        return False
    try:
        return _close(float(a), float(b), tolerance)
    except ValueError:
        return False


def _close(one: float, other: float, tolerance: float) -> bool:
    try:
        return tolerance > 0 and math.isclose(one, other, rel_tol=tolerance)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _detect(expected: Sequence[str], parsed: Sequence[Any], labelled: bool) -> Task:
    if parsed and all(isinstance(value, dict | list) for value in parsed):
        return "json"
    short = all(0 < len(text.strip()) <= MAX_LABEL_CHARS and "\n" not in text.strip() for text in expected)
    kinds = len({normalise(text) for text in expected}) if short else 0
    return "label" if labelled or (short and 0 < 2 * kinds <= len(expected)) else "text"


def _is_category(values: Sequence[Any]) -> bool:
    present = [value for value in values if value is not MISSING]
    if not all(isinstance(v, bool) or v is None or (isinstance(v, str) and len(v) <= MAX_LABEL_CHARS) for v in present):
        return False
    kinds = {json.dumps(value) for value in present}
    return 2 <= len(kinds) <= MAX_LABELS and 2 * len(kinds) <= len(present)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has one key twice")
    return value


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number exceeds the range of floats")
    return number


def _depth_within(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [inner for v in level if isinstance(v, dict | list) for inner in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return True
    return False
