"""The rows that everything is measured on, how they are asked, and the few-shot examples that may stand before them.

A suite is made from held-out rows. Few-shot examples come from the training rows only, by one rule: training rows
are grouped by label (one group where there is none), each group is put in an order that depends on the rows' contents
and the seed alone, and the groups, largest first, give one row each in turn until k are chosen. Rows whose prompt is in
the test rows are never chosen, nor are rows without an answer to show; of rows with one prompt only one is. All test rows get the
same examples.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Literal

from tuneport.advisor.metrics import Scorer, Task, load_schema, make_scorer, normalise
from tuneport.advisor.prompts import check_template, is_system, messages
from tuneport.advisor.text_metrics import NEEDS_CONTEXT
from tuneport.core.data.rows import Message, Row
from tuneport.core.errors import DataError, UsageError
from tuneport.core.spec import JobSpec

SHOTS_PER_GROUP = 64  # kept while the training rows stream by; bounds memory
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")
_KEPT_KEYS = ("role", "content", "name")  # the rest of a message concerns training (weight) or is an answer's (reasoning)


@dataclass(frozen=True, slots=True)
class Item:
    """One row as a question and its expected answer. ``messages`` is the prompt, without that answer."""

    messages: tuple[Message, ...]
    expected: str
    file: str
    line: int
    label: str | None = None
    context: str | None = None  # what retrieval found for the question
    should_decline: bool | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)  # without the expected answer


@dataclass(frozen=True, slots=True)
class Columns:
    """Which of the rows' columns mean something to a measurement; None: none does."""

    reference: str | None = None  # the expected answer, where rows end with the user's turn (rft)
    context: str | None = None
    cluster: str | None = None  # rows with the same value hang together: one document, one conversation, one customer
    decline: str | None = None  # true where a model should decline


@dataclass(frozen=True)
class EvalSuite:
    """Held-out rows with what is needed to ask and to score them. Made by ``build_suite`` or ``load_suite``."""

    source: str  # where the rows come from, as the user named it
    items: tuple[Item, ...]
    scorer: Scorer
    max_tokens: int  # limit for every answer, the same for all arms
    sha256: str  # of prompts and expected answers, in order
    groups: tuple[tuple[Item, ...], ...]  # candidates for few-shot examples, largest group first
    contaminated: tuple[int, ...]  # indexes of items whose prompt is among the training rows
    repeated: int  # items whose prompt an earlier item has
    clusters: tuple[int, ...] = ()  # each item's cluster: by the cluster column, else items with one prompt; () when all stand alone
    part: Literal["test", "validation"] = "test"

    def __len__(self) -> int:
        return len(self.items)

    @property
    def uniform(self) -> bool:
        """Does every row expect the same answer, so that a constant one would score full marks?"""
        return len(self) > 1 and len({item.expected for item in self.items}) == 1

    def columns_sha256(self, which: str) -> str | None:
        """Of the rows' contexts ("context"), or of their further columns ("row"); None where this suite was not told of any."""
        seen = [item.context if which == "context" else dict(item.columns) for item in self.items]
        return _sha(seen) if any(seen) else None

    def few_shot(self, k: int) -> tuple[Item, ...]:
        """The k training examples that the rule in the module's head chooses. Raises UsageError when there are fewer."""
        if k < 0:
            raise UsageError(f"{k} examples make no few-shot prompt", fix="give 0 or more")
        queues = [list(group) for group in self.groups]
        chosen: list[Item] = []
        while len(chosen) < k and any(queues):
            chosen += [queue.pop(0) for queue in queues if queue][: k - len(chosen)]
        if len(chosen) < k:
            raise UsageError(
                f"{k} few-shot examples were asked for, but only {len(chosen)} training rows can serve",
                fix=f"ask for at most {len(chosen)}",
            )
        return tuple(chosen)

    def prompts(
        self, shots: int = 0, instruction: str | None = None, *, template: str | None = None, context: bool = False
    ) -> list[tuple[Message, ...]]:
        """What to send for each item: its system prompt, then the examples as turns, then its own turns (``prompts`` has the rules).

        ``instruction`` stands in place of the item's system prompt: a prompted model may need more words than a tuned one.
        ``context`` puts what retrieval found before the question.
        """
        if template is not None:
            check_template(template, shots)
        if context and all(item.context is None for item in self.items):
            raise UsageError("no row of the suite has a context", fix="name the column that holds it: --context-column NAME")
        examples = self.few_shot(shots)
        return [messages(item, examples, instruction, template, context=context) for item in self.items]


