"""Commands that measure: baseline and evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tuneport.advisor.measure_options import (
    BaseUrlOption,
    ClusterOption,
    ConcurrencyOption,
    ContextOption,
    DeclineOption,
    DryOption,
    InstructionOption,
    JudgeOption,
    JudgePriceOption,
    KeyOption,
    LabelOption,
    LabelsOption,
    MarginOption,
    MaxUsdOption,
    MetricOption,
    ModelOption,
    NameOption,
    OutOption,
    PartOption,
    PriceOption,
    PrimaryOption,
    ReferenceOption,
    RepeatsOption,
    RubricOption,
    SchemaOption,
    ShotsOption,
    StreamOption,
    TaskOption,
    TemplateOption,
    TokensOption,
    ToleranceOption,
)
from tuneport.core import terminal
from tuneport.core.data.atomic import OWNER
from tuneport.core.errors import CatalogueError, TuneportError, UsageError
from tuneport.core.provider import HoldsWeights
from tuneport.core.terminal import SpecArgument, escape
from tuneport.providers.job_commands import find_job

if TYPE_CHECKING:
    from rich.console import Console

    from tuneport.advisor.judge import JudgeModel
    from tuneport.advisor.measurement import Arm, Duel, Judge, Look, Measurement
    from tuneport.advisor.spending import Purse, Rates
    from tuneport.advisor.suite import EvalSuite
    from tuneport.core.provider import Provider
    from tuneport.core.spec import JobSpec


@dataclass(frozen=True)
class Settings:
    """What both commands take: rows and metrics, how to run, who judges."""

    out: Path
    part: str
    columns: dict[str, str | None]
    scoring: dict[str, Any]
    repeats: int
    concurrency: int | None
    stream: bool
    max_usd: float | None
    price: str | None
    judge: str | None
    rubrics: tuple[str, ...]
    judge_price: str | None
    labels: Path | None
    margin: float | None = None


@dataclass(frozen=True)
class Asking:
    """One arm to run: whom to ask, and how."""

    name: str
    provider: Provider
    model: str
    rates: Rates | None
    scope: str
    kind: Literal["prompted", "tuned"] = "prompted"
    job: str | None = None
    prompt: dict[str, Any] = field(default_factory=dict)  # shots, instruction, template, context
    base: str | None = None  # what the provider calls the base of a tuned model, where it is known


def baseline(
    spec: SpecArgument,
    provider: Annotated[str, typer.Option("--provider", "-p", help="Where the model runs.")],
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    key_variable: KeyOption = None,
    name: NameOption = None,
    out: OutOption = Path("measurement.json"),
    shots: ShotsOption = None,
    instruction: InstructionOption = None,
    template: TemplateOption = None,
    context_column: ContextOption = None,
    json_schema: SchemaOption = None,
    metric: MetricOption = None,
    primary: PrimaryOption = None,
    tolerance: ToleranceOption = 0.0,
    task: TaskOption = None,
    label_field: LabelOption = None,
    reference_column: ReferenceOption = None,
    cluster_column: ClusterOption = None,
    decline_column: DeclineOption = None,
    part: PartOption = "test",
    repeats: RepeatsOption = 1,
    max_tokens: TokensOption = None,
    max_usd: MaxUsdOption = None,
    price: PriceOption = None,
    concurrency: ConcurrencyOption = None,
    stream: StreamOption = False,
    dry_run: DryOption = False,
    judge: JudgeOption = None,
    rubric: RubricOption = None,
    judge_price: JudgePriceOption = None,
    judge_labels: LabelsOption = None,
) -> None:
    """Measure how far prompting gets a model.

    On the held-out rows: the bar that tuning must beat. Zero-shot and 6 examples, unless --shots says otherwise. Answers are kept
    beside the measurement: a run that was killed or capped goes on where it stopped, and pays for no answer twice.
    """
    from tuneport.core.spec_file import load_spec

    loaded = load_spec(spec)
    settings = Settings(
        out, part, _columns(reference_column, context_column, cluster_column, decline_column),
        _scoring(json_schema, metric, primary, tolerance, task, label_field, max_tokens),
        repeats, concurrency, stream, max_usd, price, judge, tuple(rubric or ()), judge_price, judge_labels,
    )  # fmt: skip
    prompt = _prompt(instruction, template, context_column)
    counts = shots or ((0,) if template else (0, 6))
    if name is not None and len(counts) > 1:
        raise UsageError("--name can name one arm only", fix="give --shots once as well")
    place, asked, scope = _place(loaded, provider, model, base_url, key_variable)
    rates = _rates(provider, asked, price)
    words = _prompt_words(template, context_column, model)
    arms = [
        Asking(name or (f"few-shot ({k})" if k else "zero-shot") + words, place, asked, rates, scope, prompt={**prompt, "shots": k})
        for k in counts
    ]
    _run(loaded, arms, settings, dry=dry_run)


def evaluate(
    spec: SpecArgument,
    job: Annotated[str | None, typer.Option("--job", help="Job that made the tuned model, or last.")] = None,
    provider: Annotated[str | None, typer.Option("--provider", "-p", help="Where --model runs, in place of --job.")] = None,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    key_variable: KeyOption = None,
    name: NameOption = None,
    out: OutOption = Path("measurement.json"),
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 13 unless the model is shown to be no worse than its rival.")] = False,
    against: Annotated[str | None, typer.Option("--against", help="The rival: an arm measured before; the best prompted one else.")] = None,
    margin: MarginOption = 0.02,
    html: Annotated[Path | None, typer.Option("--html", help="Page with both models' answers side by side.")] = None,
    general: Annotated[bool, typer.Option("--general", help="Also measure base and tuned model on a small general suite.")] = False,
    general_rows: Annotated[Path | None, typer.Option("--general-rows", help="Your own general suite instead.")] = None,
    shots: ShotsOption = None,
    instruction: InstructionOption = None,
    template: TemplateOption = None,
    context_column: ContextOption = None,
    json_schema: SchemaOption = None,
    metric: MetricOption = None,
    primary: PrimaryOption = None,
    tolerance: ToleranceOption = 0.0,
    task: TaskOption = None,
    label_field: LabelOption = None,
    reference_column: ReferenceOption = None,
    cluster_column: ClusterOption = None,
    decline_column: DeclineOption = None,
    part: PartOption = "test",
    repeats: RepeatsOption = 1,
    max_tokens: TokensOption = None,
    max_usd: MaxUsdOption = None,
    price: PriceOption = None,
    concurrency: ConcurrencyOption = None,
    stream: StreamOption = False,
    dry_run: DryOption = False,
    judge: JudgeOption = None,
    rubric: RubricOption = None,
    judge_price: JudgePriceOption = None,
    judge_labels: LabelsOption = None,
) -> None:
    """Measure a tuned model, paired with the baselines.

    The model is that of --job, or any --model at --provider. With --gate a regression ends in exit code 13.
    """
    from tuneport.core.spec_file import load_spec

    loaded = load_spec(spec)
    settings = Settings(
        out, part, _columns(reference_column, context_column, cluster_column, decline_column),
        _scoring(json_schema, metric, primary, tolerance, task, label_field, max_tokens),
        repeats, concurrency, stream, max_usd, price, judge, tuple(rubric or ()), judge_price, judge_labels, margin,
    )  # fmt: skip
    if shots and len(shots) > 1:
        raise UsageError("evaluate measures one arm", fix="give --shots once")
    prompt = {**_prompt(instruction, template, context_column), "shots": shots[0] if shots else 0}
    if job is not None and (provider or model):
        raise UsageError("which model to measure is not clear", fix="give --job alone, or --provider with --model")
    if job is not None:
        handle = find_job(job)
        tuned, at, made = handle.model.call_as, handle.provider, handle.id
        place, asked, scope = _place(handle.spec, at, tuned, base_url, key_variable)
        rates, base = _rates(at, handle.record.model, price, tuned=True), _base(handle.spec, at, asked)
    elif provider is not None and model is not None:
        place, asked, scope = _place(loaded, provider, model, base_url, key_variable)
        at, made, rates, base = provider, None, _rates(provider, model, price, tuned=True), _base(loaded, provider, asked)
    else:
        raise UsageError("there is no tuned model to measure", fix="name its job (--job last), or --provider and --model")
    arm = Asking(name or "tuned", place, asked, rates, scope, "tuned", made, prompt, base)
    suite_of_more = (general_rows, general or general_rows is not None)
    result, suite = _run(loaded, [arm], settings, dry=dry_run, general=suite_of_more)
    if result is None or suite is None:
        return
    if html is not None:
        from tuneport.advisor.gate import rival
        from tuneport.advisor.side_by_side import side_by_side

        terminal.write(html, side_by_side(suite, rival(result, against), result.arm(arm.name)), OWNER)
        terminal.console().print(f"wrote [bold]{escape(str(html))}[/]", highlight=False)
    if gate:
        from tuneport.advisor.gate import hold

        held = hold(result, arm.name, against)
        said = f"gate open: {arm.name} is no more than {margin * 100:g} points below {held.baseline}"
        terminal.console().print(escape(said), highlight=False)


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _columns(reference: str | None, context: str | None, cluster: str | None, decline: str | None) -> dict[str, str | None]:
    return {"reference": reference, "context": context, "cluster": cluster, "decline": decline}


def _scoring(
    schema: Path | None,
    metrics: list[str] | None,
    primary: str | None,
    tolerance: float,
    task: str | None,
    label: str | None,
    max_tokens: int | None,
) -> dict[str, Any]:
    from tuneport.advisor.metrics import Task

    return {
        "schema": schema,
        "extras": tuple(dict.fromkeys(metrics or ())),
        "primary": primary,
        "tolerance": tolerance,
        "task": terminal.one_of("--task", task, Task) if task else None,
        "label_field": label,
        "max_tokens": max_tokens,
    }


def _prompt(instruction: Path | None, template: Path | None, context: str | None) -> dict[str, Any]:
    return {
        "instruction": terminal.read(instruction).strip() if instruction else None,
        "template": terminal.read(template) if template else None,
        "context": context is not None,
    }


def _prompt_words(template: Path | None, context: str | None, model: str | None) -> str:
    return (f" {template.stem}" if template else "") + (" with context" if context else "") + (f", {model}" if model else "")


def _place(spec: JobSpec, provider: str, model: str | None, base_url: str | None, key_variable: str | None) -> tuple[Provider, str, str]:
    """(provider reached by the spec's options and these, what it calls the model, all else that decides an answer)."""
    from pydantic import ValidationError

    from tuneport.core.catalogue import load_catalogue
    from tuneport.providers import registry

    name = model or load_catalogue().offering(spec, provider).vendor_id
    options = spec.options.for_provider(provider)
    changed = {k: v for k, v in (("base_url", base_url), ("key_variable", key_variable)) if v is not None}
    if changed:
        known = getattr(type(options), "model_fields", {})
        if missing := sorted(changed.keys() - known.keys()):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise UsageError(f"{provider} has no {flags}", fix="use --provider openai for services that speak OpenAI's protocol")
        try:
            options = type(options).model_validate({**options.model_dump(), **changed})  # type: ignore[union-attr]
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise UsageError(f"{provider} cannot be reached so ({wrong})", fix="correct --base-url or --key-variable") from None
    told = {} if options is None or isinstance(options, Mapping) else options.model_dump(exclude_none=True)
    where = [told.get("base_url") or os.environ.get(f"{provider.upper()}_BASE_URL", ""), told.get("region", "")]
    place = registry.get(provider, options)
    if isinstance(place, HoldsWeights):
        where.append(place.fingerprint(name))
    return place, name, " ".join(filter(None, where))


def _base(spec: JobSpec, provider: str, tuned: str) -> str | None:
    """The base of a tuned model: the one inside its id, else the spec's."""
    from tuneport.core.catalogue import base_of, load_catalogue

    if (inside := base_of(tuned)) != tuned:
        return inside
    try:
        return load_catalogue().offering(spec, provider).vendor_id
    except CatalogueError:  # the spec names no model there
        return None


def _rates(provider: str, model: str, stated: str | None, *, tuned: bool = False) -> Rates | None:
    from tuneport.advisor.spending import rates_of, stated_rates

    return stated_rates(stated) if stated is not None else rates_of(provider, model, tuned=tuned)


def _run(
    spec: JobSpec, arms: list[Asking], settings: Settings, *, dry: bool, general: tuple[Path | None, bool] = (None, False)
) -> tuple[Measurement | None, EvalSuite | None]:
    """Run the arms, compare them with those of the measurement file, write it and show it. Errors of arms come at the end."""
    from tuneport.advisor.arm import rescored, saw_other_columns
    from tuneport.advisor.measure import MARGIN, measure
    from tuneport.advisor.measurement import load_measurement
    from tuneport.advisor.measurement_view import show_measurement
    from tuneport.advisor.spending import Purse
    from tuneport.advisor.suite import Columns, load_suite

    part: Any = terminal.one_of("--part", settings.part, Literal["test", "validation"])
    suite = load_suite(spec, part=part, columns=Columns(**settings.columns), **settings.scoring)
    console = terminal.console()
    purse = Purse(settings.max_usd)
    known = load_measurement(settings.out) if settings.out.exists() else None
    more_asked = [*(["the judge"] if settings.judge else []), *(["the general suite"] if general[1] else [])]
    _announce(console, suite, arms, settings, more_asked)
    if dry:
        return None, None
    same = known if known is not None and (known.suite_sha256, known.part) == (suite.sha256, suite.part) else None
    if known is not None and same is None:
        console.print(f"[yellow]![/] {escape(str(settings.out))} holds other rows; its arms are not kept", highlight=False)
    faults: list[tuple[str, TuneportError]] = []
    new: list[Arm] = []
    for arm in arms:
        try:
            new.append(_run_arm(console, suite, arm, settings, purse))
        except TuneportError as error:
            faults.append((f"arm {arm.name}", error))
    if not new:
        raise faults[0][1]
    done = {arm.name for arm in new}  # an arm that failed now keeps the answers of before
    kept = [one for one in same.arms if one.name not in done] if same else []
    for other in (one for one in kept if saw_other_columns(suite, one)):
        told = f"arm {other.name} was asked with other passages or columns than its rows have now: it is not kept; measure it again"
        console.print(f"[yellow]![/] {escape(told)}", highlight=False)
    kept = [rescored(suite, one) for one in kept if not saw_other_columns(suite, one)]
    judges, duels = (same.judges, same.duels) if same else ((), ())
    if settings.judge is not None:
        try:
            kept, new, judges, duels = _judge(console, spec, suite, kept, new, settings, purse, judges, duels)
        except TuneportError as error:
            faults.append((f"judge {settings.judge}", error))
    more = same.general if same else None
    if general[1]:
        try:
            more = _general(console, spec, general[0], [*kept, *new], arms[0], settings, purse)
        except TuneportError as error:
            faults.append(("the general suite", error))
    result = measure(
        suite,
        [*kept, *new],
        margin=MARGIN if settings.margin is None else settings.margin,
        looks=_looked(suite, new),
        judges=judges,
        duels=duels,
        general=more,
        notes=[f"{who} stopped: {error}" for who, error in faults],
    )
    terminal.write(settings.out, result.model_dump_json(indent=1), OWNER)  # answers may repeat private data
    show_measurement(result)
    console.print(f"wrote [bold]{escape(str(settings.out))}[/]", highlight=False)
    if faults:
        raise faults[0][1]
    return result, suite


def _looked(suite: EvalSuite, arms: list[Arm]) -> list[Look]:
    """Write this look at the test rows into the ledger, before anybody sees a score; every look at them so far."""
    if suite.part != "test":
        return []
    from tuneport.advisor.measurement import Look
    from tuneport.core.ledger import Ledger

    ledger = Ledger.open()
    ledger.looks.add(suite.sha256, suite.source, [(arm.name, arm.provider, arm.model) for arm in arms], len(suite))
    found = ledger.looks.of(suite.sha256)
    ledger.close()
    return [Look(at=k.at, arm=k.arm, provider=k.provider, model=k.model, rows=k.rows) for k in found]


def _announce(console: Console, suite: EvalSuite, arms: list[Asking], settings: Settings, more: list[str]) -> None:
    """What the rows can show, before anything is asked, and the most that asking can cost. ``more``: what else will be asked."""
    from tuneport.advisor.cautions import WORTHWHILE
    from tuneport.advisor.measure import power_of
    from tuneport.advisor.spending import most
    from tuneport.advisor.statistics import sample_size
    from tuneport.core.provider import ChatRequest

    rows = len(set(suite.clusters)) or len(suite)
    power = power_of(rows, grouped=bool(suite.clusters))
    needed = f"you need {sample_size(WORTHWHILE, power.discordant):,} rows to see {WORTHWHILE * 100:.0f} points"
    console.print(f"{power.statement} (if two arms disagree on {power.discordant:.0%} of them); {needed}", highlight=False)
    for arm in arms:
        if arm.rates is None:
            said = "price unknown (name it with --price IN/OUT)" if arm.provider.name != "local" else "nothing leaves this machine"
        else:
            asked = [ChatRequest("", prompt, suite.max_tokens) for prompt in suite.prompts(**arm.prompt)]
            bound = sum(most(request, arm.rates) for request in asked) * settings.repeats
            most_usd = terminal.usd(bound) if isfinite(bound) else "an unknown sum, as rows hold more than text"
            said = f"at most {most_usd} ({len(asked) * settings.repeats:,} questions; kept answers cost nothing)"
        console.print(f"{escape(arm.name)}: {escape(arm.model)} at {escape(arm.provider.name)}, {said}", highlight=False)
    if more:
        console.print(f"not in these sums, but under --max-usd: what {' and '.join(more)} will ask", highlight=False)


def _run_arm(console: Console, suite: EvalSuite, arm: Asking, settings: Settings, purse: Purse) -> Arm:
    from tuneport.advisor.arm import run_arm

    with _progress(console, arm.name, len(suite) * settings.repeats) as show:
        return run_arm(
            arm.provider,
            arm.model,
            suite,
            name=arm.name,
            kind=arm.kind,
            job=arm.job,
            cache=_cache(settings),
            scope=arm.scope,
            repeats=settings.repeats,
            concurrency=settings.concurrency,
            stream=settings.stream,
            rates=arm.rates,
            purse=purse,
            on_progress=show,
            **arm.prompt,
        )


def _judge(
    console: Console,
    spec: JobSpec,
    suite: EvalSuite,
    kept: list[Arm],
    new: list[Arm],
    settings: Settings,
    purse: Purse,
    judges: tuple[Judge, ...],
    duels: tuple[Duel, ...],
) -> tuple[list[Arm], list[Arm], tuple[Judge, ...], tuple[Duel, ...]]:
    """All arms judged under every rubric, with the judges' accounts and duels of now. Verdicts are kept: old ones cost nothing."""
    from tuneport.advisor.judge import JudgeModel, judge_arm, judge_pairs, load_rubric

    provider, _, model = (settings.judge or "").partition(":")
    if not model:
        raise UsageError(f"--judge {settings.judge!r} names no model", fix="write PROVIDER:MODEL, e.g. openai:gpt-4.1")
    place, asked, scope = _place(spec, provider, model, None, None)
    rates = _rates(provider, asked, settings.judge_price)
    judge: JudgeModel = JudgeModel(place, asked, _cache(settings), scope, rates, purse, settings.concurrency)
    arms = [*kept, *new]
    for rubric in map(load_rubric, settings.rubrics or ("correctness",)):
        duels = tuple(d for d in duels if d.rubric != rubric.name)
        judges = tuple(j for j in judges if j.rubric != rubric.name)
        with _progress(console, f"judge, {rubric.name}", None) as show:
            judge.on_verdict = lambda done, total, show=show: show(_Verdicts(done, total, purse))
            if rubric.pair:
                prompted, tuned = ([a for a in arms if a.kind == kind] for kind in ("prompted", "tuned"))
                pairs = [(one, other) for one in prompted for other in tuned] or list(pairwise(arms))
                duels += tuple(judge_pairs(judge, rubric, suite, one, other) for one, other in pairs)
                continue
            told: list[Judge] = []
            for index, arm in enumerate(arms):
                arms[index], found = judge_arm(judge, rubric, suite, arm, settings.labels)
                told.append(found)
            judges += (_summed(told),)
    return arms[: len(kept)], arms[len(kept) :], judges, duels


def _summed(told: list[Judge]) -> Judge:
    """One account of a judge's work on all arms under one rubric."""
    notes = list(dict.fromkeys(judge.note for judge in told if judge.note))
    counts = {name: sum(getattr(judge, name) for judge in told) for name in ("asked", "unreadable")}
    return told[-1].model_copy(update={**counts, "note": "; ".join(notes)})


def _general(
    console: Console, spec: JobSpec, rows: Path | None, arms: list[Arm], tuned: Asking, settings: Settings, purse: Purse
) -> Measurement:
    """The tuned model and its base, both zero-shot, on the general suite.

    Where no prompted arm is of its base, the best one at the same provider stands for it, or else the best one.
    """
    from tuneport.advisor.general import general_suite
    from tuneport.advisor.measure import measure

    prompted = [arm for arm in arms if arm.kind == "prompted"]
    if not prompted:
        raise UsageError("a loss in general ability shows only against the base model", fix="measure it first: tuneport baseline")
    suite = general_suite(rows)
    here = [arm for arm in prompted if arm.provider == tuned.provider.name]
    bases = [arm for arm in here if arm.model == tuned.base]
    base = max(bases or here or prompted, key=lambda arm: next(iter(arm.metrics.values())).value)
    if base.provider == tuned.provider.name:  # also the same address
        place, model, scope = tuned.provider, base.model, tuned.scope
    else:
        place, model, scope = _place(spec, base.provider, base.model, None, None)
    found = [
        _run_arm(console, suite, asking, settings, purse)
        for asking in (
            # A stated price is the tuned model's; it stands for a base that no book knows, such as one on a server of one's own.
            Asking("base, general", place, model, _rates(base.provider, model, None) or tuned.rates, scope),
            Asking("tuned, general", tuned.provider, tuned.model, tuned.rates, tuned.scope, "tuned", tuned.job),
        )
    ]
    return measure(suite, found)


def _cache(settings: Settings) -> Path:
    return settings.out.parent / "answers"


_QUIET_S = 20.0
"""Seconds between two lines on how far an arm is, where there is no terminal for a bar."""


@dataclass(frozen=True)
class _Verdicts:
    """Progress of a judge in the shape of an arm's."""

    done: int
    total: int
    purse: Purse
    cached: int = 0
    errors: int = 0
    seconds_left: float | None = None

    @property
    def usd(self) -> Any:
        return None if self.purse.unpriced else self.purse.spent


@contextmanager
def _progress(console: Console, name: str, total: int | None) -> Iterator[Callable[[Any], None]]:
    """A bar with rows, money and time left on a terminal; elsewhere a line now and then, and one at the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    last: list[Any] = []
    told = monotonic()
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(name), total=total, told="")

        def show(progress: Any) -> None:
            nonlocal told
            last[:] = [progress]
            if not console.is_terminal and monotonic() - told >= _QUIET_S:
                told = monotonic()
                of = f" of {progress.total:,}" if progress.total else ""
                console.print(escape(f"{name}: {progress.done:,}{of} so far, {_spent(progress)}"), highlight=False)
            left = "" if progress.seconds_left is None else f", {terminal.span(progress.seconds_left)} left"
            bar.update(task, completed=progress.done, total=progress.total, told=f"{_spent(progress)}{left}")

        try:
            yield show
        finally:
            if last and not console.is_terminal:
                p = last[0]
                failed = f", {p.errors:,} without an answer" if p.errors else ""
                said = f"{name}: {p.done:,} of {p.total:,} answers ({p.cached:,} kept before{failed}), {_spent(p)}"
                console.print(escape(said), highlight=False)


def _spent(progress: Any) -> str:
    return "price unknown" if progress.usd is None else f"spent {terminal.usd_range(progress.usd.low, progress.usd.high)}"
