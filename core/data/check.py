"""Checks data files before anything is paid for: what ``tuneport check`` and the report say about a data set.

Finding codes are stable. Thresholds carry the tag (S0 to S4) of the practitioners' document that they come from;
they are rules of thumb to weigh, so only what a job cannot run with is an error.

    error            malformed_row, wrong_shape, unknown_format, unknown_role, role_order, empty_turn, last_turn, bad_weight,
                     wrong_kind, schema_mismatch; overlap_train and overlap_validation in test rows
    warning          missing_system_prompt, varying_system_prompt, duplicate_rows, identical_pair, inconsistent_output,
                     unbalanced_classes, small_class, too_few_tokens, small_test_set; overlap_train in validation rows
    warning or info  too_few_rows
    info             no_system_prompt, varying_json_fields, many_rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tuneport.core.data.check_rows import RowSurvey
from tuneport.core.data.facts import TokenFacts
from tuneport.core.data.features import feature_set
from tuneport.core.data.load import open_file, unknown_format, wrong_kind
from tuneport.core.data.normalise import Normaliser, RowFormat
from tuneport.core.data.readers import Record
from tuneport.core.data.rows import Row
from tuneport.core.data.split import Part
from tuneport.core.data.tokens import TokenMeter
from tuneport.core.errors import UsageError
from tuneport.core.spec import PREFERENCE_METHODS, DataFormat, Method

Severity = Literal["error", "warning", "info"]

_ROWS_OVERFIT = 200  # S2: fewer than 200 examples overfit
_ROWS_GENERALISE = 500  # S1, S4: fewer than 500 are unlikely to generalise
_ROWS_DIMINISH = 10_000  # S1: beyond 10,000 returns diminish
_PAIRS = 1_000  # S0: DPO wants 1,000 to 10,000 pairs
_ROWS_PER_CLASS = 100  # S1: 100 to 200 per class
_TEST_ROWS = 150  # S2: 150 to 200 seen in practice; S4 wants 200 to 500
_CPT_TOKENS = 1_000_000  # S0, S4: continued pre-training takes millions to billions of tokens
_BALANCE = 10  # S0 asks for balanced classes; the factor is ours
_EXAMPLES = 5


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Finding(_Frozen):
    """One thing found: how often, and the first lines (rows, in JSON arrays and Parquet) where it stands."""

    code: str
    severity: Severity
    message: str
    count: int
    lines: tuple[int, ...] = ()


class AnswerSummary(_Frozen):
    """What the model would learn to say. ``labels`` counts the classes, for classification rows only."""

    distinct: int
    json_answers: int
    labels: dict[str, int] = {}


class CheckReport(_Frozen):
    """What was found in one file."""

    file: str
    part: Part
    rows: int
    good_rows: int
    format: RowFormat | None  # None: none that is known
    detected: bool  # False when the caller named the format
    method: Method
    features: tuple[str, ...] = ()
    tokens: TokenFacts | None = None  # None without a good row
    answers: AnswerSummary | None = None  # None for raw text, for rft and without a good row
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing found is an error."""
        return all(finding.severity != "error" for finding in self.findings)


class _Findings:
    """Collects findings, one per code."""

    def __init__(self) -> None:
        self._rows: dict[str, list[int]] = {}
        self._counts: Counter[str] = Counter()
        self._said: dict[str, tuple[Severity, str]] = {}

    def row(self, code: str, line: int, severity: Severity, message: str) -> None:
        """Note one row; the first row's message stands for all of its code."""
        self._said.setdefault(code, (severity, message))
        if not self._counts[code] or self._rows[code][-1] != line:
            self._counts[code] += 1
            if len(self._rows.setdefault(code, [])) < _EXAMPLES:
                self._rows[code].append(line)

    def rows(self, code: str, lines: Iterable[int], severity: Severity, message: str) -> None:
        """Note all rows of a code at once; none, no finding. ``{n}`` in the message stands for their number."""
        found = list(lines)
        if found:
            self._said[code] = (severity, message.replace("{n}", f"{len(found):,}"))
            self._counts[code] = len(found)
            self._rows[code] = found[:_EXAMPLES]

    def file(self, code: str, severity: Severity, message: str, count: int = 1) -> None:
        """Note something about the file as a whole."""
        self._said[code] = (severity, message)
        self._counts[code] = count

    def all(self) -> tuple[Finding, ...]:
        """Errors first, then warnings, then information; within each, in the order found."""
        rank = {"error": 0, "warning": 1, "info": 2}
        found = [
            Finding(code=code, severity=severity, message=message, count=self._counts[code], lines=tuple(self._rows.get(code, ())))
            for code, (severity, message) in self._said.items()
        ]
        return tuple(sorted(found, key=lambda finding: rank[finding.severity]))