def load_suite(
    spec: JobSpec,
    *,
    schema: Path | None = None,
    task: Task | None = None,
    label_field: str | None = None,
    columns: Columns = Columns(),
    fenced: bool = False,
    tolerance: float = 0.0,
    extras: tuple[str, ...] = (),
    primary: str | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    part: Literal["test", "validation"] = "test",
) -> EvalSuite:
    """The suite of a job spec: its test rows, with few-shot candidates from its training rows.

    ``part`` "validation" measures on the validation rows instead, for choosing prompts while the test rows stay sealed.
    Raises UsageError when the spec holds no such rows out, DataError when rows are faulty or cannot be scored.
    """
    from tuneport.core.data.load import open_rows  # noqa: PLC0415  keeps the readers out of imports of this module

    file, share = getattr(spec.data, part), getattr(spec.data.split, part)
    if file is None and not share:
        fix = f"set data.{part}, or data.split.{part} to e.g. 0.1"
        raise UsageError(f"the spec holds no {part} rows out, so nothing can be measured", fix=fix)
    return build_suite(
        open_rows(spec, part),
        open_rows(spec, "train"),
        source=file or f"{spec.data.train} ({share:.0%} held out)",
        part=part,
        system_prompt=spec.data.system_prompt,
        schema=load_schema(schema) if schema else None,
        task=task,
        label_field=label_field,
        columns=columns,
        fenced=fenced,
        tolerance=tolerance,
        extras=extras,
        primary=primary,
        max_tokens=max_tokens,
        seed=seed,
    )


