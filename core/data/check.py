"""Checks data before anything is paid for: what ``tuneport check`` and the report say about a data set.

One pass over each file, in several processes when it is large, in memory that grows by about 150 bytes a row (not at all
without duplicates and tokens). Finding codes are stable; only what a job cannot run with, what makes its test worthless, and keys
and tokens are errors.

    error            malformed_row, wrong_shape, unknown_format, unknown_role, role_order, empty_turn, last_turn, bad_weight,
                     wrong_kind, schema_mismatch, unknown_label, personal_secret; overlap_, normalised_overlap_ and near_overlap_
                     (train, validation) in test rows; vendor_limit_<provider> when providers are named
    warning          missing_system_prompt, varying_system_prompt, other_system_prompt, duplicate_rows, near_duplicates, identical_pair,
                     inconsistent_output, label_variants, unbalanced_classes, small_class, too_few_tokens, small_test_set,
                     personal_email (phone, card, iban, ssn, ip), characters_control (replacement, mojibake, direction),
                     cut_rows; long_rows_<provider> when providers are named, and vendor_limit_<provider> too for a spec that leaves
                     the provider open; the overlaps in validation rows, and passage_overlap_
    warning or info  too_few_rows
    info             no_system_prompt, varying_json_fields, inconsistent_punctuation, conflicting_answers, many_rows,
                     mixed_languages, characters_invisible (private), vendor_limit_ and long_rows_<provider> otherwise
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Literal, get_args

from tuneport.core.data.check_report import AnswerSummary, CheckReport, Finding, Quantile, Severity, VendorFit
from tuneport.core.data.features import feature_set
from tuneport.core.data.hub_rows import Source, source_name
from tuneport.core.data.load import open_file, unknown_format, wrong_kind
from tuneport.core.data.normalise import KIND_OF, Normaliser, RowFormat
from tuneport.core.data.split import PARTS, Part
from tuneport.core.data.tokens import tokens_counted
from tuneport.core.errors import MissingExtraError, UsageError
from tuneport.core.spec import DataFormat, JobSpec, Method

if TYPE_CHECKING:
    from tuneport.core.data.gather import Gathered
    from tuneport.core.data.judge import Findings
    from tuneport.core.data.limits import Chosen
    from tuneport.core.data.survey import SurveyJob

Skippable = Literal["duplicates", "near-duplicates", "personal-data", "tokens"]
OnProgress = Callable[[str, int, int | None], None]
"""Called as a source is read: (its name, bytes or rows done, all of them or None where nobody knows)."""


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What to look for, beyond the structure of the rows, and how.

    ``labels``: the only answers that are right. ``near``: Jaccard similarity from which rows are near duplicates, of word
    triples. ``personal``: kinds of ``core.data.patterns`` to look for (empty: all). ``names``: also look for names and places with
    Presidio (extra "pii"; slow). ``count_tokens``: count with o200k_base instead of estimating (extra "tokens").
    ``models`` and ``providers`` narrow the limits that rows are set against; naming one makes broken limits more than information.
    ``max_tokens``: the longest row that the job trains on (training.max_seq_length). ``workers``: processes, by default one for
    each core when a file is large. ``today``: models that are closed on this day do not count.
    """

    skip: frozenset[Skippable] = frozenset()
    labels: tuple[str, ...] | None = None
    near: float = 0.8
    personal: tuple[str, ...] = ()
    names: bool = False
    count_tokens: bool = False
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    max_tokens: int | None = None
    workers: int | None = None
    today: date | None = None

    def __post_init__(self) -> None:
        if not 0 < self.near <= 1:
            raise UsageError(f"the threshold for near duplicates is {self.near}", fix="give a number above 0 and at most 1")
        if unknown := sorted(self.skip - set(get_args(Skippable))):
            raise UsageError(f"there is no part of the check named {unknown[0]!r}", fix=f"choose from {', '.join(get_args(Skippable))}")


def check_data(
    path: Source,
    *,
    format: DataFormat = "auto",
    method: Method = "sft",
    system_prompt: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    part: Part = "train",
    options: CheckOptions | None = None,
    on_progress: OnProgress | None = None,
) -> CheckReport:
    """Check one file or dataset. ``part`` says what it is for; ``json_schema`` is what every answer must satisfy.

    ``system_prompt`` is the production prompt, which the job would put before rows that have none.
    Raises DataError when the file cannot be read or holds no rows, UsageError when the schema is no valid JSON Schema or a model
    or provider is unknown, and MissingExtraError when a part asked for needs an extra.
    """
    return _check({part: path}, format, method, system_prompt, json_schema, options, on_progress)[part]


