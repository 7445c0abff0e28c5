"""tuneport: one portable fine-tuning job, five places to run it, and an advisor that says whether and where.

    import tuneport as tp

    spec = tp.load_spec("tickets.yaml")
    plan = tp.plan(spec, "together")          # payload, field outcomes, cost and time; sends nothing
    job = tp.submit(spec, "local")            # written to the ledger first, then made exactly once
    job.wait()
    for job in tp.jobs(): print(job.id, job.state)
    report = tp.advise("decision.yaml", spec=spec)

    tp.check("train.jsonl", test="test.jsonl")["train"].findings          # files, Hugging Face datasets, or a spec
    tp.prepare("rows.csv", "data/", {"dedupe": "near", "test": 0.1})      # writes the parts and a data card

Everything raises ``tuneport.TuneportError`` or one of its kinds (``tuneport.core.errors``), and nothing else on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuneport.core.errors import TuneportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from tuneport.advisor.intake import Intake
    from tuneport.advisor.measurement import Measurement
    from tuneport.advisor.report.model import Report
    from tuneport.advisor.runs import RunFamily
    from tuneport.core.data.card import DataCard
    from tuneport.core.data.check import CheckOptions, CheckReport
    from tuneport.core.data.facts import JobData
    from tuneport.core.data.hub_rows import HubDataset
    from tuneport.core.data.prepare import PrepareOptions
    from tuneport.core.data.split import Part
    from tuneport.core.engine import Engine, Job
    from tuneport.core.plan import Plan
    from tuneport.core.provider import OpenRows
    from tuneport.core.spec import DataFormat, JobSpec, Method

    Rows = str | Path | HubDataset  # a file, or a Hugging Face dataset

__version__ = "0.1.0"
_LAZY = {
    "CheckOptions": "tuneport.core.data.check",
    "CheckReport": "tuneport.core.data.check",
    "DataCard": "tuneport.core.data.card",
    "Job": "tuneport.core.engine",
    "JobSpec": "tuneport.core.spec",
    "Plan": "tuneport.core.plan",
    "PrepareOptions": "tuneport.core.data.prepare",
    "Report": "tuneport.advisor.report.model",
}
__all__ = [
    "CheckOptions", "CheckReport", "DataCard", "Job", "JobSpec", "Plan", "PrepareOptions", "Report", "TuneportError", "__version__",
    "advise", "check", "engine", "jobs", "load_spec", "plan", "prepare", "submit",
]  # fmt: skip

# The functions import what they need when called: `import tuneport` stays cheap for the command line.
# ruff: noqa: PLC0415


def __getattr__(name: str) -> Any:
    """The public types, imported when first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tuneport' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def load_spec(source: str | Path | Mapping[str, Any]) -> JobSpec:
    """The job spec in a YAML or JSON file, or in a mapping.

    Raises SpecError with every fault found, DataError when the file cannot be read.
    """
    from tuneport.core import spec_file

    return spec_file.load_spec(source)


def _loaded(spec: JobSpec | str | Path) -> JobSpec:
    """The spec itself, or the one in a file."""
    from tuneport.core.spec import JobSpec

    return spec if isinstance(spec, JobSpec) else load_spec(spec)


def check(
    source: JobSpec | Rows | Mapping[str, HubDataset],
    validation: Rows | None = None,
    test: Rows | None = None,
    *,
    format: DataFormat = "auto",
    method: Method = "sft",
    system_prompt: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    options: CheckOptions | None = None,
) -> dict[Part, CheckReport]:
    """Every fault in training data, by part: "train", and "validation" and "test" where given, compared with each other.

    ``source``: a file of rows, a Hugging Face ``Dataset``, ``IterableDataset`` or ``DatasetDict``, or a spec (a ``JobSpec`` or its
    .yaml file), whose own files, format and method then count. ``system_prompt`` is the production prompt, ``json_schema`` what
    every answer must satisfy. Raises DataError when a file cannot be read, UsageError for an unknown model or provider or an
    invalid schema, SpecError for a faulty spec, MissingExtraError when a part asked for needs an extra.
    """
    from collections.abc import Mapping as Mappings
    from os import PathLike

    from tuneport.core.data.check import check_files, check_spec
    from tuneport.core.data.hub_rows import parts_of
    from tuneport.core.errors import UsageError
    from tuneport.core.spec import JobSpec

    spec = load_spec(source) if isinstance(source, (str, PathLike)) and str(source).endswith((".yaml", ".yml")) else source
    if isinstance(spec, (JobSpec, Mappings)) and not (validation is None and test is None):
        raise UsageError("validation and test are given beside a source that names its own parts", fix="give one or the other")
    if isinstance(spec, JobSpec):
        return check_spec(spec, system_prompt=system_prompt, json_schema=json_schema, options=options)
    parts = parts_of(spec) if isinstance(spec, Mappings) else {"train": spec, "validation": validation, "test": test}
    sources = {part: _path_as_text(rows) for part, rows in parts.items()}
    return check_files(
        **sources, format=format, method=method, system_prompt=system_prompt, json_schema=json_schema, options=options
    )


