"""The command line: parses, calls, prints. The only module that prints, and the only one that knows about terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

try:
    import typer
except KeyboardInterrupt:  # Ctrl-C while Python still starts
    sys.exit(130)

from tuneport.core.errors import DataError, RefusedError, SpecError, TuneportError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tuneport.advisor.measurement import Measurement
    from tuneport.core.data.check import CheckReport
    from tuneport.core.engine import Engine, Job
    from tuneport.core.money import Cost, Duration
    from tuneport.core.plan import FieldOutcome, Plan
    from tuneport.core.spec import JobSpec

app = typer.Typer(
    name="tuneport",
    help="One portable fine-tuning job for OpenAI, Bedrock, Together, Fireworks and your own GPU, and an advisor that says "
    "whether and where to fine-tune.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help costs 0.1 s at every start
)

SpecArgument = Annotated[Path, typer.Argument(help="Job spec, YAML or JSON.", metavar="SPEC")]
JobArgument = Annotated[str, typer.Argument(help="Job id, as `tuneport jobs` shows it, or `last`.", metavar="JOB")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_WATCHED = ("loss", "eval_loss", "tokens_per_second")  # metrics beside the progress bar

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending.")]


_INTERRUPTED = 130  # as a shell reports SIGINT


def main() -> None:
    """Run the command line and exit with the code that ``tuneport.core.errors`` documents."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        try:
            app(args=arguments)
        finally:
            sys.stdout.flush()  # a full disk behind stdout is found here, not at exit
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != _INTERRUPTED:
            raise
        _fail("interrupted; nothing is lost: jobs already begun stand in `tuneport jobs`", _INTERRUPTED, debug)
    except SpecError as error:
        faults = "".join(f"\n  - {fault}" for fault in error.faults)
        _fail(f"{error.source} has {len(error.faults)} fault(s); correct and run again:{faults}", error.exit_code, debug)
    except TuneportError as error:
        _fail(str(error), error.exit_code, debug)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        _drop_output()
        sys.exit(0)
    except OSError as error:
        _drop_output()
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; free space or choose a writable place, then run again", 1, debug)
    except RecursionError:
        _fail("the input is nested too deep; flatten it and run again", DataError.exit_code, debug)
    except Exception as error:  # noqa: BLE001 (the last resort: a fault of ours, said in one sentence)
        _fail(f"unforeseen fault: {type(error).__name__}: {error}; run again with --debug and report what it prints", 1, debug)


