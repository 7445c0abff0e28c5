"""Steps that the vendors' compilers share. Pure; no vendor is named here.

A compiler reads every field through ``core.plan.Fields``; these helpers add ranges, methods, data rules and counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import JsonValue

from tuneport.core.catalogue import Offering, closed, lifetime_warnings
from tuneport.core.data.facts import DatasetFacts, Feature, JobData
from tuneport.core.data.normalise import KINDS_FOR
from tuneport.core.data.rows import Message, Row
from tuneport.core.money import Range
from tuneport.core.plan import BELONGS_TO, Fields, PlanWarning, Upload
from tuneport.core.prices import load_prices
from tuneport.core.spec import Method
from tuneport.providers.chat_records import json_safe, row_fault


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a vendor accepts for a number, ends included, and who says so. An open end is None."""

    low: float | None
    high: float | None
    source: str

    def admits(self, value: float) -> bool:
        """True when the value lies within the bounds."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            ends = [f"at least {_number(self.low)}"] if self.low is not None else []
            return " and ".join(ends + ([f"at most {_number(self.high)}"] if self.high is not None else [])) or "any number"
        return f"only {_number(self.low)}" if self.low == self.high else f"{_number(self.low)} to {_number(self.high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def bounds_of(offering: Offering, limit: str) -> Bounds | None:
    """A range (low, high) under this key of the offering's limits; None when the catalogue does not know it."""
    ends = offering.limits.get(limit)
    return Bounds(ends[0], ends[1], _source(offering)) if ends is not None else None


def row_bounds(offering: Offering, fewest: str = "min_rows", most: str = "max_rows") -> Bounds | None:
    """The number of rows that the offering accepts; None when the catalogue knows neither end."""
    low, high = offering.limits.get(fewest), offering.limits.get(most)
    return Bounds(low, high, _source(offering)) if low is not None or high is not None else None


def length_bounds(offering: Offering, limit: str = "max_row_tokens") -> Bounds | None:
    """The longest row in tokens that the offering accepts; None when the catalogue does not know it."""
    most = offering.limits.get(limit)
    return Bounds(None, most, _source(offering)) if most is not None else None


def _source(offering: Offering) -> str:
    source = offering.limits_source or offering.source
    return str(source) if source else "the catalogue"


@dataclass(frozen=True, slots=True)
class DataRules:
    """What a vendor's record format and limits allow for a job's files."""

    cannot_carry: Mapping[Feature, str]  # feature -> reason
    rows: Bounds | None = None  # of the training file, or of both files when rows_of_both
    rows_of_both: bool = False
    validation_rows: Bounds | None = None
    row_tokens: Bounds | None = None  # of the longest row
    needs: Mapping[Feature, str] | None = None  # features that must be there, e.g. prompt_only for rft


# -- fields ------------------------------------------------------------------------------------------------------------


def send_bounded(
    fields: Fields,
    path: str,
    wire: str,
    bounds: Bounds | None,
    *,
    default: str,
    whole: bool = False,
    convert: Callable[[Any], JsonValue] | None = None,
    note: str = "",
) -> Any:
    """``fields.send`` for a number with a range (None: unknown): refused, never clamped, when outside or not whole."""
    value = fields.peek(path)
    if value is not None and whole and value != int(value):
        fields.refuse(path, f"{value:g} is not a whole number, and only whole numbers are accepted")
        return None
    if value is not None and bounds is not None and not bounds.admits(value):
        fields.refuse(path, f"{value:g} is outside the accepted range, {bounds} ({bounds.source})")
        return None
    sent = fields.send(path, wire, default=default, convert=convert, note=note)
    return int(sent) if whole and convert is None and sent is not None else sent


def unoffered_method(offering: Offering, method: str) -> dict[str, str]:
    """{method: reason} when the catalogue knows that this model cannot be trained by it; otherwise nothing."""
    if offering.methods is None or method in offering.methods:
        return {}
    return {method: f"{offering.vendor_id} is offered for {', '.join(sorted(offering.methods))} only ({_source(offering)})"}


def send_model(fields: Fields, provider: str, wire: str, vendor_id: str, earlier: str | None) -> str:
    """Map ``model`` where an earlier tuned model (``continue_from``) is sent in the base model's place; returns what is sent."""
    sent = earlier or vendor_id
    if earlier:
        note = "continue_from is sent in its place; the base model gives limits and prices"
    elif isinstance(fields.peek("model"), str):
        note = f"the catalogue's id of this model at {provider}"
    else:
        note = f"the id named for {provider}"
    fields.send("model", wire, default="", convert=None if fields.peek("model") == sent else lambda _: sent, note=note)
    return sent