def check_data(
    path: str,
    *,
    format: DataFormat = "auto",
    method: Method = "sft",
    system_prompt: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    part: Part = "train",
) -> CheckReport:
    """Check one file. ``part`` says what it is for; ``json_schema`` is what every answer must satisfy.

    ``system_prompt`` is the one that the job would put before rows that have none.
    Raises DataError when the file cannot be read or holds no rows, UsageError when the schema is no valid JSON Schema.
    """
    return _check(path, format, method, system_prompt, json_schema, part, {})[0]


def check_files(
    train: str,
    validation: str | None = None,
    test: str | None = None,
    *,
    format: DataFormat = "auto",
    method: Method = "sft",
    system_prompt: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
) -> dict[Part, CheckReport]:
    """Check the files of a job together: each by itself, and validation and test for rows that training also has.

    Raises as ``check_data`` does.
    """
    files: dict[Part, str | None] = {"train": train, "validation": validation, "test": test}
    reports: dict[Part, CheckReport] = {}
    earlier: dict[Part, set[bytes]] = {}
    for part, path in files.items():
        if path is not None:
            reports[part], inputs = _check(path, format, method, system_prompt, json_schema, part, earlier)
            earlier[part] = inputs
    return reports


def _check(
    path: str,
    wanted: DataFormat,
    method: Method,
    system_prompt: str | None,
    json_schema: Mapping[str, Any] | None,
    part: Part,
    earlier: Mapping[Part, set[bytes]],
) -> tuple[CheckReport, set[bytes]]:
    found, first, records = open_file(path, wanted, method)
    findings = _Findings()
    survey = RowSurvey(_validator(json_schema), earlier)
    meter = TokenMeter()
    normaliser = Normaliser(path, found, method, system_prompt) if found else None
    if found and (error := wrong_kind(path, found, method)):
        findings.file("wrong_kind", "error", str(error))
    elif first and not found:
        findings.file("unknown_format", "error", str(unknown_format(path, first[0])))
    rows = 0
    low = high = longest = 0.0
    for record in records:
        rows += 1
        row = normaliser.row(record) if normaliser and isinstance(record, Record) else None
        if isinstance(row, Row):
            survey.add(row)
            tokens = meter.measure(row)
            low, high, longest = low + tokens.low, high + tokens.high, max(longest, tokens.longest)
        elif not isinstance(record, Record):
            findings.row(record.code, record.line, "error", str(record.fault))
        else:
            for problem in row or ():
                findings.row(problem.code, problem.line, "error", str(problem.fault))
    features = feature_set(survey.bits)
    facts = meter.facts(low, high, longest, images="images" in features) if survey.good else None
    _judge_rows(findings, survey, part)
    if normaliser and facts:
        _judge_size(findings, survey, method, part, facts)
    report = CheckReport(
        file=path,
        part=part,
        rows=rows,
        good_rows=survey.good,
        format=found,
        detected=wanted == "auto",
        method=method,
        features=tuple(sorted(features)),
        tokens=facts,
        answers=AnswerSummary(
            distinct=len(survey.answers), json_answers=len(survey.json_lines), labels=dict(survey.labels.most_common())
        )
        if survey.answered
        else None,
        findings=findings.all(),
    )
    return report, survey.inputs


def _validator(schema: Mapping[str, Any] | None) -> Any:
    if schema is None:
        return None
    import jsonschema  # noqa: PLC0415 - slow to import, and only needed with a schema

    try:
        kind = jsonschema.validators.validator_for(dict(schema), default=jsonschema.Draft202012Validator)
        kind.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        raise UsageError(f"the JSON schema for answers is not valid ({error.message})", fix="mend the schema") from error
    return kind(dict(schema))


