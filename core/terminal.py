"""What the commands share: option types, and how tables, numbers, progress and files appear. Rich is imported on first use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from tuneport.core.data.atomic import EVERYBODY, write_text
from tuneport.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tuneport.core.money import Cost, Duration

SpecArgument = Annotated[Path, typer.Argument(help="Job spec, YAML or JSON.", metavar="SPEC")]
JobArgument = Annotated[str, typer.Argument(help="Job id, as `tuneport jobs` shows it, or `last`.", metavar="JOB")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]


# Written out, because the lists themselves stand in modules that take time to load; a test holds them together.
ROW_FORMATS = "chat, prompt_completion, instruction, classification, preference, unpaired_preference, text"
ROW_FORMATS_HELP = f"Row format: auto (detect it), {ROW_FORMATS}."
METHODS_HELP = "Method the rows are for: sft, dpo, kto, orpo, simpo, cpt, rft, distill."

LINE = 120
"""Columns of output that no terminal shows."""


def consent(question: str, yes: bool, what: str) -> None:
    """Ask, unless ``yes``. Raises UsageError where nobody can answer; ends the command on a no. ``what`` is a gerund."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{what} needs your consent", fix="add --yes")
    typer.confirm(question, abort=True)


def console() -> Console:
    """Standard output as rich writes to it: colours on a terminal only; a file or a pipe gets lines of LINE columns (or COLUMNS)."""
    from rich.console import Console

    made = Console()
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = LINE
    return made


def table(*columns: str, header: bool = True) -> Table:
    """An empty table in the one style of all commands."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_header=header, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=index == 0)
    return made


def escape(text: str) -> str:
    """Text as it is, where rich would read [brackets] as style."""
    from rich.markup import escape as plainly

    return plainly(text)


def print_json(value: Any) -> None:
    """What ``--json`` prints."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def plain(value: Any) -> dict[str, Any]:
    """A dataclass of facts as JSON values."""
    from dataclasses import asdict

    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(value).items()}


def short(value: Any, longest: int = 40) -> str:
    """A spec value in at most so many characters."""
    import json

    if isinstance(value, float):
        value = float(f"{value:.6g}")
        value = int(value) if value.is_integer() else value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def usd(amount: float) -> str:
    """US dollars to the cent; below ten cents, to four digits. Bills are compared, so nothing is rounded further."""
    return f"${amount:,.4f}" if 0 < amount < 0.1 else f"${amount:,.2f}"


def usd_range(low: float, high: float) -> str:
    """Two ends, or one amount where both read the same."""
    return usd(low) if usd(low) == usd(high) else f"{usd(low)} – {usd(high)}"


def several(count: int, noun: str) -> str:
    """A count with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def money(cost: Cost) -> str:
    """A cost's range, or what of it is known."""
    if cost.usd is not None:
        return usd_range(cost.usd.low, cost.usd.high)
    return "unknown" if cost.known_usd.high == 0 else f"unknown, at least {usd(cost.known_usd.low)}"


def duration(time: Duration) -> str:
    """A time's range."""
    if time.seconds is None:
        return "time unknown"
    return f"{span(time.seconds.low)} – {span(time.seconds.high)}"


def span(seconds: float) -> str:
    """Seconds in the largest unit that fits, to two digits."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            count = seconds / size
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.2g} {unit}"
    return f"{seconds:.0f} s"


def read(path: Path) -> str:
    """A text file. Raises DataError when it does not exist."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", fix="check the path; `tuneport baseline` writes measurements") from None


def write(path: Path, text: str, mode: int = EVERYBODY) -> None:
    """Write a file whole or not at all, with its folder; ``mode``: its permissions, less the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, mode)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on stderr for each source, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, whole: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(escape(name), total=whole)
            bar.update(tasks[name], completed=done, total=whole)

        yield show


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on stderr what is being waited for: beside a spinner on a terminal, as one line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(escape(what)):
            yield
    else:
        console.print(escape(what), highlight=False, soft_wrap=True)
        yield


def read_schema(path: Path | None) -> Mapping[str, Any] | None:
    """A JSON Schema from a file. Raises UsageError when there is none in it."""
    if path is None:
        return None
    import json

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the JSON Schema {path} cannot be read ({error.strerror})", fix="check the path") from None
    except ValueError as error:
        raise UsageError(f"{path} holds no JSON Schema ({error})", fix="give a JSON file") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{path} holds no JSON Schema", fix="give a JSON object")
    return schema


def one_of(option: str, value: str, literal: Any) -> Any:
    """The value, when the Literal type has it. Raises UsageError otherwise."""
    allowed = get_args(literal)
    if value not in allowed:
        raise UsageError(f"{option} {value!r} is not known", fix=f"choose one of {', '.join(allowed)}")
    return value