def send_for_method(fields: Fields, path: str, offered: Iterable[str], send: Callable[[], Any]) -> Any:
    """Send a field of ``core.plan.BELONGS_TO`` when the spec's method uses it and the vendor offers that method.

    In another method ``Fields`` has settled the field already; in a method the vendor lacks it is refused with the method.
    """
    method = fields.spec.method
    if method not in BELONGS_TO[path]:
        return None
    if method not in offered:
        fields.refuse_if_set(path, f"belongs to method {method}, which is refused")
        return None
    return send()


def method_on_wire(fields: Fields, wire: str, offered: Mapping[str, str], lacks: Mapping[str, str], *, note: str = "") -> str | None:
    """The vendor's word for the spec's method, or None after refusing it. A method is never replaced by another.

    ``offered`` maps our method to the vendor's word; ``lacks`` gives the reason for every method that is refused.
    """
    method = fields.spec.method
    if method in lacks or method not in offered:
        fields.refuse("method", lacks.get(method, f"method {method} is not offered; offered: {', '.join(sorted(offered))}"))
        return None
    word = offered[method]
    sent: str = fields.send("method", wire, default="", convert=None if word == method else lambda _: word, note=note)
    return sent


def tag_faults(tags: Mapping[str, str], *, most: int, key_length: int, value_length: int, pattern: str = "", source: str) -> str:
    """Why a vendor cannot carry these tags, or "". Keys that begin with ``tuneport`` are kept for the job's own key."""
    faults = [f"{len(tags)} tags, and at most {most} fit ({source})"] if len(tags) > most else []
    for key, value in tags.items():
        if key.lower().startswith("tuneport"):
            faults.append(f"tag {key!r}: names that begin with tuneport mark the job's own key")
        if len(key) > key_length or len(value) > value_length:
            faults.append(f"tag {key!r}: at most {key_length} characters for the key and {value_length} for the value ({source})")
        if pattern and not (re.fullmatch(pattern, key) and re.fullmatch(pattern, value)):
            faults.append(f"tag {key!r}: characters outside {pattern} ({source})")
    return "; ".join(faults)


# -- data --------------------------------------------------------------------------------------------------------------


def refuse_unfit_data(fields: Fields, data: JobData, rules: DataRules) -> None:
    """Refuse ``data.train`` and ``data.validation`` for every rule that they break, all reasons in one line each."""
    train = _faults(data.train, fields.spec.method, rules)
    held = data.validation.rows if data.validation and rules.rows_of_both else 0
    if rules.rows and not rules.rows.admits(data.train.rows + held):
        with_held = f" with {held} rows of validation" if held else ""
        train.append(f"has {data.train.rows} rows{with_held}, and {rules.rows} are accepted ({rules.rows.source})")
    if train:
        fields.refuse("data.train", "; ".join(train))
    if data.validation:
        validation = _faults(data.validation, fields.spec.method, rules)
        if rules.validation_rows and not rules.validation_rows.admits(data.validation.rows):
            limit = f"{rules.validation_rows} are accepted ({rules.validation_rows.source})"
            validation.append(f"has {data.validation.rows} rows, and {limit}")
        if validation:
            fields.refuse("data.validation", "; ".join(validation))


def _faults(facts: DatasetFacts, method: Method, rules: DataRules) -> list[str]:
    faults: list[str] = []
    kinds = KINDS_FOR[method]
    if facts.kind not in kinds:
        faults.append(f"holds {facts.kind} rows, and method {method} learns from {' or '.join(sorted(kinds))} rows")
    faults += [f"holds {feature}: {reason}" for feature, reason in rules.cannot_carry.items() if feature in facts.features]
    faults += [reason for feature, reason in (rules.needs or {}).items() if feature not in facts.features]
    if rules.row_tokens and not rules.row_tokens.admits(facts.tokens.longest_row):
        counted = "" if facts.tokens.exact else f", counted as {facts.tokens.tokenizer}"
        limit = f"{rules.row_tokens} are accepted ({rules.row_tokens.source})"
        faults.append(f"its longest row has up to {facts.tokens.longest_row} tokens{counted}, and {limit}")
    return faults


def send_validation(fields: Fields, data: JobData, wire: str) -> bool:
    """Map ``data.validation`` to the upload; True when there are validation rows, from a file or cut by tuneport."""
    cut = "rows cut from data.train by tuneport" if data.validation else "no validation rows"
    fields.send("data.validation", wire, default=cut, note="uploaded by tuneport")
    return data.validation is not None