def build_suite(
    test: Iterable[Row],
    train: Iterable[Row] = (),
    *,
    source: str,
    system_prompt: str | None = None,
    schema: dict[str, Any] | bool | None = None,
    task: Task | None = None,
    label_field: str | None = None,
    columns: Columns = Columns(),
    fenced: bool = False,
    tolerance: float = 0.0,
    extras: tuple[str, ...] = (),
    primary: str | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    part: Literal["test", "validation"] = "test",
) -> EvalSuite:
    """A suite from rows. ``train`` is read once and streamed.

    ``system_prompt`` is put before rows that have none. ``task``, ``label_field``, ``schema``, ``fenced``, ``tolerance``,
    ``extras`` (names of further metrics) and ``primary`` go to ``make_scorer``. ``max_tokens``, unless given, leaves the
    longest expected answer room: half its bytes plus 32, between 64 and 4096 (a token of running text is 3 to 5 bytes).
    """
    rows = list(test)
    if not rows:
        raise DataError(f"{source} holds no test rows", fix="add rows, or raise data.split.test")
    items = tuple(_item(row, system_prompt, columns) for row in rows)
    if columns.context is None and (idle := sorted(NEEDS_CONTEXT.intersection(extras))):
        raise UsageError(f"{', '.join(idle)} compares answers with a context", fix="name the column that holds it: --context-column NAME")
    scorer = make_scorer(
        [item.expected for item in items],
        task=task,
        labelled=all(row.label is not None for row in rows),
        label_field=label_field,
        schema=schema,
        fenced=fenced,
        tolerance=tolerance,
        extras=extras,
        refusals=columns.decline is not None,
        primary=primary,
    )
    prompts = [_prompt_key(item.messages) for item in items]
    together = [_cluster(row, columns.cluster) for row in rows] if columns.cluster else prompts
    codes = {value: code for code, value in enumerate(dict.fromkeys(together))}
    groups, met = _candidates(train, frozenset(prompts), scorer, seed=seed, system_prompt=system_prompt, columns=columns)
    longest = max(len(item.expected.encode("utf-8", "replace")) for item in items)
    return EvalSuite(
        source=source,
        items=items,
        scorer=scorer,
        max_tokens=max_tokens or min(4096, max(64, longest // 2 + 32)),
        sha256=_sha([[list(item.messages), item.expected] for item in items]),
        groups=groups,
        contaminated=tuple(index for index, key in enumerate(prompts) if key in met),
        repeated=len(prompts) - len(set(prompts)),
        clusters=tuple(codes[value] for value in together) if len(codes) < len(items) else (),
        part=part,
    )


def _candidates(
    train: Iterable[Row],
    tested: frozenset[str],
    scorer: Scorer,
    *,
    seed: int,
    system_prompt: str | None,
    columns: Columns,
) -> tuple[tuple[tuple[Item, ...], ...], frozenset[str]]:
    """Few-shot candidates by group, and the test prompts that occur in the training rows.

    Per group, the rows with the smallest seeded hash are kept; that order depends on nothing but contents and seed.
    """
    heaps: dict[str | None, list[tuple[int, Item]]] = {}
    sizes: Counter[str | None] = Counter()
    kept: set[int] = set()
    met = set()
    for row in train:
        question = row.messages[:-1] if row.messages and row.messages[-1].get("role") == "assistant" else row.messages
        prompt = _prompt_key(question)
        if prompt in tested:
            met.add(prompt)
            continue
        try:
            item = _item(row, system_prompt, columns)
        except DataError:  # fit to train on, but with no answer to show: no candidate, as the module's head says
            continue
        group = scorer.label(item.expected) if scorer.has_labels else None
        sizes[group] += 1
        rank = int(_sha([seed, prompt]), 16)
        if rank in kept:
            continue
        heap = heaps.setdefault(group, [])
        heappush(heap, (-rank, item))  # a heap of the largest ranks, so that the largest can leave
        kept.add(rank)
        if len(heap) > SHOTS_PER_GROUP:
            kept.discard(-heappop(heap)[0])
    order = sorted(heaps, key=lambda group: (-sizes[group], group or ""))
    return tuple(tuple(item for _, item in sorted(heaps[group], key=lambda entry: -entry[0])) for group in order), frozenset(met)


def _item(row: Row, system_prompt: str | None, columns: Columns) -> Item:
    asked, expected = _question_and_answer(row, columns.reference)
    if row.tools or any(message.get("tool_calls") or message.get("role") == "tool" for message in asked):
        raise _unusable(row, "uses tools, which an evaluation does not offer to the model", "leave the row out of the test file")
    kept = tuple({key: message[key] for key in _KEPT_KEYS if key in message} for message in asked)
    if system_prompt and not any(map(is_system, kept)):
        kept = ({"role": "system", "content": system_prompt}, *kept)
    return Item(
        messages=kept,
        expected=expected,
        file=row.file,
        line=row.line,
        label=row.label,
        context=_context(row, columns.context),
        should_decline=_should_decline(row, columns.decline),
        columns={name: value for name, value in row.columns.items() if name != columns.reference},
    )


def _context(row: Row, column: str | None) -> str | None:
    """The column's text; a list of passages becomes paragraphs."""
    value = row.columns.get(column) if column else None
    if isinstance(value, list):
        return "\n\n".join(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in value)
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cluster(row: Row, column: str) -> str:
    """Rows that lack the value stand alone."""
    value = row.columns.get(column)
    return f"{row.file}:{row.line}" if value is None else json.dumps(value, sort_keys=True, default=str)


def _should_decline(row: Row, column: str | None) -> bool | None:
    value = row.columns.get(column) if column else None
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().casefold()
    if word in _YES or word in _NO:
        return word in _YES
    raise _unusable(row, f"says {value!r} in column {column!r}, which is neither yes nor no", "write true or false")


def _question_and_answer(row: Row, reference: str | None) -> tuple[Sequence[Message], str]:
    if row.kind == "preference" and row.chosen is not None:
        return row.messages, _text(row, row.chosen)
    if row.kind == "text" or not row.messages:
        raise _unusable(row, "has no question and answer", "measure on chat, prompt/completion, instruction, label or preference rows")
    last = row.messages[-1]
    if row.kind == "unpaired_preference" and row.desirable is False:
        raise _unusable(row, "holds an undesirable answer, so the expected one is unknown", "keep only desirable rows in the test file")
    if last.get("role") == "assistant":
        return row.messages[:-1], _text(row, last)
    if reference is None or reference not in row.columns:
        columns = ", ".join(map(str, row.columns)) or "no further columns"
        raise _unusable(row, "ends without an answer", f"name the column that holds the expected answer (the row has: {columns})")
    value = row.columns[reference]
    return row.messages, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(row: Row, message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        return content
    if isinstance(content, list) and content and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if message.get("tool_calls"):
        raise _unusable(row, "expects a tool call, which cannot be scored", "leave such rows out of the test file")
    raise _unusable(row, "expects an answer without text", "give the answer as text, or leave the row out")


def _unusable(row: Row, what: str, fix: str) -> DataError:
    return DataError(f"{row.file}:{row.line} {what}", fix=fix)


def _prompt_key(turns_of: Sequence[Message]) -> str:
    """Equal for prompts that differ in case, spacing or system prompt only."""
    turns = [m for m in turns_of if not is_system(m)]
    return _sha([[m.get("role"), normalise(text) if isinstance(text := m.get("content"), str) else text] for m in turns])


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