def check_files(
    train: Source,
    validation: Source | None = None,
    test: Source | None = None,
    *,
    format: DataFormat = "auto",
    method: Method = "sft",
    system_prompt: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    options: CheckOptions | None = None,
    on_progress: OnProgress | None = None,
) -> dict[Part, CheckReport]:
    """Check the files of a job together: each by itself, and validation and test for rows that training also has.

    Raises as ``check_data`` does.
    """
    given: dict[Part, Source | None] = {"train": train, "validation": validation, "test": test}
    sources = {part: source for part, source in given.items() if source is not None}
    return _check(sources, format, method, system_prompt, json_schema, options, on_progress)


def check_spec(
    spec: JobSpec,
    *,
    system_prompt: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    options: CheckOptions | None = None,
    on_progress: OnProgress | None = None,
) -> dict[Part, CheckReport]:
    """Check the files of a spec for its method, against the limits of its own models and providers.

    ``system_prompt`` stands in for the spec's own. Raises as ``check_data`` does.
    """
    given: dict[Part, Source | None] = {"train": spec.data.train, "validation": spec.data.validation, "test": spec.data.test}
    sources = {part: source for part, source in given.items() if source is not None}
    options = replace(options or CheckOptions(), max_tokens=spec.training.max_seq_length)
    prompt = system_prompt or spec.data.system_prompt
    return _check(sources, spec.data.format, spec.method, prompt, json_schema, options, on_progress, spec)


@dataclass(slots=True)
class _Opened:
    """A source before it is surveyed: its format, and what is wrong with the file as a whole."""

    source: Source
    format: RowFormat | None
    job: SurveyJob
    fault: tuple[str, str] | None  # code and message


def _check(
    sources: Mapping[Part, Source],
    wanted: DataFormat,
    method: Method,
    system_prompt: str | None,
    json_schema: Mapping[str, Any] | None,
    options: CheckOptions | None,
    on_progress: OnProgress | None,
    spec: JobSpec | None = None,
) -> dict[Part, CheckReport]:
    from tuneport.core.data.gather import gather, in_folder, scratch_folder  # noqa: PLC0415 - numpy is not needed to plan
    from tuneport.core.data.judge import Findings  # noqa: PLC0415
    from tuneport.core.data.limits import choose  # noqa: PLC0415
    from tuneport.core.data.overlap import find_overlap, judge_overlap  # noqa: PLC0415

    options = options or CheckOptions()
    if options.count_tokens and not tokens_counted():
        raise MissingExtraError("counting tokens needs bpe-openai", "tokens")
    chosen = choose(options.models, options.providers, spec, method, options.today or date.today())
    opened = {part: _open(source, wanted, method, system_prompt, json_schema, options) for part, source in sources.items()}
    found: dict[Part, Gathered] = {}
    reports: dict[Part, CheckReport] = {}
    with scratch_folder() as folder:
        # The small parts first: train is then watched for their passages, so that its own need not be kept.
        for part in reversed(PARTS):
            if part in opened:
                job = in_folder(_watching(opened[part].job, found), folder) if len(opened) > 1 else in_folder(opened[part].job, folder)
                found[part] = gather(opened[part].source, job, options.workers, on_progress)
        for part in PARTS:
            if part not in opened:
                continue
            findings = Findings()
            if "duplicates" not in options.skip:
                near = None if "near-duplicates" in options.skip else options.near
                for other in PARTS[: PARTS.index(part)]:
                    if other in found:
                        judge_overlap(findings, part, other, found[part], find_overlap(found[part], found[other], near))
            reports[part] = _report(part, opened[part], found[part], findings, wanted, method, system_prompt, options, chosen)
    return reports


def _open(
    source: Source,
    wanted: DataFormat,
    method: Method,
    system_prompt: str | None,
    json_schema: Mapping[str, Any] | None,
    options: CheckOptions,
) -> _Opened:
    from tuneport.core.data.deep import DeepOptions  # noqa: PLC0415
    from tuneport.core.data.patterns import KINDS  # noqa: PLC0415
    from tuneport.core.data.schemas import SchemaCheck  # noqa: PLC0415
    from tuneport.core.data.survey import SurveyJob  # noqa: PLC0415

    if json_schema is not None:
        SchemaCheck(json_schema)  # raises now rather than in a worker
    name = source_name(source)
    found, first, _ = open_file(source, wanted, method)
    fault: tuple[str, str] | None = None
    if found and (error := wrong_kind(name, found, method)):
        fault = ("wrong_kind", str(error))
    elif first and not found:
        fault = ("unknown_format", str(unknown_format(name, first[0])))
    duplicates = "duplicates" not in options.skip
    deep = DeepOptions(
        duplicates=duplicates,
        near=duplicates and "near-duplicates" not in options.skip,
        personal="personal-data" not in options.skip,
        tokens="tokens" not in options.skip,
        openai_tokens=options.count_tokens,
        kinds=options.personal or KINDS,
        names=options.names,
    )
    wants_deep = deep.duplicates or deep.personal or deep.tokens
    normaliser = Normaliser(name, found, method, system_prompt) if found else None
    return _Opened(source, found, SurveyJob(name, normaliser, json_schema, deep if wants_deep else None), fault)


