"""A job's rows as tokens: one reader for every method. What each method sees of a row stands in the dataclasses here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneport.core.errors import DataError
from tuneport.local_backend.chat import Encoded, encode, encode_answer, encode_text, prompt_ids
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.records import read_records

LISTED_ROWS = 5


@dataclass(frozen=True, slots=True)
class Pair:
    """dpo, orpo, simpo: one prompt and two answers to it; the answers' tokens carry loss."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of the longer conversation."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def trained(self) -> int:
        """Tokens with loss."""
        return len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class Judged:
    """kto: one answer, good or bad."""

    prompt_ids: list[int]
    completion_ids: list[int]
    desirable: bool

    @property
    def tokens(self) -> int:
        """Tokens of the conversation."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def trained(self) -> int:
        """Tokens with loss."""
        return len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class Task:
    """rft: a prompt that the model answers, and what the grader needs to judge the answer."""

    prompt_ids: list[int]
    item: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def trained(self) -> int:
        """No token of the row itself carries loss."""
        return 0


Sequence = Encoded | Pair | Judged | Task


@dataclass(slots=True)
class Rows:
    """All sequences of one file, and what should be told about them: (level, message)."""

    sequences: list[Any] = field(default_factory=list)  # of one of the kinds above
    notes: list[tuple[str, str]] = field(default_factory=list)


def longest_row(config: TrainConfig, own: int | None) -> int | None:
    """Tokens that a row may have, or None when nothing is known: what the configuration says, and at most ``own``, the model's own
    limit, in which virtual tokens and the answers that rft draws have their place too.
    """
    taken = (config.adapter.virtual_tokens or 0) + (config.rewards.max_output_tokens if config.rewards else 0)
    asked = (config.max_seq_length, config.rewards.max_prompt_length if config.rewards else None)
    limits = [limit for limit in (*asked, own - taken if own is not None else None) if limit is not None]
    return max(0, min(limits)) if limits else None


def read_rows(file: Path, role: str, config: TrainConfig, tokenizer: Any, stops: frozenset[int], limit: int | None) -> Rows:
    """Every row of the file as tokens. ``limit``: tokens that one may have (``longest_row``); None: unknown.

    Raises DataError for rows that the template refuses or that are too long, naming their places.
    """
    rows = Rows()
    if not file.exists():
        return rows
    long: list[tuple[str, int]] = []
    added = 0
    for where, record in read_records(file):
        try:
            for sequence in _sequences(record, config, tokenizer, stops, limit):
                rows.sequences.append(sequence)
                if limit is not None and sequence.tokens > limit:
                    long.append((where, sequence.tokens))
                added += isinstance(sequence, Encoded) and sequence.added_end
        except DataError as error:
            raise DataError(f"{where}: {error.what}", fix=error.fix) from error
    if long:
        listed = ", ".join(f"{where} ({tokens} tokens)" for where, tokens in long[:LISTED_ROWS])
        setting = "reinforcement.max_prompt_length" if config.rewards else "training.max_seq_length"
        raise DataError(
            f"{len(long)} {role} rows are longer than {limit} tokens: {listed}{', ...' if len(long) > LISTED_ROWS else ''}",
            fix=f"shorten or remove them, or raise {setting} up to the model's own limit; none is cut in silence",
        )
    if added:
        rows.notes.append(("warning", f"the chat template ends answers without a stop token; {tokenizer.eos_token} was added"))
    total, trained = sum(row.tokens for row in rows.sequences), sum(row.trained for row in rows.sequences)
    carried = f", {trained:,} of them carry loss" if config.method != "rft" else " in the prompts"
    rows.notes.append(("info", f"{len(rows.sequences)} {role} sequences, {total:,} tokens{carried}"))
    return rows


def _sequences(record: dict[str, Any], config: TrainConfig, tokenizer: Any, stops: frozenset[int], limit: int | None) -> Iterator[Sequence]:
    tools = record.get("tools", ())

    def answered(messages: list[dict[str, Any]]) -> tuple[list[int], int]:
        row, start = encode_answer(tokenizer, messages, tools, stops)
        return row.input_ids, start

    if config.method == "cpt":
        yield from encode_text(tokenizer, record["text"], limit or len(record["text"]) + 2)
    elif config.method == "rft":
        yield Task(prompt_ids(tokenizer, record["messages"], tools), record["item"])
    elif config.method == "kto":
        ids, start = answered(record["messages"])
        yield Judged(ids[:start], ids[start:], record["desirable"])
    elif config.method in ("dpo", "orpo", "simpo"):
        chosen, one = answered([*record["messages"], record["chosen"]])
        rejected, other = answered([*record["messages"], record["rejected"]])
        start = min(one, other)  # they differ where a token spans the border between prompt and answer
        yield Pair(chosen[:start], chosen[start:], rejected[start:])
    else:
        yield from encode(tokenizer, record["messages"], tools, loss_on=config.loss_on, stops=stops)