def _drop_output() -> None:
    """What stdout still holds cannot be written; Python would try again at exit and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, debug: bool) -> None:
    from tuneport.core.secrets import redact

    if debug:
        import traceback

        sys.stderr.write(redact(traceback.format_exc()))
    sys.stderr.write(f"tuneport: {redact(message)}\n")
    sys.exit(code)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # read in main()
) -> None:
    pass


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def check(
    paths: Annotated[
        list[Path], typer.Argument(help="A spec, or data files (.jsonl .json .csv .parquet, also .gz and .zst).", metavar="SPEC|DATA...")
    ],
    data_format: Annotated[str, typer.Option("--format", help="Row format; auto detects it.")] = "auto",
    method: Annotated[str, typer.Option(help="Method the rows are for.")] = "sft",
    system_prompt: Annotated[
        str | None, typer.Option("--system-prompt", help="Production system prompt that every row should have.")
    ] = None,
    schema: Annotated[Path | None, typer.Option("--schema", help="JSON Schema that every answer must satisfy.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="The only right answers, separated by commas.")] = None,
    near: Annotated[float, typer.Option("--near", help="Jaccard similarity from which rows are near duplicates.")] = 0.8,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", help="duplicates, near-duplicates, personal-data or tokens (repeatable).")
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="Look for names and places too (extra pii; slow).")] = False,
    count_tokens: Annotated[
        bool, typer.Option("--count-tokens", help="Count with o200k_base instead of estimating (extra tokens).")
    ] = False,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Set rows against this model's limits (repeatable).")] = None,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", "-p", help="Set rows against this provider's limits (repeatable).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; by default one for each core when a file is large.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write the result as an HTML page too.")] = None,
    fail_on: Annotated[str, typer.Option("--fail-on", help="Severity that fails the command: error, warning or never.")] = "error",
    as_json: JsonOption = False,
) -> None:
    """Find every fault in training data before anyone pays. Exit code 4 when a finding is an error (see --fail-on).

    Two or three data files are taken as train, test or train, validation, test, and compared with each other.
    """
    from tuneport.core.data.check import CheckOptions, check_files
    from tuneport.core.data.check_page import verdict, write_page
    from tuneport.core.spec import DataFormat, Method

    if fail_on not in ("error", "warning", "never"):
        raise UsageError(f"--fail-on {fail_on!r} is not known", fix="choose one of error, warning, never")
    left_out: Any = skip or ()  # CheckOptions says which names there are
    options = CheckOptions(
        skip=frozenset(left_out),
        near=near,
        names=names,
        count_tokens=count_tokens,
        labels=tuple(label.strip() for label in labels.split(",")) if labels else None,
        models=tuple(model or ()),
        providers=tuple(provider or ()),
        workers=workers,
    )
    shape, how = _one_of("--format", data_format, DataFormat), _one_of("--method", method, Method)
    json_schema = _read_schema(schema)
    reports: list[CheckReport] = []
    with _progress_bar() as on_progress:
        if len(paths) == 1 and paths[0].suffix in (".yaml", ".yml"):
            from dataclasses import replace

            from tuneport.core.spec_file import load_spec

            spec = load_spec(paths[0])
            d = spec.data
            options = replace(options, max_tokens=spec.training.max_seq_length)
            found = check_files(
                d.train, d.validation, d.test, format=d.format, method=spec.method, system_prompt=system_prompt or d.system_prompt,
                json_schema=json_schema, options=options, on_progress=on_progress,
            )
        else:
            if len(paths) > 3:
                raise UsageError(f"{len(paths)} files are too many", fix="give train, test or train, validation, test; check others apart")
            train, *others = map(str, paths)
            validation, test = (None, *others) if len(others) == 1 else (*others, None, None)[:2]
            found = check_files(
                train, validation, test, format=shape, method=how, system_prompt=system_prompt, json_schema=json_schema, options=options,
                on_progress=on_progress,
            )
        reports += found.values()
    if page:
        write_page(page, reports)
    if as_json:
        _print_json([r.model_dump(mode="json") for r in reports])
    else:
        for report in reports:
            _show_check(report)
        _console().print(f"[bold]{_escape(verdict(reports))}[/]", highlight=False)
    failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[fail_on]
    faulty = [r.file for r in reports if r.worst in failing]
    if faulty:
        raise DataError(f"faults in {', '.join(faulty)}", fix="mend the rows listed above (tuneport prepare) and check again")


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Data file.", metavar="DATA")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the parts, the rejected rows and the data card.")],
    method: Annotated[str, typer.Option(help="Method the rows are for.")] = "sft",
    data_format: Annotated[str, typer.Option("--format", help="Row format of the input; auto detects it.")] = "auto",
    to: Annotated[str | None, typer.Option("--to", help="Row format to write.")] = None,
    file_type: Annotated[str, typer.Option("--file-type", help="jsonl, json, csv (each also .gz, .zst) or parquet.")] = "jsonl",
    shapes: Annotated[
        list[str] | None, typer.Option("--for", help="Provider's record shape to write too, e.g. openai-chat (repeatable).")
    ] = None,
    no_mend: Annotated[bool, typer.Option("--no-mend", help="Change nothing inside rows; reject what is faulty.")] = False,
    system_prompt: Annotated[str | None, typer.Option("--system-prompt", help="Put this before rows that have none.")] = None,
    replace_prompt: Annotated[bool, typer.Option("--replace-system-prompt", help="Put it in the place of other prompts too.")] = False,
    dedupe: Annotated[str, typer.Option("--dedupe", help="none, exact or near.")] = "none",
    near: Annotated[float, typer.Option("--near", help="Jaccard similarity of near duplicates.")] = 0.8,
    exclude: Annotated[
        list[Path] | None, typer.Option("--exclude", help="Leave out rows of this file, e.g. a benchmark (repeatable).")
    ] = None,
    redact: Annotated[
        list[str] | None, typer.Option("--redact", help="all, or kinds: email, phone, card, iban, ssn, ip, secret, names (repeatable).")
    ] = None,
    redaction_map: Annotated[Path | None, typer.Option("--redaction-map", help="Write the map that undoes it here, outside --out.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Shares of train, validation, test in percent, e.g. 80/10/10.")] = None,
    by: Annotated[str, typer.Option("--by", help="random, label, group, time or hard (a harder test set).")] = "random",
    column: Annotated[str | None, typer.Option("--column", help="Column to split by.")] = None,
    class_column: Annotated[str | None, typer.Option("--class-column", help="Column that holds the class.")] = None,
    cap: Annotated[int | None, typer.Option("--cap", min=1, help="Most rows of one class.")] = None,
    balance: Annotated[
        str, typer.Option("--balance", help="none, down (cut to the smallest class) or up (repeat training rows).")
    ] = "none",
    mix: Annotated[Path | None, typer.Option("--mix", help="File of general rows to mix into training.")] = None,
    mix_share: Annotated[float, typer.Option("--mix-share", help="Their share afterwards.")] = 0.25,
    review: Annotated[int, typer.Option("--review", min=0, help="Rows to draw for human review, evenly over the classes.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Mend, clean, split and convert data, and write down what was done (card.json, card.md)."""
    from pydantic import ValidationError

    from tuneport.core.data.prepare import PrepareOptions
    from tuneport.core.data.prepare import prepare as prepare_data

    shares = _shares(split)
    given: dict[str, Any] = {
        "method": method, "format": data_format, "to": to, "file_type": file_type, "shapes": tuple(shapes or ()),
        "system_prompt": system_prompt, "replace_system_prompt": replace_prompt,
        "dedupe": dedupe, "near": near, "exclude": tuple(map(str, exclude or ())),
        "redact": tuple(redact or ()), "redaction_map": str(redaction_map) if redaction_map else None,
        "validation": shares[0], "test": shares[1], "by": by, "column": column,
        "class_column": class_column, "cap": cap, "balance": balance, "mix": str(mix) if mix else None,
        "mix_share": mix_share, "review": review, "seed": seed,
    }  # fmt: skip
    try:
        options = PrepareOptions(**given, **({"mends": ()} if no_mend else {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the options"
        raise UsageError(f"{where}: {first['msg']}", fix="see tuneport prepare --help") from None
    with _progress_bar() as on_progress:
        card = prepare_data(str(data), out, options, converters=_record_shapes(), on_progress=on_progress)
    if as_json:
        _print_json(card.model_dump(mode="json"))
        return
    from rich.markdown import Markdown

    _console().print(Markdown(card.markdown()))
    _console().print(f"[bold]written to {_escape(str(out))}[/]", highlight=False)


def _shares(split: str | None) -> tuple[float, float]:
    """(validation, test) of "80/10/10"; (0, 0) without a split."""
    if split is None:
        return 0.0, 0.0
    try:
        train, validation, test = (float(share) for share in split.split("/"))
    except ValueError:
        raise UsageError(f"--split {split!r} is not three shares", fix="write train/validation/test in percent, e.g. 80/10/10") from None
    if abs(train + validation + test - 100) > 1e-6 or min(train, validation, test) < 0:
        raise UsageError(f"--split {split!r} does not add up to 100", fix="write train/validation/test in percent, e.g. 80/10/10")
    return validation / 100, test / 100


def _record_shapes() -> dict[str, Any]:
    """Every provider's record shapes by name. Records are plain functions: no SDK is imported."""
    from tuneport.providers.bedrock.records import RECORDS as BEDROCK
    from tuneport.providers.fireworks.records import RECORDS as FIREWORKS
    from tuneport.providers.openai.records import RECORDS as OPENAI
    from tuneport.providers.together.records import RECORDS as TOGETHER

    return {**OPENAI, **BEDROCK, **TOGETHER, **FIREWORKS}


def _read_schema(path: Path | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    import json

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no JSON Schema ({error})", fix="give a JSON file") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{path} holds no JSON Schema", fix="give a JSON object")
    return schema


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on stderr for each source, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, whole: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(_escape(name), total=whole)
            bar.update(tasks[name], completed=done, total=whole)

        yield show


def _show_check(report: CheckReport) -> None:
    console = _console()
    tokens = "tokens not counted" if report.good_rows else "no readable rows"
    if report.tokens:
        count = f"{report.tokens.low:,}" if report.tokens.exact else f"{report.tokens.low:,} – {report.tokens.high:,}"
        tokens = f"{count} tokens ({report.tokens.tokenizer})"
    facts = f"{report.part}: {report.rows:,} rows, {report.format or 'unknown format'}"
    console.print(f"[bold]{_escape(report.file)}[/]  {facts}", highlight=False)
    console.print(f"  [dim]{_escape(tokens)}[/]", highlight=False)
    if report.lengths:
        median, longest = report.lengths[0], report.lengths[-1]
        console.print(f"  [dim]row length: median up to {median.high:,} tokens, longest up to {longest.high:,}[/]", highlight=False)
    if not report.findings:
        console.print("  [green]✓ no faults found[/]")
    for finding in report.findings:
        colour = {"error": "red", "warning": "yellow", "info": "cyan"}[finding.severity]
        lines = f" [dim](lines {', '.join(map(str, finding.lines))})[/]" if finding.lines else ""
        console.print(f"  [{colour}]{finding.severity:8}[/]{_escape(finding.message)}{lines}", highlight=False)
        if finding.examples:
            console.print(f"          [dim]e.g. {_escape('; '.join(finding.examples[:3]))}[/]", highlight=False)


def _one_of(option: str, value: str, literal: Any) -> Any:
    allowed = get_args(literal)
    if value not in allowed:
        raise UsageError(f"{option} {value!r} is not known", fix=f"choose one of {', '.join(allowed)}")
    return value


# ── plan ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def plan(
    spec: SpecArgument,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", "-p", help="Provider name (repeatable), or all (the default).")
    ] = None,
    fields: Annotated[bool, typer.Option("--fields", help="List every field, also unset ones.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Ask each vendor for its limits and price too (reads; needs keys).")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what each provider would do with every field, what it costs and how long it takes. Sends nothing."""
    from tuneport.core.spec_file import load_spec

    loaded = load_spec(spec)
    plans, missing = _plans(loaded, provider or ["all"], online=online)
    if as_json:
        printed = {name: p.model_dump(mode="json") for name, p in plans.items()}
        _print_json(printed | {name: {"provider": name, "unavailable": str(why)} for name, why in missing.items()})
    else:
        _show_plans(loaded, plans, missing, fields)
    if not plans:
        raise next(iter(missing.values()))
    if len(plans) + len(missing) == 1 and next(iter(plans.values())).refusals:
        raise typer.Exit(RefusedError.exit_code)  # the reasons are on the screen


def _plans(spec: JobSpec, wanted: Sequence[str], *, online: bool = False) -> tuple[dict[str, Plan], dict[str, TuneportError]]:
    """A plan for each wanted provider, and the error of each that has none (an unknown model there, say).

    ``online`` asks the vendors as well; one that cannot be asked keeps its plan, with a warning.
    """
    from tuneport.core.data.load import load_job_data
    from tuneport.core.errors import CatalogueError, CredentialsError, MissingExtraError, ProviderError
    from tuneport.core.plan import PlanWarning, compile_for
    from tuneport.providers import registry

    names = registry.names() if "all" in wanted else tuple(dict.fromkeys(wanted))
    providers = {name: registry.get(name) for name in names}
    data = load_job_data(spec)
    plans: dict[str, Plan] = {}
    missing: dict[str, TuneportError] = {}
    for name, place in providers.items():
        try:
            plans[name] = compile_for(place, spec, data)
            if online and "online" not in place.unoffered:
                plans[name] = place.online(plans[name])
        except (CredentialsError, ProviderError, MissingExtraError) as error:
            note = PlanWarning(code="online", message=f"could not be asked: {error}")
            plans[name] = plans[name].model_copy(update={"warnings": (*plans[name].warnings, note)})
        except CatalogueError as error:
            missing[name] = error
    return plans, missing


def _show_plans(spec: JobSpec, plans: Mapping[str, Plan], missing: Mapping[str, TuneportError], every_field: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console = _console()
    table = _table("provider", "base model", "training cost", "time", "fields", "can be submitted")
    for name, one in plans.items():
        counts = {k: sum(o.outcome == k for o in one.outcomes) for k in ("mapped", "converted", "defaulted", "refused")}
        tally = ", ".join(f"{n} {k}" for k, n in counts.items() if n)
        verdict = Text("no: refused", "red") if one.refusals else Text("yes", "green")
        table.add_row(name, one.vendor_model, _money(one.cost), _duration(one.time), tally, verdict)
    for name, why in missing.items():
        table.add_row(name, Text("–", "dim"), "", "", "", Text(f"no: {why.what}", "red"))
    console.print(table)

    table = _table("field", "value", *plans)
    for path, value in spec.fields():
        cells = [next((o for o in p.outcomes if o.path == path), None) for p in plans.values()]
        sent = any(c and c.wire != "(tuneport)" and c.value is not None for c in cells)
        if every_field or sent:
            shown = "by provider" if isinstance(value, dict) else "–" if value is None else _short(value)
            table.add_row(path, shown, *(_outcome(c, value, every_field) for c in cells))
    console.print(table)

    for name, one in plans.items():
        console.print(Text(name, "bold"))
        for path, reason in one.refusals.items():
            console.print(Padding(Text.assemble(("✗ ", "red"), (path, "bold"), f": {reason}"), (0, 2)))
        for warning in one.warnings:
            console.print(Padding(Text.assemble(("! ", "yellow"), warning.message), (0, 2)))
        for line in one.cost.lines:
            stale = f" [{line.stale}]" if line.stale else ""
            console.print(Padding(Text.assemble(("$ ", "green"), f"{line.item}: {line.basis}{stale}", style="dim"), (0, 2)))
        console.print(Padding(Text.assemble(("t ", "green"), one.time.basis, style="dim"), (0, 2)))


def _outcome(outcome: FieldOutcome | None, wanted: Any, whole: bool) -> Text:
    """One cell: what a provider makes of a field, in full or in its shortest form."""
    from rich.text import Text

    if outcome is None:
        return Text("")
    wire = outcome.wire or ""
    if not whole:
        wire = wire.rpartition(".")[2]
    if outcome.outcome == "refused":
        return Text("✗ refused", "red")
    if outcome.outcome == "defaulted":
        return Text(outcome.note if whole else "· left to the provider", "dim")
    if outcome.outcome == "converted":
        return Text(f"~ {wire} = {_short(outcome.sent)}".strip(), "yellow")
    differs = "" if wanted is None or isinstance(wanted, dict) or outcome.value == wanted else f" = {_short(outcome.value)}"
    return Text(f"✓ {wire}{differs}".strip(), "green")


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def submit(
    spec: SpecArgument,
    provider: Annotated[str, typer.Option("--provider", "-p", help="Where to train.")],
    yes: YesOption = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the job is made; follow it later with watch.")] = False,
) -> None:
    """Make the job: written to the ledger first, made exactly once. Asks before it spends."""
    from tuneport.core.spec_file import load_spec

    loaded = load_spec(spec)
    plans, missing = _plans(loaded, [provider])
    if missing:
        raise missing[provider]
    one = plans[provider]
    if one.refusals:
        raise RefusedError(provider, one.refusals)
    console = _console()
    price = _money(one.cost)
    console.print(f"{provider} will train [bold]{_escape(one.vendor_model)}[/] by {loaded.method}: {price}, {_duration(one.time)}")
    for warning in one.warnings:
        console.print(f"[yellow]![/] {_escape(warning.message)}")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("submitting needs your consent", fix="add --yes")
        typer.confirm(f"Submit for {price}?", abort=True)
    job = _engine().submit(loaded, one)
    console.print(f"job [bold]{job.id}[/] is {job.state} at {provider}" + (f" as {_escape(job.ref)}" if job.ref else ""))
    if detach:
        console.print(f"follow it with: tuneport watch {job.id}")
    else:
        _watch(job)


@app.command()
def jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    costs: Annotated[bool, typer.Option("--costs", help="Estimates beside bills, and how far they were off.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the jobs in the ledger. Asks no vendor."""
    if costs:
        _show_costs(limit, as_json)
        return
    found = _engine(create=False).jobs(limit=limit)
    if as_json:
        _print_json([_job_facts(job) for job in found])
        return
    table = _table("job", "provider", "model", "method", "state", "estimate", "billed", "submitted (UTC)", "tuned model")
    for job in found:
        r = job.record
        estimate = "unknown" if r.estimate_usd is None else _range_usd(r.estimate_usd.low, r.estimate_usd.high)
        billed = "–" if r.billed_usd is None else _usd(r.billed_usd)
        submitted = f"{r.created_at:%Y-%m-%d %H:%M}"
        table.add_row(r.id, r.provider, r.model, r.method, _state(job), estimate, billed, submitted, r.tuned_model or "–")
    _console().print(table)


def _show_costs(limit: int, as_json: bool) -> None:
    from tuneport.core.calibration import totals

    found = _engine(create=False).costs(limit=limit)
    if as_json:
        _print_json([_plain(c) | {"error": c.error, "inside": c.inside} for c in found])
        return
    table = _table("job", "provider", "model", "state", "estimate", "billed", "off by", "inside the range", "basis of the bill")
    for c in found:
        money = ["unknown" if r is None else _range_usd(r.low, r.high) for r in (c.estimate, c.billed)]
        off = "–" if c.error is None else f"{c.error:+.0%}"
        inside = "–" if c.inside is None else "[green]yes[/]" if c.inside else "[yellow]no[/]"
        table.add_row(c.job_id, c.provider, c.model, str(c.state), *money, off, inside, _escape(c.basis))
    _console().print(table)
    for t in totals(found):
        if t.compared:
            sums = f"estimated {_range_usd(t.estimate.low, t.estimate.high)}, billed {_range_usd(t.billed.low, t.billed.high)}"
            _console().print(f"{t.provider}: {t.compared} of {t.jobs} jobs compared, {t.inside} inside; {sums}", highlight=False)


@app.command()
def status(job: JobArgument, as_json: JsonOption = False) -> None:
    """Ask the provider about a job once. When it cannot be read, the last good state is shown with its age."""
    handle = _job(job).refresh()
    if as_json:
        _print_json(_job_facts(handle))
    else:
        _show_job(handle)


@app.command()
def watch(job: JobArgument) -> None:
    """Follow a job until it ends. Exit code 9 when it ends without a model."""
    _watch(_job(job))


@app.command()
def events(job: JobArgument, as_json: JsonOption = False) -> None:
    """The job's events so far, oldest first."""
    found = list(_job(job).events())
    if as_json:
        _print_json([{"at": e.at.isoformat(), "level": e.level, "message": e.message, "metrics": e.metrics} for e in found])
        return
    for event in found:
        metrics = "  ".join(f"{k} {v:.4g}" for k, v in event.metrics.items() if k != "step" or "step" not in event.message)
        _console().print(f"[dim]{event.at:%H:%M:%S}[/] {_escape(event.message)} [cyan]{metrics}[/]", highlight=False)


@app.command()
def logs(job: JobArgument) -> None:
    """Every change of state and every event of a job, as plain lines."""
    for line in _job(job).logs():
        print(line)


@app.command()
def cancel(job: JobArgument) -> None:
    """Ask the provider to stop a job."""
    _show_job(_job(job).cancel())


@app.command()
def pause(job: JobArgument) -> None:
    """Halt a job so that `resume` can go on from there, where the provider offers it."""
    _show_job(_job(job).pause())


@app.command()
def checkpoints(job: JobArgument, as_json: JsonOption = False) -> None:
    """The checkpoints that a job has saved, with their metrics."""
    found = _job(job).checkpoints()
    if as_json:
        _print_json([_plain(c) for c in found])
        return
    table = _table("step", "model", "metrics")
    for c in found:
        table.add_row(str(c.step), c.model, "  ".join(f"{k} {v:.4g}" for k, v in c.metrics.items()))
    _console().print(table)


@app.command()
def export(job: JobArgument, out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the weights.")] = Path(".")) -> None:
    """Download the tuned weights or adapter, where the provider gives them away; goes on where it broke off."""
    for path in _job(job).download(out):
        print(path)


@app.command()
def delete(job: JobArgument, yes: YesOption = False) -> None:
    """Remove the tuned model and the uploaded files at the provider, after asking. The ledger keeps the job."""
    handle = _job(job)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("deleting needs your consent", fix="add --yes")
        typer.confirm(f"Delete the tuned model and files of {handle.id} at {handle.provider}? This cannot be undone", abort=True)
    for name in handle.delete():
        print(name)


@app.command()
def doctor(
    provider: Annotated[str, typer.Argument(help="Provider to look into; only bedrock has roles and buckets to check.")] = "bedrock",
    spec: Annotated[Path | None, typer.Option("--spec", help="Take role, bucket and region from this spec.")] = None,
) -> None:
    """Say exactly which permission, role or setting is missing, by dry checks that change nothing."""
    from tuneport.core.options import BedrockOptions
    from tuneport.core.spec_file import load_spec
    from tuneport.providers.bedrock.doctor import diagnose

    if provider != "bedrock":
        raise UsageError(f"there is nothing to check for {provider!r} beside its key", fix="see `tuneport providers`; doctor knows bedrock")
    loaded = load_spec(spec) if spec else None
    findings = diagnose(loaded.options.bedrock if loaded else BedrockOptions(), os.environ)
    for finding in findings:
        colour = {"ok": "green", "missing": "red", "unknown": "yellow"}[finding.state]
        _console().print(f"[{colour}]{finding.state:8}[/]{_escape(str(finding).removeprefix(finding.state).lstrip())}", highlight=False)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


@app.command()
def resume(job: JobArgument) -> None:
    """Go on with a job that was interrupted or paused, from where it stood."""
    handle = _job(job)
    _watch(_engine().resume(handle.id))


@app.command()
def reconcile(yes: Annotated[bool, typer.Option("--yes", "-y", help="Also make jobs that were never made (this spends).")] = False) -> None:
    """Settle submissions that a crash interrupted: adopt what the vendor has made, never make it twice."""
    outcomes = _engine().reconcile(resume=yes)
    if not outcomes:
        _console().print("nothing to settle")
    for one in outcomes:
        _console().print(f"{one.job_id}: {one.outcome}" + (f" ({_escape(one.note)})" if one.note else ""))


def _engine(*, create: bool = True) -> Engine:
    from tuneport import engine

    return engine(create=create)


def _job(name: str) -> Job:
    engine = _engine(create=False)
    if name != "last":
        return engine.job(name)
    newest = engine.jobs(limit=1)
    if not newest:
        raise UsageError("the ledger holds no job yet", fix="make one with: tuneport submit SPEC --provider NAME")
    return newest[0]


def _watch(job: Job) -> None:
    """A live progress bar on a terminal, a line per change elsewhere."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = _console()
    percent, metric = TextColumn("{task.percentage:>3.0f} %"), TextColumn("[cyan]{task.fields[metrics]}")
    state = TextColumn("{task.fields[state]}")
    columns = (SpinnerColumn(), state, BarColumn(), percent, TimeElapsedColumn(), TimeRemainingColumn(), metric)
    last = ""
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(job.id, total=1.0, state=str(job.state), metrics="")

        def show(update: Any) -> None:
            nonlocal last
            record = update.job
            for event in update.events:
                shown = "  ".join(f"{k} {v:.4g}" for k, v in event.metrics.items() if k in _WATCHED)
                if shown:
                    bar.update(task, metrics=shown)
            bar.update(task, completed=record.progress or 0.0, state=f"{record.state} {record.freshness(datetime.now(UTC))}".strip())
            if record.state != last:
                last = record.state
                message = f": {_escape(record.message)}" if record.message else ""
                console.print(f"[dim]{record.updated_at:%H:%M:%S}[/] {job.id} {record.state}{message}", highlight=False)

        job.wait(show, max_s=2.0 if job.provider == "local" else 30.0)
    console.print(f"[green]✓[/] {job.id} {job.state}: call it as [bold]{_escape(job.tuned_model or '')}[/]", highlight=False)


def _show_job(job: Job) -> None:
    record = job.record
    table = _table("", "", header=False)
    for name, value in _job_facts(job).items():
        if value is not None and name != "events":
            table.add_row(name.replace("_", " "), str(value))
    _console().print(table)
    if record.read_error and not record.state.terminal:
        _console().print(f"[yellow]![/] {_escape(job.freshness)}")


def _job_facts(job: Job) -> dict[str, Any]:
    r = job.record
    return {
        "id": r.id, "provider": r.provider, "model": r.model, "method": r.method, "state": str(r.state), "raw_state": r.raw_state or None,
        "ref": r.ref, "message": r.message or None, "progress": r.progress, "tuned_model": r.tuned_model,
        "estimate_low_usd": r.estimate_low_usd, "estimate_high_usd": r.estimate_high_usd, "billed_usd": r.billed_usd,
        "billed_tokens": r.billed_tokens, "created_at": r.created_at.isoformat(), "updated_at": r.updated_at.isoformat(),
        "last_seen_at": r.last_seen_at.isoformat() if r.last_seen_at else None, "freshness": job.freshness or None,
    }


def _state(job: Job) -> Any:
    from rich.text import Text

    colours = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}
    raw = f" ({job.raw_state})" if job.state == "unknown" else ""
    return Text(f"{job.state}{raw}", colours.get(str(job.state), ""))


# ── facts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def providers(as_json: JsonOption = False) -> None:
    """List the providers, and what each needs: the SDK to install, the variables that hold its key."""
    from importlib.util import find_spec

    from tuneport.providers import registry

    rows: list[dict[str, Any]] = [
        {
            "name": e.name, "title": e.title, "installed": find_spec(e.sdk) is not None, "extra": e.extra,
            "environment": {name: any(v in os.environ for v in name.split(" or ")) for name in e.environment}, "note": e.note,
        }
        for e in registry.entries().values()
    ]
    if as_json:
        _print_json(rows)
        return
    table = _table("provider", "", "to submit, install", "credentials", "note")
    for row in rows:
        needs = "[green]✓[/] installed" if row["installed"] else _escape(f"pip install 'tuneport[{row['extra']}]'")
        keys = ", ".join(f"[green]✓[/] {n}" if there else f"[dim]{n}[/]" for n, there in row["environment"].items())
        table.add_row(row["name"], row["title"], needs, keys or "none needed", row["note"])
    _console().print(table)


@app.command()
def models(
    provider: Annotated[str | None, typer.Option("--provider", "-p", help="Only this provider.")] = None, as_json: JsonOption = False
) -> None:
    """List the base models that can be tuned, where, how, and until when."""
    from tuneport.core.catalogue import closed, load_catalogue
    from tuneport.core.sources import staleness

    found = [o for o in load_catalogue().models() if provider in (None, o.provider)]
    if not found:
        raise UsageError(f"the catalogue has no models for {provider!r}", fix="see `tuneport providers`")
    today = date.today()
    if as_json:
        _print_json([_plain(o) | {"closed": closed(o, today)} for o in found])
        return
    table = _table("model", "provider", "vendor id", "methods", "tuning", "tunable until", "source")
    for o in found:
        end = o.lifetime.training_closes
        until = f"[yellow]{end}[/]" if end else "[dim]no date known[/]"
        if closed(o, today):
            until = f"[red]closed[/] {o.lifetime.inference_ends or end or ''}"
        stale = staleness(o.source, today)
        source = f"{o.source.observed_on} {o.source.grade}" if o.source else "unknown"
        listed = [", ".join(sorted(x)) if x else "[dim]unknown[/]" for x in (o.methods, o.tunings)]
        table.add_row(o.model, o.provider, o.vendor_id, *listed, until, f"{source} [yellow]{stale}[/]" if stale else source)
    _console().print(table)


@app.command()
def prices(
    provider: Annotated[str | None, typer.Option("--provider", "-p", help="Only this provider.")] = None, as_json: JsonOption = False
) -> None:
    """List the price book: each price with its source, date and grade; old ones are marked."""
    from tuneport.core.prices import load_prices
    from tuneport.core.sources import staleness

    found = [p for p in load_prices().prices() if provider in (None, p.provider)]
    if not found:
        raise UsageError(f"the price book has no prices of {provider!r}", fix="see `tuneport providers`")
    if as_json:
        _print_json([_plain(p) for p in found])
        return
    table = _table("provider", "what", "applies to", "USD", "unit", "observed", "source")
    sources: dict[str, int] = {}
    for p in found:
        band = f"{p.above_b or 0:g}–{p.upto_b:g}B" if p.upto_b else f">{p.above_b:g}B" if p.above_b else ""
        whose = "" if p.tuned is None else "tuned" if p.tuned else "base"
        applies = (p.model or "", band, p.gpu or "", *sorted(p.methods or ()), *sorted(p.tunings or ()), whose, p.variant)
        stale = staleness(p.source, date.today())
        age = f"{p.source.observed_on} {p.source.grade}" + (f" [yellow]{stale}[/]" if stale else "")
        amount = _range_usd(p.amount.low, p.amount.high)
        number = sources.setdefault(p.source.title, len(sources) + 1)
        table.add_row(p.provider, p.kind, " ".join(filter(None, applies)), amount, p.unit, age, f"({number})")
    _console().print(table)
    for title, number in sources.items():
        _console().print(f"[dim]({number}) {_escape(title)}[/]", highlight=False)


@app.command()
def schema(
    what: Annotated[str, typer.Argument(help="spec, plan, decision, report, models or prices.", metavar="WHAT")] = "spec",
) -> None:
    """Print a JSON Schema, for editors and for programs that read the JSON."""
    _print_json(_schemas(what))


def _schemas(what: str) -> dict[str, Any]:
    if what == "spec":
        from tuneport.core.spec_file import spec_schema

        return spec_schema()
    if what == "models":
        from tuneport.core.catalogue import catalogue_schema

        return catalogue_schema()
    if what == "prices":
        from tuneport.core.prices import prices_schema

        return prices_schema()
    if what == "plan":
        from tuneport.core.plan import Plan

        return Plan.model_json_schema(mode="serialization")
    if what == "decision":
        from tuneport.advisor.intake import Intake

        return Intake.model_json_schema()
    if what == "report":
        from tuneport.advisor.report.model import Report

        return Report.model_json_schema(mode="serialization")
    raise UsageError(f"there is no schema {what!r}", fix="choose spec, plan, decision, report, models or prices")


# ── advisor ───────────────────────────────────────────────────────────────────────────────────────────────────────

OutOption = Annotated[Path, typer.Option("--out", "-o", help="Measurement file; arms already in it are kept.")]
SchemaOption = Annotated[Path | None, typer.Option("--json-schema", help="JSON Schema that answers must fulfil.")]


@app.command()
def baseline(
    spec: SpecArgument,
    provider: Annotated[str, typer.Option("--provider", "-p", help="Where the base model runs.")],
    out: OutOption = Path("measurement.json"),
    shots: Annotated[
        list[int] | None, typer.Option("--shots", min=0, help="Examples in the prompt (repeatable); 0 is zero-shot. Default: 0 and 6.")
    ] = None,
    instruction: Annotated[
        Path | None, typer.Option("--instruction", help="Text file with the prompt to measure, in place of the rows' system prompt.")
    ] = None,
    json_schema: SchemaOption = None,
) -> None:
    """Measure how far prompting gets the base model on the held-out rows: the bar that tuning must beat."""
    from tuneport.core.catalogue import load_catalogue
    from tuneport.core.spec_file import load_spec

    loaded = load_spec(spec)
    model = load_catalogue().offering(loaded, provider).vendor_id
    words = _read(instruction).strip() if instruction else None
    arms = [
        {"name": f"few-shot ({k})" if k else "zero-shot", "shots": k, "kind": "prompted", "instruction": words} for k in shots or (0, 6)
    ]
    _measure(loaded, provider, model, arms, out, json_schema)


@app.command()
def evaluate(
    spec: SpecArgument,
    job: Annotated[str, typer.Option("--job", help="Job that made the tuned model, or last.")],
    out: OutOption = Path("measurement.json"),
    json_schema: SchemaOption = None,
) -> None:
    """Measure a tuned model on the same held-out rows and pair it with the baselines."""
    from tuneport.core.spec_file import load_spec

    handle = _job(job)
    model = handle.model.name
    _measure(load_spec(spec), handle.provider, model, [{"name": "tuned", "kind": "tuned", "job": handle.id}], out, json_schema)


def _measure(spec: JobSpec, provider: str, model: str, arms: list[dict[str, Any]], out: Path, json_schema: Path | None) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tuneport.advisor.measure import measure, run_arm
    from tuneport.advisor.measurement import Measurement
    from tuneport.advisor.suite import load_suite
    from tuneport.providers import registry

    suite = load_suite(spec, schema=json_schema)
    known = Measurement.model_validate_json(out.read_text(encoding="utf-8")) if out.exists() else None
    names = {a["name"] for a in arms}
    kept = [a for a in known.arms if a.name not in names] if known and known.suite_sha256 == suite.sha256 else []
    console = _console()
    place = registry.get(provider)
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        for arm in arms:
            task = bar.add_task(arm["name"], total=len(suite))

            def show(progress: Any, task: Any = task) -> None:
                bar.update(task, completed=progress.done)

            kept.append(run_arm(place, model, suite, cache=out.parent / "answers", on_progress=show, **arm))
    result = measure(suite, kept)
    _write(out, result.model_dump_json(indent=1))
    _show_measurement(result)


def _show_measurement(result: Measurement) -> None:
    console = _console()
    metrics = list(dict.fromkeys(m for arm in result.arms for m in arm.metrics))
    table = _table(f"{result.power.n} held-out rows", *(arm.name for arm in result.arms))
    for metric in metrics:
        cells = [f"{e.value:.0%} [dim]{e.low:.0%}–{e.high:.0%}[/]" if (e := arm.metrics.get(metric)) else "–" for arm in result.arms]
        table.add_row(metric, *cells)
    console.print(table)
    for c in result.comparisons:
        if c.metric == result.primary_metric:
            d, p = c.difference, f", exact McNemar p = {c.p_value:.2g}" if c.p_value is not None else ""
            points = f"{d.value * 100:+.1f} points ({d.low * 100:+.1f} to {d.high * 100:+.1f})"
            console.print(f"{c.challenger} – {c.baseline}: {points}{p}", highlight=False)
    console.print(f"[dim]{_escape(result.power.statement)}[/]", highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]![/] {_escape(warning)}", highlight=False)


@app.command()
def advise(
    decision: Annotated[Path, typer.Argument(help="What is to be decided: volumes, costs, constraints (YAML).", metavar="DECISION")],
    spec: Annotated[Path | None, typer.Option("--spec", help="Job spec; its plans become the offers.")] = None,
    measurement: Annotated[Path | None, typer.Option("--measurement", help="What baseline and evaluate measured.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html, report.md and report.json.")] = Path("."),
) -> None:
    """Decide whether and where to fine-tune, and write the report."""
    import tuneport
    from tuneport.advisor.measurement import Measurement
    from tuneport.advisor.report.render import write_report

    measured = Measurement.model_validate_json(_read(measurement)) if measurement else None
    report = tuneport.advise(decision, spec=spec, measurement=measured)
    written = write_report(out, report)
    console = _console()
    console.print(f"\n[bold]{_escape(report.decision.sentence)}[/]\n", highlight=False)
    console.print(_escape(report.decision.because), highlight=False)
    for path in written.values():
        console.print(f"wrote [bold]{_escape(str(path))}[/]", highlight=False)


# ── output ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _console() -> Console:
    from rich.console import Console

    return Console()


def _table(*columns: str, header: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=header, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    return table


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass of facts as JSON values."""
    from dataclasses import asdict

    plain = asdict(value)
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in plain.items()}


def _short(value: Any) -> str:
    import json

    if isinstance(value, float):
        value = float(f"{value:.6g}")
        value = int(value) if value.is_integer() else value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _usd(amount: float) -> str:
    return f"${amount:,.4f}" if 0 < amount < 0.01 else f"${amount:,.2f}"


def _range_usd(low: float, high: float) -> str:
    return _usd(low) if _usd(low) == _usd(high) else f"{_usd(low)} – {_usd(high)}"


def _money(cost: Cost) -> str:
    if cost.usd is not None:
        return _range_usd(cost.usd.low, cost.usd.high)
    return "unknown" if cost.known_usd.high == 0 else f"unknown, at least {_usd(cost.known_usd.low)}"


def _duration(time: Duration) -> str:
    if time.seconds is None:
        return "time unknown"
    return f"{_span(time.seconds.low)} – {_span(time.seconds.high)}"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", fix="check the path; `tuneport baseline` writes measurements") from None


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