def prepare(source: Rows, out: str | Path, options: PrepareOptions | Mapping[str, Any] | None = None) -> DataCard:
    """Mend, clean, split and convert rows into the folder ``out``; what was done is returned, and written there as a data card.

    ``options`` are the fields of ``PrepareOptions``. Raises UsageError for options that do not fit or a folder that holds other
    files, DataError when the rows cannot be read or none can be written as asked, MissingExtraError when a step needs an extra,
    TuneportError when the folder cannot be written.
    """
    from tuneport.core.data.prepare import PrepareOptions, options_of
    from tuneport.core.data.prepare import prepare as prepare_data
    from tuneport.providers.shapes import record_shapes

    chosen = options if isinstance(options, PrepareOptions) else options_of(options or {})
    return prepare_data(_path_as_text(source), out, chosen, converters=record_shapes())


def _path_as_text(rows: Any) -> Any:
    from os import PathLike

    return str(rows) if isinstance(rows, PathLike) else rows


def plan(
    spec: JobSpec | str | Path, provider: str, *, data: JobData | None = None, today: date | None = None, online: bool = False
) -> Plan:
    """What ``provider`` would do with the job: exact payload, outcome of every field, cost (USD) and time (seconds).

    Needs no key, no vendor SDK and no network. With ``online`` the vendor is asked for its own limits and price too: reads that
    need a key; what cannot be asked becomes a warning. ``data`` saves reading the rows again when several
    plans are made (``tuneport.core.data.load.load_job_data``). A plan with ``refusals`` cannot be submitted.
    Raises DataError on bad rows, CatalogueError on an unknown model, UsageError on an unknown provider.
    """
    from tuneport.core.data.load import job_data_for
    from tuneport.core.plan import compile_for
    from tuneport.providers import registry

    spec = _loaded(spec)
    place = registry.get(provider, spec.options.for_provider(provider))
    compiled = compile_for(place, spec, data or job_data_for(spec)(provider), today)
    if not online:
        return compiled
    from tuneport.providers.online import asked

    return asked(place, spec, compiled)


def engine(*, create: bool = True) -> Engine:
    """The job engine over the ledger (TUNEPORT_LEDGER, else ``.tuneport/ledger.db``).

    ``create=False`` raises LedgerError when there is no ledger yet, instead of making one.
    """
    from tuneport.core.engine import Engine
    from tuneport.core.ledger import Ledger
    from tuneport.providers import registry

    def rows_of(spec: JobSpec) -> OpenRows:
        from functools import partial

        from tuneport.core.data.load import open_rows  # only what submits needs the data's readers

        return partial(open_rows, spec)

    return Engine(Ledger.open(create=create), registry.get, rows_of)


def submit(spec: JobSpec | str | Path, provider: str, *, planned: Plan | None = None) -> Job:
    """Make the job at ``provider``: written to the ledger first, then made exactly once. This spends.

    Give the plan you have looked at as ``planned``, or one is made. Raises RefusedError, BudgetError or SpecError before anything
    is sent, then CredentialsError or ProviderError; the job then stands in the ledger with what happened.
    """
    spec = _loaded(spec)
    return engine().submit(spec, planned or plan(spec, provider))


def jobs(limit: int | None = 50) -> list[Job]:
    """The jobs in the ledger, newest first; asks no vendor. None where no ledger is yet. Raises LedgerError when it cannot be read."""
    from tuneport.core.errors import NoLedgerError

    try:
        return engine(create=False).jobs(limit=limit)
    except NoLedgerError:
        return []


def advise(
    decision: str | Path | Intake,
    *,
    spec: JobSpec | str | Path | None = None,
    measurement: Measurement | None = None,
    today: date | None = None,
    seed: int = 0,
) -> Report:
    """Whether and where to fine-tune: the decision with its trace, economics (USD) and evidence.

    ``spec`` gives the offers (one plan for each provider that has the model); without it none is costed. Without
    ``measurement`` the advice can only be what to measure first. ``seed`` fixes the Monte-Carlo draws. Runs on parts of the data that the
    ledger holds (TUNEPORT_LEDGER) give the learning curve; no vendor is asked.
    """
    from datetime import date as dates

    from tuneport.advisor.advise import advise as decide
    from tuneport.advisor.intake import Intake, load_intake
    from tuneport.core.errors import CatalogueError
    from tuneport.providers import registry

    intake = decision if isinstance(decision, Intake) else load_intake(decision)
    plans, unavailable = [], {}
    loaded = _loaded(spec) if spec is not None else None
    if loaded is not None:
        from tuneport.core.data.load import job_data_for

        data = job_data_for(loaded)
        for name in registry.names():
            try:
                plans.append(plan(loaded, name, data=data(name), today=today))
            except CatalogueError as error:  # the model is not to be had there: no offer
                unavailable[name] = error.what
    named = {arm.job for arm in measurement.arms if arm.job} if measurement else set()
    families, notes = _families(loaded, named)
    return decide(
        intake, measurement, plans, today=today or dates.today(), seed=seed, unavailable=unavailable, families=families, notes=notes,
        spec_file="" if spec is None or spec is loaded else str(spec),
    )  # fmt: skip


def _families(spec: JobSpec | None, jobs: set[str]) -> tuple[Sequence[RunFamily], Sequence[str]]:
    """Runs of the spec, or of these jobs, on parts of the data; none where no ledger is yet. And why it could not be read."""
    from tuneport.advisor.runs import find_runs
    from tuneport.core.errors import LedgerError, NoLedgerError
    from tuneport.core.ledger import Ledger

    if spec is None and not jobs:
        return (), ()
    try:
        ledger = Ledger.open(create=False)
        try:
            return find_runs(ledger, spec, jobs), ()
        finally:
            ledger.close()
    except NoLedgerError:
        return (), ()
    except LedgerError as error:
        return (), (f"No learning curve was looked for, since the ledger cannot be read: {error.what}",)