def _judge_rows(findings: _Findings, survey: RowSurvey, part: Part) -> None:
    """Turn what the survey saw of the rows into findings."""
    for other, lines in survey.overlaps.items():
        message = f"{{n}} rows have an input that the {other} rows have too: no overlap between splits (S2); remove them from one side"
        findings.rows(f"overlap_{other}", lines, "error" if part == "test" else "warning", message)
    message = "{n} answers do not satisfy the JSON schema"
    findings.rows("schema_mismatch", survey.schema_lines, "error", f"{message}, first: {survey.schema_reason}")
    findings.rows("duplicate_rows", survey.duplicates, "warning", "{n} rows repeat an earlier row exactly; remove them (S2)")
    findings.rows("identical_pair", survey.identical_pairs, "warning", "{n} pairs have two equal answers and teach nothing")
    if survey.without_system and survey.systems:
        message = "{n} rows lack the system prompt that others have; put the production system prompt into every row (S1)"
        findings.rows("missing_system_prompt", survey.without_system, "warning", message)
    elif survey.without_system:
        message = "no row has a system prompt; if production uses one, set data.system_prompt to it (S1)"
        findings.rows("no_system_prompt", survey.without_system, "info", message)
    if len(survey.systems) > 1:
        message = f"{len(survey.systems):,} different system prompts; use the production one everywhere, unless they differ on purpose (S1)"
        findings.file("varying_system_prompt", "warning", message, len(survey.systems))
    if survey.json_lines and survey.other_lines:
        mostly_json = len(survey.json_lines) >= len(survey.other_lines)
        fewer = survey.other_lines if mostly_json else survey.json_lines
        are = ("are not", "are") if mostly_json else ("are", "are not")
        message = f"{{n}} of {survey.answered:,} answers {are[0]} JSON, the others {are[1]}; use one output format (S1)"
        findings.rows("inconsistent_output", fewer, "warning", message)
    if len(survey.json_shapes) > 1:
        message = f"the JSON answers have {len(survey.json_shapes):,} different sets of fields, commonest: {survey.commonest_shape()} (S1)"
        findings.file("varying_json_fields", "info", message, len(survey.json_shapes))


def _judge_size(findings: _Findings, survey: RowSurvey, method: Method, part: Part, tokens: TokenFacts) -> None:
    """Compare the amount of data with what the method needs (field guide, section 3)."""
    rows = survey.good
    if part == "test":
        if rows < _TEST_ROWS:
            message = f"{rows:,} test rows; 150 to 200 are usual (S2), 200 to 500 advised (S4): fewer cannot show small gains"
            findings.file("small_test_set", "warning", message, rows)
        return
    if part != "train":
        return
    if method == "cpt":
        if tokens.high < _CPT_TOKENS:
            message = f"about {tokens.high:,} tokens at most; continued pre-training takes millions to billions (S0, S4)"
            findings.file("too_few_tokens", "warning", message, rows)
    elif method in PREFERENCE_METHODS:
        if rows < _PAIRS:
            message = f"{rows:,} preference rows; 1,000 to 10,000 pairs are advised (S0), 5,000 to 20,000 for a domain (S4)"
            findings.file("too_few_rows", "warning", message, rows)
    elif rows < _ROWS_OVERFIT:
        message = f"{rows:,} rows; fewer than 200 overfit (S2), fewer than 500 hardly generalise (S1, S4): try a better prompt first"
        findings.file("too_few_rows", "warning", message, rows)
    elif rows < _ROWS_GENERALISE:
        message = f"{rows:,} rows; enough to teach a format (S2), but fewer than 500 are unlikely to generalise (S1, S4)"
        findings.file("too_few_rows", "info", message, rows)
    if rows > _ROWS_DIMINISH and method != "cpt":
        message = f"{rows:,} rows; beyond 10,000 returns diminish (S1), and 1,000 curated rows beat 10,000 noisy ones (S0)"
        findings.file("many_rows", "info", message, rows)
    _judge_classes(findings, survey.labels)


def _judge_classes(findings: _Findings, labels: Counter[str]) -> None:
    if not labels:
        return
    small = [label for label, count in labels.items() if count < _ROWS_PER_CLASS]
    if small:
        named = ", ".join(f"{label} ({labels[label]})" for label in sorted(small, key=lambda label: labels[label])[:_EXAMPLES])
        message = f"{len(small):,} of {len(labels):,} classes have fewer than 100 rows (S1 advises 100 to 200 each), smallest: {named}"
        findings.file("small_class", "warning", message, len(small))
    (most, many), (least, few) = labels.most_common()[0], labels.most_common()[-1]
    if many > _BALANCE * few:
        message = f"class {most!r} has {many:,} rows and {least!r} {few:,}; balance the classes (S0)"
        findings.file("unbalanced_classes", "warning", message, len(labels))


__all__ = ["AnswerSummary", "CheckReport", "Finding", "Severity", "check_data", "check_files"]
