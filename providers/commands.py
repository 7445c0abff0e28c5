"""Commands on data and providers: prepare, providers, doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneport.core import terminal
from tuneport.core.errors import CredentialsError, UsageError
from tuneport.core.terminal import METHODS_HELP, ROW_FORMATS, ROW_FORMATS_HELP, JsonOption, escape

if TYPE_CHECKING:
    from tuneport.core.data.card import DataCard


def prepare(
    data: Annotated[Path, typer.Argument(help="Data file.", metavar="DATA")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the parts, the rejected rows and the data card.")],
    method: Annotated[str, typer.Option(help=METHODS_HELP)] = "sft",
    data_format: Annotated[str, typer.Option("--format", help=ROW_FORMATS_HELP)] = "auto",
    to: Annotated[str | None, typer.Option("--to", help=f"Row format to write: {ROW_FORMATS}.")] = None,
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
    """Mend, clean, split and convert data.

    What was done is written down beside it (card.json, card.md).
    """
    from tuneport.core.data.prepare import options_of
    from tuneport.core.data.prepare import prepare as prepare_data
    from tuneport.providers.shapes import record_shapes

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
    options = options_of(given | ({"mends": ()} if no_mend else {}), _spelled)
    with terminal.progress_bar() as on_progress:
        card = prepare_data(str(data), out, options, converters=record_shapes(), on_progress=on_progress)
    if as_json:
        terminal.print_json(card.model_dump(mode="json"))
        return
    _show_card(card, out)


def _show_card(card: DataCard, out: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    listing = Table.grid(padding=(0, 1))
    listing.add_column(no_wrap=True)
    listing.add_column(overflow="fold")
    for step, said in card.summary():
        listing.add_row(Text(step, "yellow" if step in ("rejected", "refused") else "dim"), Text(said))
    terminal.console().print(listing)
    terminal.console().print(f"[bold]Prepared data lies in {escape(str(out))}[/]", highlight=False)


def _spelled(option: str) -> str:
    """An option of ``PrepareOptions`` as it is typed."""
    other = {"shapes": "--for", "mends": "--no-mend", "validation": "--split", "test": "--split"}
    return other.get(option) or f"--{option.replace('_', '-')}"


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
    if max(validation, test) >= 50:
        raise UsageError(f"--split {split!r} holds out half of the rows or more", fix="keep validation and test below 50 percent each")
    return validation / 100, test / 100


def providers(as_json: JsonOption = False) -> None:
    """List the providers and what each needs: SDK, keys."""
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
        terminal.print_json(rows)
        return
    listing = terminal.table("provider", "", "to submit, install", "credentials", "note")
    for row in rows:
        needs = "[green]✓[/] installed" if row["installed"] else escape(f"pip install 'tuneport[{row['extra']}]'")
        keys = ", ".join(f"[green]✓[/] {n}" if there else f"[dim]{n}[/]" for n, there in row["environment"].items())
        listing.add_row(row["name"], row["title"], needs, keys or "none needed", row["note"])
    terminal.console().print(listing)


def doctor(
    provider: Annotated[str, typer.Argument(help="Provider to look into.")],
    spec: Annotated[Path | None, typer.Option("--spec", help="Take model, role, bucket, region and address from this spec.")] = None,
) -> None:
    """Say which key, permission, role or setting is missing.

    By reads that change nothing. Exit code 7 when something is missing.
    """
    from tuneport.core.catalogue import load_catalogue
    from tuneport.core.spec_file import load_spec
    from tuneport.providers.doctor import diagnose

    loaded = load_spec(spec) if spec else None
    options = loaded.options.for_provider(provider) if loaded else None
    model = load_catalogue().offering(loaded, provider).vendor_id if loaded else None
    missing = False
    for finding in diagnose(provider, options, os.environ, model=model):
        missing |= finding.state == "missing"
        colour = {"ok": "green", "missing": "red", "unknown": "yellow"}[finding.state]
        said = escape(str(finding).removeprefix(finding.state).lstrip())
        terminal.console().print(f"[{colour}]{finding.state:8}[/]{said}", highlight=False)
    if missing:
        raise typer.Exit(CredentialsError.exit_code)
