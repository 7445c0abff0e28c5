"""``tuneport prepare``: every change is counted, nothing leaks between parts, and the same input gives the same bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneport.core.data.card import DataCard
from tuneport.core.data.check import check_data, check_files
from tuneport.core.data.mend import MENDS, Mender
from tuneport.core.data.prepare import PrepareOptions, options_of, prepare
from tuneport.core.data.redact import Redactor
from tuneport.core.data.rows import Row
from tuneport.core.errors import DataError, TuneportError, UsageError

DRAW = random.Random(3)
VOCABULARY = [f"w{number}" for number in range(3_000)]


def text(words: int = 30) -> str:
    return " ".join(DRAW.choices(VOCABULARY, k=words))


def chat(question: str, answer: str = "a", **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(tmp_path: Path, rows: list[Any], out: str = "out", **options: Any) -> tuple[DataCard, Path]:
    source = write(tmp_path / "rows.jsonl", rows)
    return prepare(source, tmp_path / out, PrepareOptions(**options)), tmp_path / out


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


CLASSES = [{"text": f"{text()} a{n}@corp.com", "label": "rare" if n % 5 == 0 else "common", "user": f"u{n % 20}"} for n in range(200)]


@pytest.mark.parametrize("by", ["random", "label", "group", "time", "hard"])
def test_the_same_input_gives_the_same_bytes_and_the_hashes_are_true(tmp_path: Path, by: str) -> None:
    rows = [{**row, "at": f"2026-01-{n % 28 + 1:02}"} for n, row in enumerate(CLASSES)] + ["{broken"]
    options: dict[str, Any] = {"validation": 0.1, "test": 0.1, "by": by, "column": {"group": "user", "time": "at"}.get(by)}
    options |= {"dedupe": "near", "redact": ("all",), "review": 10, "balance": "up", "file_type": "jsonl.gz"}
    card, out = run(tmp_path, rows, **options)
    again, other = run(tmp_path, rows, out="other", **options)
    assert tree(out) == tree(other) and card == again
    for file in card.files:
        assert file.sha256 == hashlib.sha256((out / file.name).read_bytes()).hexdigest()
    assert card.inputs[0].sha256 == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
    assert DataCard.model_validate_json((out / "card.json").read_text()) == card
    assert (out / "card.md").read_text() == card.markdown()
    assert card.rejected == {"malformed_row": 1}
    assert {part.part for part in card.parts} == {"train", "validation", "test"}
    assert sum(part.rows for part in card.parts) - card.repeated == 200
    reports = check_files(*(str(out / f"{part}.jsonl.gz") for part in ("train", "validation", "test")))
    assert not [f.code for report in reports.values() for f in report.findings if "overlap" in f.code and "passage" not in f.code]


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    one, _ = run(tmp_path, CLASSES, out="one", test=0.2)
    two, _ = run(tmp_path, CLASSES, out="two", test=0.2, seed=1)
    assert one.files[0].sha256 != two.files[0].sha256


def test_a_hard_test_set_is_harder_and_keeps_the_classes(tmp_path: Path) -> None:
    card, _ = run(tmp_path, CLASSES, test=0.1, by="hard")
    train, test = card.parts
    assert test.difficulty is not None and train.difficulty is not None
    assert test.difficulty > 0.7 > train.difficulty
    assert test.rows == 20 and 1 <= test.classes["rare"] <= 8


def test_equal_inputs_and_near_duplicates_stay_in_one_part(tmp_path: Path) -> None:
    rows = []
    for _ in range(60):
        question = text(40)
        rows += [chat(question, "one"), chat(question, "two"), chat(f"{question} more", "one")]
    _, out = run(tmp_path, rows, test=0.3, validation=0.1)
    places: dict[str, set[str]] = {}
    for part in ("train", "validation", "test"):
        for row in read(out / f"{part}.jsonl"):
            places.setdefault(" ".join(row["messages"][0]["content"].split()[:40]), set()).add(part)
    assert len(places) == 60
    assert all(len(parts) == 1 for parts in places.values())


@pytest.mark.parametrize("by", ["random", "label", "hard"])
@pytest.mark.parametrize("seed", range(4))
def test_rows_of_one_input_are_drawn_whole_and_no_part_is_empty_without_a_word(tmp_path: Path, by: str, seed: int) -> None:
    style = [chat("Write a product description", text()) for _ in range(40)]
    labelled = {"column": "kind", "class_column": "kind"} if by == "label" else {}
    rows = [{**row, "kind": f"k{n % 2}"} for n, row in enumerate(style)]
    with pytest.raises(DataError, match=r"40 rows in 1 group of one input .* too few to split.*: no test row is left"):
        run(tmp_path, rows, test=0.1, by=by, seed=seed, **labelled)
    assert tree(tmp_path / "out") == {}
    singles = [{**chat(text(), text()), "kind": f"k{n % 2}"} for n in range(160)]
    card, _ = run(tmp_path, [*rows, *singles], test=0.1, validation=0.05, by=by, seed=seed, **labelled)
    assert {part.part: part.rows for part in card.parts} == {"train": 170, "validation": 10, "test": 20}


@pytest.mark.parametrize("lines", [1_990, 2_010], ids=["shrunk", "grown"])
def test_a_source_that_changes_between_the_passes_is_named(tmp_path: Path, lines: int) -> None:
    rows = [chat(f"q{n}") for n in range(lines)]
    source = write(tmp_path / "rows.jsonl", rows[:1] * 2_000)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(source, tmp_path / "out", PrepareOptions(), on_progress=lambda *_: write(tmp_path / "rows.jsonl", rows))
    assert tree(tmp_path / "out") == {}


def test_duplicates_are_removed_and_counted(tmp_path: Path) -> None:
    one, two = text(50), text(50)
    rows = [chat(one), chat(one), chat(f"{one} more"), chat(two)]
    assert run(tmp_path, rows)[0].parts[0].rows == 4
    assert run(tmp_path, rows, dedupe="exact")[0].removed == {"exact duplicates": 1}
    card, out = run(tmp_path, rows, dedupe="near")
    assert card.removed == {"exact duplicates": 1, "near duplicates": 1}
    assert [row["messages"][0]["content"] for row in read(out / "train.jsonl")] == [one, two]


def test_rows_of_a_benchmark_are_left_out(tmp_path: Path) -> None:
    bench = [text(60) for _ in range(4)]
    passage = " ".join(bench[3].split()[20:40])
    given = write(tmp_path / "bench.jsonl", [chat(question) for question in bench])
    questions = [bench[0], bench[1].upper() + "!", f"{bench[2]} more", f"{text(80)} {passage} {text(80)}", text(60)]
    rows = [chat(question) for question in questions]
    card, _ = run(tmp_path, rows, exclude=(given,))
    assert card.removed == {"in bench.jsonl, which is excluded": 4}
    assert [file.name for file in card.inputs] == ["rows.jsonl", "bench.jsonl"]
    (tmp_path / "more").mkdir()
    more = write(tmp_path / "more" / "bench.jsonl", [chat(questions[4])])
    both, _ = run(tmp_path, [*rows, chat(text(60))], out="both", exclude=(given, more))
    assert both.removed == {"in bench.jsonl, which is excluded": 5}  # of both files


def test_classes_are_capped_and_balanced(tmp_path: Path) -> None:
    capped, _ = run(tmp_path, CLASSES, out="cap", cap=50)
    assert capped.parts[0].classes == {"common": 50, "rare": 40}
    down, _ = run(tmp_path, CLASSES, out="down", balance="down")
    assert down.parts[0].classes == {"common": 40, "rare": 40}
    up, out = run(tmp_path, CLASSES, out="up", balance="up", test=0.1, by="label")
    train, test = up.parts
    assert train.classes["common"] == train.classes["rare"] == train.rows / 2
    assert up.repeated == train.rows + test.rows - 200
    assert len(read(out / "train.jsonl")) == train.rows


def test_general_rows_are_mixed_in_evenly(tmp_path: Path) -> None:
    general = write(tmp_path / "general.jsonl", [chat(f"general {n}") for n in range(500)])
    card, out = run(tmp_path, [chat(text()) for _ in range(300)], mix=general, mix_share=0.25, test=0.1)
    train = read(out / "train.jsonl")
    marks = [row["messages"][0]["content"].startswith("general") for row in train]
    assert card.mixed_in == sum(marks) == 90 and len(train) == 360
    assert not any(row["messages"][0]["content"].startswith("general") for row in read(out / "test.jsonl"))
    assert all(10 <= sum(marks[at : at + 90]) <= 35 for at in range(0, 360, 90))
    few, _ = run(tmp_path, [chat(text()) for _ in range(300)], out="few", mix=write(tmp_path / "few.jsonl", [chat("g")] * 3))
    assert few.mixed_in == 3 and "fewer than the 100" in few.notes[0]


def test_general_rows_bring_in_nothing_that_is_excluded_or_held_out(tmp_path: Path) -> None:
    rows, bench = [chat(text(40)) for _ in range(100)], [chat(text(40)) for _ in range(3)]
    fresh = [chat(text(40), "see [EMAIL_4], a@corp.com") for _ in range(20)]
    near = chat(f"{rows[7]['messages'][0]['content']} more")
    exclude = write(tmp_path / "bench.jsonl", bench)
    mix = write(tmp_path / "general.jsonl", [*rows[:30], near, bench[0], chat(bench[1]["messages"][0]["content"].upper()), *fresh])
    options: dict[str, Any] = {"mix": mix, "mix_share": 0.5, "exclude": (exclude,), "redact": ("all",), "redaction_map": f"{tmp_path}/map"}
    for by in ({"by": "random"}, {"by": "time", "column": "at"}):
        card, out = run(tmp_path, [{**row, "at": n} for n, row in enumerate(rows)], out=by["by"], test=0.2, **options, **by)
        assert card.removed == {"general rows in bench.jsonl, which is excluded": 2, "general rows that rows.jsonl has too": 31}
        assert card.mixed_in == 20 and "fewer than the 80" in card.notes[0]
        reports = check_files(str(out / "train.jsonl"), test=str(out / "test.jsonl"))
        assert not [finding.code for finding in reports["test"].findings if "overlap" in finding.code]
        assert json.loads((tmp_path / "map").read_text()) == {"[EMAIL_5]": "a@corp.com"}  # a number in use is not given again
    whole, _ = run(tmp_path, rows, out="whole", **options)  # nothing is held out: rows that training has too are nobody's leak
    assert whole.removed == {"general rows in bench.jsonl, which is excluded": 2} and whole.mixed_in == 51


def undone(text: str, key: dict[str, str]) -> str:
    return re.sub(r"\[[A-Z_]+_\d+\]", lambda found: key.get(found[0], found[0]), text)


def test_redaction_is_consistent_and_can_be_undone(tmp_path: Path) -> None:
    rows = [chat(f"I am a{n % 3}@corp.com, see [EMAIL_7]", "call +49 30 901820", note="b@corp.com") for n in range(6)]
    key = tmp_path / "key" / "map.json"
    with pytest.raises(TuneportError, match="folder does not exist"):
        run(tmp_path, rows, redact=("all",), redaction_map=str(key))
    key.parent.mkdir()
    card, out = run(tmp_path, rows, redact=("all",), redaction_map=str(key))
    written = (out / "train.jsonl").read_text()
    assert "corp.com" not in written and "901820" not in written
    assert card.redacted == {"email": 12, "phone": 6}
    assert "[EMAIL_8]" in written  # numbers in use are not given again
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [json.loads(line) for line in undone(written, json.loads(key.read_text())).splitlines()] == rows
    assert "map.json" not in (out / "card.json").read_text()
    with pytest.raises(UsageError, match="apart"):
        run(tmp_path, rows, redact=("all",), redaction_map=str(out / "map.json"))
    with pytest.raises(UsageError, match="no kind of personal data"):
        run(tmp_path, rows, redact=("shoe-size",))


pieces = st.sampled_from(["a@corp.com", "b@corp.com", " ", "[EMAIL_1]", "[EMAIL_3]", "x", "8.8.8.8", "[IP_1]"])


@given(st.lists(pieces, max_size=12).map(" ".join))
def test_any_redaction_can_be_undone(given_text: str) -> None:
    redactor = Redactor()
    redactor.reserve(given_text)
    hidden = redactor.redact(given_text)
    assert "@" not in hidden and "8.8.8.8" not in hidden
    assert undone(hidden, redactor.map) == given_text


def test_nothing_that_was_redacted_stands_in_the_card_or_the_sheet(tmp_path: Path) -> None:
    rows = [chat(f"whose order is {n}?", f"a{n % 20}@corp.com", owner=f"b{n % 2}@corp.com") for n in range(100)]
    for out, column in (("answers", None), ("column", "owner")):
        card, folder = run(tmp_path, rows, out=out, redact=("all",), review=10, test=0.2, class_column=column)
        assert not [path.name for path in folder.iterdir() if "corp.com" in path.read_text()]
        assert sum(sum(part.classes.values()) for part in card.parts) == 100
        assert {name for part in card.parts for name in part.classes} >= {"[EMAIL_1]" if column is None else "[EMAIL_2]"}


def test_every_text_of_a_row_is_redacted_and_the_format_is_kept() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "mail", "arguments": '{"id": "a@corp.com"}'}}
    picture = f"data:image/png;base64,{'A' * 20}=="
    content = [{"type": "text", "text": "data:image/ of a@corp.com"}, {"type": "image_url", "image_url": {"url": picture}}]
    messages = ({"role": "user", "content": content}, {"role": "assistant", "content": "", "tool_calls": [call]})
    properties = {"id": {"type": "string", "default": "a@corp.com"}}
    tool = {"type": "function", "function": {"name": "mail", "parameters": {"properties": properties}}}
    columns = {"user": {"id": "a@corp.com", "type": "b@corp.com", "name": "c@corp.com"}, "raw": "data:image/png;base64, d@corp.com"}
    row = Redactor().row(Row("chat", "f", 1, messages, tools=(tool,), columns=columns))
    assert "@" not in repr(row)
    assert row.messages[1]["tool_calls"] == [{**call, "function": {"name": "mail", "arguments": '{"id": "[EMAIL_1]"}'}}]
    assert row.messages[0]["content"][1] == content[1]
    assert row.tools[0]["function"]["parameters"]["properties"]["id"] == {"type": "string", "default": "[EMAIL_1]"}


def test_labels_are_not_redacted() -> None:
    messages = ({"role": "user", "content": "mail a@corp.com"}, {"role": "assistant", "content": "b@corp.com"})
    row = Row("chat", "f", 1, messages, label="b@corp.com")
    assert [message["content"] for message in Redactor().row(row).messages] == ["mail [EMAIL_1]", "b@corp.com"]


def test_answers_and_raw_texts_keep_their_indentation(tmp_path: Path) -> None:
    code, kept = "    return x\n", "    return x"
    rows = [
        {"prompt": f" {code}", "completion": code},
        {"prompt": " q ", "chosen": code, "rejected": code},
        {"instruction": " q ", "output": code},
        {"messages": [{"role": "user", "content": code}, {"role": "assistant", "content": code}]},
        {"text": code},
    ]
    assert [Mender().mend(row) for row in rows] == [
        {"prompt": "return x", "completion": kept},
        {"prompt": "q", "chosen": kept, "rejected": kept},
        {"instruction": "q", "output": kept},
        {"messages": [{"role": "user", "content": "return x"}, {"role": "assistant", "content": kept}]},
        {"text": kept},
    ]
    assert Mender().mend({"text": "q", "label": " yes "}) == {"text": "q", "label": "yes"}


def test_what_has_one_right_answer_is_mended(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "User", "content": " q\r\nr "}, {"role": "bot", "content": "a\u200b"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "thanks"}]},
        {"messages": [{"role": "system", "content": " "}, {"role": "user", "content": "cafÃ©"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "unanswered"}]},
    ]
    card, out = run(tmp_path, rows)
    found = [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in read(out / "train.jsonl")]
    assert found == [
        [("user", "q"), ("assistant", "a")],
        [("user", "q\nr"), ("assistant", "a")],
        [("user", "q\n\nr"), ("assistant", "a")],
        [("user", "q"), ("assistant", "a")],
        [("user", "café"), ("assistant", "a")],
    ]
    assert len(card.mended) == len(MENDS)
    assert card.rejected == {"last_turn": 1}
    assert read(out / "rejected.jsonl")[0]["line"] == 6
    untouched, _ = run(tmp_path, rows[3:4] * 2 + [chat("q")], out="raw", mends=())
    assert untouched.mended == {} and untouched.rejected == {"last_turn": 2}


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["messages", "conversations", "prompt", "chosen", "input", "text", "label", "other"]),
        st.recursive(
            st.none() | st.text(max_size=6) | st.integers(),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "messages", "tool_calls"]), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_mending_never_fails_changes_nothing_in_place_and_settles(value: dict[str, Any]) -> None:
    before = json.dumps(value)
    once = Mender().mend(value)
    assert json.dumps(value) == before
    assert Mender().mend(once) == once


def test_the_production_prompt_is_put_in(tmp_path: Path) -> None:
    rows = [chat("q"), {"messages": [{"role": "system", "content": "old"}, *chat("r")["messages"]]}]
    kept = read(run(tmp_path, rows, system_prompt="new")[1] / "train.jsonl")
    assert [row["messages"][0]["content"] for row in kept] == ["new", "old"]
    replaced = read(run(tmp_path, rows, system_prompt="new", replace_system_prompt=True)[1] / "train.jsonl")
    assert [row["messages"][0]["content"] for row in replaced] == ["new", "new"]


@pytest.mark.parametrize("to", ["chat", "prompt_completion", "instruction", "classification"])
@pytest.mark.parametrize("file_type", ["jsonl", "json", "csv", "parquet", "jsonl.zst"])
def test_formats_and_kinds_of_file(tmp_path: Path, to: str, file_type: str) -> None:
    card, out = run(tmp_path, CLASSES[:20], to=to, file_type=file_type)
    (file,) = card.files
    assert (file.name, file.shape, file.rows, file.refused) == (f"train.{file_type}", to, 20, {})
    again = prepare(str(out / file.name), tmp_path / "again", PrepareOptions(to="chat"))
    assert again.parts[0].rows == 20


def test_rows_that_a_shape_refuses_are_counted_not_dropped_silently(tmp_path: Path) -> None:
    weighted = {**chat("q"), "weight": 2}
    tools = {**chat("r"), "tools": [{"type": "function", "function": {"name": "f"}}]}

    def plain(row: Row) -> dict[str, Any]:
        if row.weight is not None:
            raise DataError(f"{row.file}:{row.line} has a weight of {row.weight:g}", fix="remove it")
        return {"said": [message["content"] for message in row.messages]}

    source = write(tmp_path / "rows.jsonl", [chat("p"), weighted, tools])
    card = prepare(source, tmp_path / "out", PrepareOptions(shapes=("plain",), to="prompt_completion"), converters={"plain": plain})
    own, vendor = card.files
    assert (own.rows, own.refused) == (2, {"has a weight, and the format has none for a row": 1})
    assert (vendor.name, vendor.rows, vendor.refused) == ("train.plain.jsonl", 2, {"has a weight of 2": 1})
    assert read(tmp_path / "out" / "train.plain.jsonl")[0] == {"said": ["p", "a"]}
    assert [(row["line"], row["shape"]) for row in read(tmp_path / "out" / "rejected.jsonl")] == [(2, "prompt_completion"), (2, "plain")]


def test_pairs_become_judged_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(5)]
    card, out = run(tmp_path, rows, method="dpo", to="unpaired_preference")
    assert card.files[0].rows == 10
    assert [row["label"] for row in read(out / "train.jsonl")[:2]] == [True, False]


def test_a_review_sheet_is_even_over_the_classes_and_holds_no_formulas(tmp_path: Path) -> None:
    _, out = run(tmp_path, [*CLASSES, {"text": "=1+1", "label": "=cmd"}], review=9)
    with (out / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    classes = [row["class"] for row in rows]
    assert {name: classes.count(name) for name in set(classes)} == {"common": 4, "rare": 4, "'=cmd": 1}


def test_no_file_is_left_empty(tmp_path: Path) -> None:
    def pair(row: Row) -> dict[str, Any]:
        raise DataError(f"{row.file}:{row.line} has no pair of answers", fix="")

    with pytest.raises(DataError, match=r"none of the 9 rows for train\.jsonl can be written as preference \(9 × is a chat row") as caught:
        run(tmp_path, CLASSES[:9], to="preference")
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match=r"none of the 9 rows for train\.pairs\.jsonl .* \(9 × has no pair of answers\)"):
        prepare(str(tmp_path / "rows.jsonl"), tmp_path / "out", PrepareOptions(shapes=("pairs",)), converters={"pairs": pair})
    assert tree(tmp_path / "out") == {}


def test_an_earlier_run_is_replaced_whole_and_other_files_are_left_alone(tmp_path: Path) -> None:
    shape = {"said": lambda row: {"text": row.messages[0]["content"]}}
    source = write(tmp_path / "rows.jsonl", [*CLASSES[:40], "{broken"])
    prepare(source, tmp_path / "out", PrepareOptions(test=0.2, shapes=("said",), review=5), converters=shape)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    card, out = run(tmp_path, CLASSES[:40], seed=1)  # no split: an old test set beside it would be leakage
    assert set(tree(out)) == {"train.jsonl", "rejected.jsonl", "card.json", "card.md", "notes.txt"}
    assert card.aside == {"rejected.jsonl": tree(out)["rejected.jsonl"]}

    kept = tree(out)
    for name, why in (("test.jsonl", "is not of an earlier prepare"), ("train.jsonl", "was changed since prepare wrote it")):
        (out / name).write_text("{}")
        with pytest.raises(UsageError, match=f"{name} {why}"):
            run(tmp_path, CLASSES[:40])
        (out / name).unlink()
    assert set(kept) - set(tree(out)) == {"train.jsonl"}
    (out / "card.json").unlink()
    with pytest.raises(UsageError, match=r"card\.md is not of an earlier"):
        run(tmp_path, CLASSES[:40])


def test_a_row_has_one_fate_in_the_words_of_check(tmp_path: Path) -> None:
    silent = {"messages": [{"role": "user", "content": " q "}, {"role": "assistant", "content": " "}]}
    later = {"messages": [*chat("a", "b")["messages"], {"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}
    card, out = run(tmp_path, [chat("p"), silent, later])
    assert card.mended == {"questions after the last answer were removed": 1, "turns without content were removed": 1}  # of the last row
    assert card.rejected == {"empty_turn": 1} and card.parts[0].rows == 2
    (told,) = read(out / "rejected.jsonl")
    found = check_data(write(tmp_path / "silent.jsonl", [chat("p"), silent])).findings
    assert found[0].message.endswith(told["reason"])


def test_options_are_refused_in_one_plain_sentence() -> None:
    for options, says in (
        ({"file_type": "xml"}, "--file-type 'xml' is not known; choose one of jsonl, jsonl.gz"),
        ({"dedupe": "x"}, "--dedupe 'x' is not known; choose one of none, exact or near"),
        ({"by": "time"}, "a split by time needs --column"),
        ({"by": "hard"}, "--by is set, but nothing is held out; set --test"),
        ({"near": 3}, "--near 3 is out of bounds; it should be less than or equal to 1"),
        ({"dedup": "near"}, "there is no option --dedup; choose from method"),
    ):
        with pytest.raises(UsageError) as caught:
            options_of(options, lambda name: f"--{name.replace('_', '-')}")
        assert str(caught.value).startswith(says)


@pytest.mark.parametrize(("umask", "source", "made"), [(0o22, 0o644, 0o644), (0o77, 0o644, 0o600), (0o2, 0o640, 0o640), (0, 0o400, 0o600)])
def test_nobody_may_read_more_than_the_source_and_the_umask_allow(tmp_path: Path, umask: int, source: int, made: int) -> None:
    path = Path(write(tmp_path / "rows.jsonl", [*CLASSES[:40], "{broken"]))
    path.chmod(source)
    before = os.umask(umask)
    try:
        prepare(str(path), tmp_path / "out", PrepareOptions(test=0.2, review=5))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(("train.jsonl", "test.jsonl", "rejected.jsonl", "review.csv", "card.json", "card.md"), made)


def test_a_crash_leaves_the_old_files(tmp_path: Path) -> None:
    _, out = run(tmp_path, CLASSES[:10])
    before = tree(out)

    def broken(row: Row) -> dict[str, Any]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prepare(str(tmp_path / "rows.jsonl"), out, PrepareOptions(shapes=("x",), seed=1), converters={"x": broken})
    assert tree(out) == before


def test_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no record shape"):
        run(tmp_path, CLASSES[:3], shapes=("nobody-chat",))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        run(tmp_path, CLASSES[:3], out="file")
    with pytest.raises(TuneportError, match="none does not exist"):
        run(tmp_path, CLASSES[:3], out="none/out")
    with pytest.raises(UsageError, match="lies in the output folder"):
        prepare(write(tmp_path / "t.jsonl", CLASSES[:3]), tmp_path, PrepareOptions())
    with pytest.raises(DataError, match="no good row"):
        run(tmp_path, [{"messages": []}] * 3)
    with pytest.raises(DataError, match="cannot be split by time"):
        run(tmp_path, CLASSES[:30], test=0.2, by="time", column="user")
    with pytest.raises(ValueError, match="needs `column`"):
        PrepareOptions(by="group")


odd_lines = st.sampled_from([b'{"prompt": "q", "completion": "a"}', b'{"text": "x", "label": 1}'])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=60) | odd_lines, max_size=6))
def test_any_file_is_prepared_or_raises_data_error(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "t.jsonl").write_bytes(b"\n".join(lines))
    try:
        card = prepare(str(folder / "t.jsonl"), folder / "out", PrepareOptions(dedupe="near", redact=("all",)))
    except DataError:
        return
    assert card.parts[0].rows >= 1
