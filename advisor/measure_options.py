"""Options that the measuring commands share."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer


def _number(value: float | None) -> float | None:
    """Click lets "nan" and "inf" pass its bounds; every comparison with the one is false, so that a limit or a gate would not hold."""
    if value is not None and not isfinite(value):
        raise typer.BadParameter("give a number")
    return value


OutOption = Annotated[Path, typer.Option("--out", "-o", help="Measurement file; arms already in it are kept.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Any model that the provider serves; the spec's otherwise.")]
BaseUrlOption = Annotated[str | None, typer.Option("--base-url", help="Another service that speaks the provider's protocol.")]
KeyOption = Annotated[str | None, typer.Option("--key-variable", help="Variable that holds its key (openai).")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the arm in the measurement.")]

ShotsOption = Annotated[list[int] | None, typer.Option("--shots", min=0, help="Examples in the prompt (repeatable); 0 is zero-shot.")]
InstructionOption = Annotated[Path | None, typer.Option("--instruction", help="Text file that stands in place of the rows' system prompt.")]
TemplateOption = Annotated[
    Path | None, typer.Option("--template", help="Jinja file that makes the user's message: question, context, row, examples.")
]
ContextOption = Annotated[
    str | None, typer.Option("--context-column", help="Column with what retrieval found; it stands before the question.")
]
SchemaOption = Annotated[Path | None, typer.Option("--json-schema", help="JSON Schema that answers must fulfil.")]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="Further metric (repeatable): token_f1, rouge_l, bleu, chrf, contains, numeric, regex=PATTERN, context_precision.",
    ),
]  # fmt: skip
PrimaryOption = Annotated[str | None, typer.Option("--primary", help="Metric that decides; the task's own otherwise.")]
ToleranceOption = Annotated[
    float, typer.Option("--tolerance", min=0, callback=_number, help="Relative difference of numbers that counts as none.")
]
TaskOption = Annotated[str | None, typer.Option("--task", help="json, label or text; seen from the rows otherwise.")]
LabelOption = Annotated[str | None, typer.Option("--label-field", help="JSON field that F1 is taken over.")]
ReferenceOption = Annotated[str | None, typer.Option("--reference-column", help="Column with the expected answer (rft rows).")]
ClusterOption = Annotated[str | None, typer.Option("--cluster-column", help="Rows with one value here hang together.")]
DeclineOption = Annotated[str | None, typer.Option("--decline-column", help="Column: should the model decline (true or false)?")]
PartOption = Annotated[str, typer.Option("--part", help="test, or validation to choose prompts while the test rows stay sealed.")]
RepeatsOption = Annotated[int, typer.Option("--repeats", min=1, help="Ask each row so many times.")]
TokensOption = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Limit of an answer; by the expected ones otherwise.")]
MaxUsdOption = Annotated[float | None, typer.Option("--max-usd", min=0, callback=_number, help="Ask nothing that could exceed this sum.")]
MarginOption = Annotated[
    float, typer.Option("--margin", min=0, max=1, callback=_number, help="Loss that counts as none, as a share.")
]
PriceOption = Annotated[str | None, typer.Option("--price", help="USD per 1M tokens, IN/OUT, where the price book has none: 0.15/0.60.")]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--concurrency", min=1, max=512, help="Questions at once; fewer while the service limits. [8]")
]
StreamOption = Annotated[bool, typer.Option("--stream", help="Stream answers, to measure the time to the first token.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what the rows can show and what it costs at most; ask nothing.")]
JudgeOption = Annotated[
    str | None, typer.Option("--judge", help="PROVIDER:MODEL that judges answers, e.g. openai:gpt-4.1 (@URL for another service).")
]
RubricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rubric", help="correctness, faithfulness, style, refusal, preference (pairs), or a YAML file (repeatable). [correctness]",
    ),
]  # fmt: skip
JudgePriceOption = Annotated[str | None, typer.Option("--judge-price", help="As --price, for the judge.")]
LabelsOption = Annotated[
    Path | None, typer.Option("--judge-labels", help="Answers with people's verdicts; the judge's agreement is measured.")
]
