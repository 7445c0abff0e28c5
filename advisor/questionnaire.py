"""The decision file by questions: each is asked once, with its default, and asked again when the answer makes no sense.

The questions are data; ``Asker`` is whatever puts them to a person (the command line), so that they can be answered by a program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError

from tuneport.advisor.intake import CHANGE_MONTHS, Intake, Symptom
from tuneport.core.data.facts import JobData
from tuneport.core.spec import JobSpec

Kind = Literal["text", "choice", "choices", "yes or no", "amount", "number", "share", "fraction"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question. ``path`` is its place in the decision file; without an answer an optional one is left out."""

    path: str
    text: str
    kind: Kind
    choices: tuple[str, ...] = ()
    default: Any = None
    optional: bool = False


Asker = Callable[[Question], str]
"""Puts a question and returns the answer as typed; an empty one takes the default."""

QUESTIONS: tuple[Question, ...] = (
    Question("title", "What is to be decided, in a few words?", "text"),
    Question("problem", "What is wrong today?", "text"),
    Question("wanted", "What is wanted instead?", "text"),
    Question("symptoms", "What goes wrong?", "choices", choices=get_args(Symptom), optional=True),
    Question("facts.fresh_or_private", "Do answers need facts that are fresh or private?", "yes or no", default=False),
    Question("facts.change", "How often do the facts or requirements change?", "choice", choices=tuple(CHANGE_MONTHS), default="yearly"),
    Question("needs.format", "How strict is the format of an answer?", "choice", choices=("free", "loose", "strict"), optional=True),
    Question("needs.latency_p95_seconds", "Within how many seconds must 19 of 20 answers be there?", "number", optional=True),
    Question("quality.metric", "Which metric decides?", "text", default="exact_match"),
    Question("quality.bar", "From which value on is it good enough (a share, e.g. 0.9)?", "fraction"),
    Question("quality.rejected_answer_usd", "What does one answer that misses cost, in USD?", "amount", optional=True),
    Question("incumbent.provider", "Where does today's model run (openai, bedrock, together, fireworks, local, ...)?", "text"),
    Question("incumbent.model", "Which model is it?", "text"),
    Question("incumbent.arm", "Which measured arm is in use today?", "text", optional=True),
    Question("incumbent.tuned", "Is today's model itself a fine-tuned one?", "yes or no", default=False),
    Question("volume_per_month", "Requests per month?", "amount"),
    Question("volume_growth_per_year", "Growth of that per year, as a share (0.3 is 30 %)?", "amount", default=0),
    Question("tokens.static", "Tokens of the prompt that never change (instructions, examples)?", "amount"),
    Question("tokens.static_tuned", "Tokens of them that remain once a model is tuned?", "amount"),
    Question("tokens.fresh", "Tokens that change with each request?", "amount"),
    Question("tokens.output", "Tokens of an answer?", "amount"),
    Question("cache_hit_share", "Share of the static prompt that is read from the provider's cache today?", "share", default=0),
    Question("batch_share", "Share of requests that can wait a day for a batch tier?", "share", default=0),
    Question("horizon_months", "Over how many months is money counted?", "number", default=24),
    Question("discount_rate", "Discount rate per year, as a share?", "fraction", default=0.08),
    Question("costs.data_usd", "One-time cost of data, USD?", "amount"),
    Question("costs.labelling_usd", "One-time cost of labelling, USD?", "amount"),
    Question("costs.engineering_usd", "One-time cost of engineering, USD?", "amount"),
    Question("costs.evaluation_usd", "One-time cost of evaluation, USD?", "amount"),
    Question("retraining.every_months", "Months between two trainings?", "number", optional=True),
    Question("privacy.data_may_leave", "May the data leave your own machines?", "yes or no", default=True),
    Question("privacy.regions", "In which regions only may it be processed (e.g. eu, us-east)?", "text", optional=True),
    Question("privacy.regulations", "Which rules bind (e.g. GDPR, HIPAA)?", "text", optional=True),
    Question("data.labelled_rows", "Labelled rows at hand?", "number", optional=True),
    Question("data.preference_pairs", "Pairs of a better and a worse answer at hand?", "number", optional=True),
    Question(
        "skills", "The most that the team can do itself?", "choice", choices=("prompting", "api", "training", "operations"), optional=True
    ),
    Question("self_hosting.usd_per_hour", "Price of an hour of a machine of your own or rented, USD?", "amount", optional=True),
)
LISTS = frozenset({"privacy.regions", "privacy.regulations"})
"""Answers that are lists of words, parted by commas."""