def grader_record(row: Row, messages: list[Message]) -> dict[str, Any]:
    """A reinforcement prompt: messages, tools, and every column beside them for the grader.

    Raises DataError when the prompt ends with an answer, or a column has the name of a part of the record.
    """
    if row.kind != "chat" or messages[-1]["role"] != "user":
        raise row_fault(row, "does not end with the user's message", "a reinforcement prompt has no answer; the model writes it")
    columns = ({"label": row.label} if row.label is not None else {}) | row.columns
    for name in ("messages", "tools"):
        if name in columns:
            raise row_fault(row, f"has a column {name!r}, which is a part of the record itself", "rename the column")
    tools = {"tools": list(row.tools)} if row.tools else {}
    return {"messages": messages} | tools | {name: json_safe(row, name, value) for name, value in columns.items()}


def uploads_for(data: JobData, record: str, stem: str, *, validation: bool = True) -> tuple[Upload, ...]:
    """The files to send: ``<stem>-train.jsonl`` and, when there are validation rows, ``<stem>-validation.jsonl``."""
    files = [Upload(role="train", source=data.train.path, record=record, filename=f"{stem}-train.jsonl", rows=data.train.rows)]
    if validation and data.validation:
        held = data.validation
        files.append(Upload(role="validation", source=held.path, record=record, filename=f"{stem}-validation.jsonl", rows=held.rows))
    return tuple(files)


# -- counts ------------------------------------------------------------------------------------------------------------


def fixed(value: float) -> Range:
    """A range of one value."""
    return Range(low=value, high=value)


def file_tokens(facts: DatasetFacts) -> Range:
    """Tokens of one pass over a file."""
    return Range(low=facts.tokens.low, high=facts.tokens.high)


def trained_tokens(data: JobData, epochs: Range) -> Range:
    """Tokens seen in training: the training file's tokens times the epochs."""
    return file_tokens(data.train) * epochs


def evaluated_tokens(data: JobData, passes: float) -> Range | None:
    """Tokens of all validation passes; None without validation rows."""
    return file_tokens(data.validation) * passes if data.validation and passes else None


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps of one pass; the last batch may be smaller."""
    return max(1, math.ceil(rows / batch_size))


def warmup_steps_of(ratio: float, rows: int, batch_size: int, epochs: float) -> int:
    """A warm-up ratio in optimiser steps, rounded up as transformers does."""
    return math.ceil(ratio * steps_per_epoch(rows, batch_size) * epochs)


# -- lifetimes ---------------------------------------------------------------------------------------------------------


def check_lifetime(fields: Fields, offering: Offering, today: date) -> list[PlanWarning]:
    """Refuse a base model that takes no new jobs on ``today``; return warnings for one that soon will not."""
    reason = closed(offering, today)
    if reason:
        fields.refuse("model", f"{reason}; choose another base model or provider (tuneport models, tuneport plan --provider all)")
    return list(lifetime_warnings(offering, today))


# -- serving -----------------------------------------------------------------------------------------------------------

_PER_TOKEN = frozenset({"serverless", "on-demand", "local"})
"""Ways of serving (``core.catalogue.Serving``) that cost nothing while nobody calls."""


def hosting_warning(offering: Offering, today: date) -> tuple[PlanWarning, ...]:
    """The warning (code "serving") that a tuned model of this offering needs GPUs of its own, with the hourly price if known.

    None for an offering that the catalogue lists as served per token; another text where it knows of no way to serve it.
    """
    if _PER_TOKEN.intersection(offering.serving):
        return ()
    if offering.known and not offering.serving:
        message = f"no way to serve the tuned model at {offering.provider} is known. {offering.note}".rstrip()
        return (PlanWarning(code="serving", message=message),)
    prices = [
        price
        for price in load_prices().prices()
        if (price.provider, price.kind) == (offering.provider, "host_hour")
        and price.model in (None, offering.model)
        and (price.valid_from is None or price.valid_from <= today)
        and (price.valid_to is None or today <= price.valid_to)
    ]
    if prices:
        low, high = min(p.amount.low for p in prices), max(p.amount.high for p in prices)
        kinds = ", ".join(sorted({p.gpu for p in prices if p.gpu})) or "GPU not named"
        cost = f"{low:g} to {high:g} USD per GPU-hour ({kinds})" if low < high else f"{low:g} USD per GPU-hour ({kinds})"
    else:
        cost = "the price book has no price for it"
    message = f"the tuned model answers only on a dedicated deployment, which is billed by the hour while it runs: {cost}"
    return (PlanWarning(code="serving", message=message),)


# -- payloads ----------------------------------------------------------------------------------------------------------


def set_only(body: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The entries that hold a value: a field left out means the vendor's default, a null may mean something else."""
    return {key: value for key, value in body.items() if value is not None}