def _watching(job: SurveyJob, later: Mapping[Part, Gathered]) -> SurveyJob:
    """The job of a part with the passages of the parts surveyed before it to look out for."""
    import numpy as np  # noqa: PLC0415

    if job.deep is None or not job.deep.duplicates:
        return job
    watch = np.unique(np.concatenate([found.array("grams") for found in later.values()])) if later else None
    return replace(job, deep=replace(job.deep, watch=watch, keep_grams=not later or len(later) < len(PARTS) - 1))


def _report(
    part: Part,
    opened: _Opened,
    found: Gathered,
    findings: Findings,
    wanted: DataFormat,
    method: Method,
    system_prompt: str | None,
    options: CheckOptions,
    chosen: Chosen,
) -> CheckReport:
    from tuneport.core.data.judge import judge_personal, judge_rows, judge_size, judge_vendors  # noqa: PLC0415
    from tuneport.core.data.lengths import quantiles, vendor_fits  # noqa: PLC0415
    from tuneport.core.data.overlap import judge_duplicates  # noqa: PLC0415
    from tuneport.core.data.tokens import TokenMeter  # noqa: PLC0415

    tally = found.tally
    if opened.fault:
        findings.file(opened.fault[0], "error", opened.fault[1])
    features = feature_set(tally.bits)
    low, high = found.array("low"), found.array("high")
    facts = None
    if tally.good and high.size:
        meter = TokenMeter(openai=options.count_tokens)
        longest = float(found.array("longest").max())
        facts = meter.facts(float(low.sum(dtype="f8")), float(high.sum(dtype="f8")), longest, images="images" in features)
    judge_rows(findings, tally, found.name, system_prompt, options.labels)
    distinct = None
    if "duplicates" not in options.skip:
        near = None if "near-duplicates" in options.skip else options.near
        answered = opened.format is not None and KIND_OF[opened.format] == "chat" and method != "rft"
        judge_duplicates(findings, found, near=near, answered=answered)
        distinct = len(set(found.array("answered").tolist()))
    _add_system_prompts(found, options)
    judge_personal(findings, found.personal)
    fits: tuple[VendorFit, ...] = ()
    if opened.format and tally.good:
        judge_size(findings, tally, method, part, facts)
        path = opened.source if isinstance(opened.source, str) and opened.source.endswith(".jsonl") else None
        fits = vendor_fits(low, high, rows=tally.good, bad=tally.bad, path=path, part=part, method=method, offerings=chosen.offerings)
        judge_vendors(findings, fits, chosen.severity, chosen.refusals if part == "train" else {})
        if chosen.severity == "info":
            fits = tuple(fit for fit in fits if fit.problems)  # limits that nobody asked for and nothing breaks
        if options.max_tokens and (over := int((high > options.max_tokens).sum())):
            surely = int((low > options.max_tokens).sum())
            lines = found.array("lines")[high > options.max_tokens][:5].tolist()
            message = f"{surely:,} to {over:,} rows exceed training.max_seq_length {options.max_tokens:,} and would be cut"
            findings.rows("cut_rows", over, lines, "warning", message)
    return CheckReport(
        file=found.name,
        part=part,
        rows=tally.rows,
        good_rows=tally.good,
        format=opened.format,
        detected=wanted == "auto",
        method=method,
        features=tuple(sorted(features)),
        tokens=facts,
        lengths=quantiles(low, high),
        vendors=fits,
        vendors_asked=chosen.severity != "info",
        answers=AnswerSummary(distinct=distinct, json_answers=tally.json_answers.count, labels=dict(tally.labels.most_common()))
        if tally.answered
        else None,
        languages={name: hits.count for name, hits in sorted(tally.languages.items())},
        personal={kind: hits.count for kind, hits in sorted(found.personal.items())},
        skipped=tuple(sorted(options.skip)),
        findings=findings.all(),
    )


def _add_system_prompts(found: Gathered, options: CheckOptions) -> None:
    """Look for personal data in the system prompts too: once in each, however many rows have it."""
    from tuneport.core.data.patterns import KINDS, find_personal, masked  # noqa: PLC0415
    from tuneport.core.data.tally import Hits  # noqa: PLC0415

    if "personal-data" not in options.skip:
        for prompt, hits in found.tally.systems.items():
            for match in find_personal(prompt, options.personal or KINDS):
                example = masked(match.kind, prompt[match.start : match.end])
                found.personal.setdefault(match.kind, Hits()).add(hits.lines[0], f"{example} (in the system prompt)")


__all__ = [
    "AnswerSummary",
    "CheckOptions",
    "CheckReport",
    "Finding",
    "OnProgress",
    "Quantile",
    "Severity",
    "Skippable",
    "VendorFit",
    "check_data",
    "check_files",
    "check_spec",
]