def defaults_of(spec: JobSpec, data: JobData) -> dict[str, Any]:
    """What a spec and its data already answer; of the model in use one answer for each provider."""
    models = {p: model for p in ("openai", "bedrock", "together", "fireworks", "local") if (model := spec.model_for(p))}
    known: dict[str, Any] = {"title": spec.name, "data.labelled_rows": data.train.rows}
    if models:
        known |= {"incumbent.provider": next(iter(models)), "incumbent.model": models}
    if spec.data.system_prompt:
        known["tokens.static_tuned"] = max(1, len(spec.data.system_prompt) // 4)  # four characters a token
    return {path: value for path, value in known.items() if value is not None}


def flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of an earlier decision file, by path."""
    paths = {q.path for q in QUESTIONS}
    found: dict[str, Any] = {}
    for name, value in document.items():
        if name in paths:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{part}": inner for part, inner in value.items() if f"{name}.{part}" in paths}
    return found


def interview(
    ask: Asker,
    refuse: Callable[[str], None],
    known: Mapping[str, Any],
    start: Mapping[str, Any] | None = None,
    follow: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Ask every question; returns the decision file as a document. ``refuse`` is told why an answer makes no sense.

    ``known`` are defaults by path (``defaults_of``); what ``start`` (an earlier file) holds beyond the questions is kept.
    ``follow`` sees the document after every answer.
    """
    document: dict[str, Any] = {"version": 1, **deepcopy(dict(start or {}))}
    for question in QUESTIONS:
        default = known.get(question.path, question.default)
        if question.path == "incumbent.model" and isinstance(default, Mapping):
            default = default.get(document["incumbent"]["provider"])
        asked = Question(question.path, question.text, question.kind, question.choices, default, question.optional)
        while True:
            typed = ask(asked).strip()
            if not typed and default is None and not question.optional:
                refuse("this one needs an answer")
                continue
            try:
                value = default if not typed else parse(question, typed)
                changed = _with(document, question.path, value)
            except ValueError as error:
                refuse(str(error))
                continue
            break
        document = changed
        follow(document)
    return document


def _with(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with one more answer. Raises ValueError when a decision file takes no such value there."""
    if value is None:
        return document
    section, _, name = path.rpartition(".")
    changed = deepcopy(document)
    (changed.setdefault(section, {}) if section else changed)[name] = value
    place = tuple(path.split("."))
    try:
        Intake.model_validate(changed)
    except ValidationError as error:  # most of the file is still to come
        wrong = [fault["msg"] for fault in error.errors() if fault["loc"][: len(place)] == place]
        if wrong:
            raise ValueError(wrong[0]) from None
    return changed


def parse(question: Question, typed: str) -> Any:
    """The answer as a value. Raises ValueError with one sentence."""
    if question.path in LISTS:
        return [word.strip() for word in typed.split(",") if word.strip()]
    if question.kind == "yes or no":
        return _yes(typed)
    if question.kind in ("choice", "choices"):
        picked = [_pick(question, word) for word in typed.replace(",", " ").split()]
        if question.kind == "choices":
            return picked
        if len(picked) != 1:
            raise ValueError("choose one")
        return picked[0]
    if question.kind in ("amount", "share"):
        low, high = (_number(part) for part in (_ends(typed)))
        if low > high:
            raise ValueError("a range goes from low to high")
        if question.kind == "share" and not 0 <= low <= high <= 1:
            raise ValueError("a share lies between 0 and 1")
        return low if low == high else [low, high]
    if question.kind in ("number", "fraction"):
        value = _number(typed)
        if value < 0 or (question.kind == "fraction" and value > 1):
            raise ValueError("a share lies between 0 and 1" if question.kind == "fraction" else "a number of 0 or more")
        return value
    return typed


def _ends(typed: str) -> tuple[str, str]:
    parts = typed.replace(" to ", " ").replace("[", " ").replace("]", " ").replace(";", " ").split()
    if len(parts) not in (1, 2):
        raise ValueError("a number, or two of them parted by a space: 10th and 90th percentile")
    return parts[0], parts[-1]


def _number(typed: str) -> float | int:
    text = typed.replace(",", "").replace("_", "").replace("$", "")
    scale = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    try:
        value = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        raise ValueError(f"{typed!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"{typed!r} is no number to count with")
    return int(value) if value == int(value) else value


def _yes(typed: str) -> bool:
    word = typed.lower()
    if word in ("y", "yes", "true"):
        return True
    if word in ("n", "no", "false"):
        return False
    raise ValueError("yes or no")


def _pick(question: Question, word: str) -> str:
    if word.isdigit() and 1 <= int(word) <= len(question.choices):
        return question.choices[int(word) - 1]
    if word.lower() in question.choices:
        return word.lower()
    raise ValueError(f"{word!r} is none of {', '.join(question.choices)}")
