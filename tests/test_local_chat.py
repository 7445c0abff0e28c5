"""Which tokens carry loss, proven by decoding them, for the chat templates of several families."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tuneport.core.errors import DataError, ProviderError
from tuneport.local_backend.chat import IGNORED, Encoded, encode, prompt_ids, stop_tokens
from tuneport.local_backend.config import TrainConfig
from tuneport.local_backend.models import load_tokenizer
from tuneport.local_backend.sequences import read_rows
from tuneport.tests.local_tiny import CHATML, write_tokenizer

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (  # Llama 2 and Mistral: no generation prompt, the answer follows [/INST]
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # Qwen3 and others: reasoning of earlier turns is dropped
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}{% set said = m['content'].split('</think>')[-1] %}"
    "{% else %}{% set said = m['content'] %}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDLESS = (  # puts no stop token behind an answer
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be brief."}
ASK, SAY = {"role": "user", "content": "Grüße 🏔️?"}, {"role": "assistant", "content": "Ja, 42 <ok>\nende"}
MORE, LAST = {"role": "user", "content": "und?"}, {"role": "assistant", "content": "nein"}


TEMPLATES = Path(__file__).with_name("chat_templates")
FAMILIES = {  # template -> (eos, bos, the conversation below with [[what is trained]])
    "chatml": (
        "<|im_end|>", None,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Yo<|im_end|>]]\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n[[No.<|im_end|>]]",
    ),
    "llama3": (
        "<|eot_id|>", "<|begin_of_text|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "[[Yo<|eot_id|>]]<|start_header_id|>user<|end_header_id|>\n\nSo?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "[[No.<|eot_id|>]]",
    ),
    "mistral": ("</s>", "<s>", "<s>[INST] Hi[/INST][[ Yo</s>]][INST] So?[/INST][[ No.</s>]]"),
    "gemma": (
        "<eos>", "<bos>",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n[[Yo<end_of_turn>]]\n"
        "<start_of_turn>user\nSo?<end_of_turn>\n<start_of_turn>model\n[[No.<end_of_turn>]]",
    ),
}  # fmt: skip
TALK = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "So?"}, {"role": "assistant", "content": "No."},
]  # fmt: skip


def tokenizer(folder: Path, template: str | None, eos: str = "<|im_end|>", bos: str | None = None) -> Any:
    write_tokenizer(folder, template, eos, bos)
    return load_tokenizer(str(folder))


def trained(of: Any, row: Encoded) -> str:
    """The text of the labelled tokens; labels must equal the inputs there."""
    assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))
    return str(of.decode([label for label in row.labels if label != IGNORED]))


def family(name: str, folder: Path) -> Any:
    eos, bos, _ = FAMILIES[name]
    return tokenizer(folder, (TEMPLATES / f"{name}.jinja").read_text(), eos, bos)


def marked(of: Any, ids: list[int], trained: list[bool]) -> str:
    """Every token decoded alone, the trained ones between [[ and ]]."""
    text, inside = "", False
    for token, learns in zip(ids, trained, strict=True):
        text += ("[[" if learns else "]]") * (learns != inside) + of.decode([token])
        inside = learns
    return text + "]]" * inside


@pytest.mark.parametrize("name", FAMILIES)
def test_token_by_token_only_the_answers_and_their_stop_tokens_are_trained(name: str, tmp_path: Path) -> None:
    of = family(name, tmp_path)
    (row,) = encode(of, TALK, (), loss_on="completions", stops=stop_tokens(of))
    assert marked(of, row.input_ids, [label != IGNORED for label in row.labels]) == FAMILIES[name][2]
    assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_token_by_token_preferences_train_the_last_answer_alone(name: str, method: str, tmp_path: Path) -> None:
    """Through the very collators and columns that TRL's trainers read."""
    of = family(name, tmp_path)
    first, _, last = FAMILIES[name][2].replace("[[", "", 1).replace("]]", "", 1).partition("[[")
    worse = last.replace("No.", "Nope")
    chosen, rejected = TALK[-1], {"role": "assistant", "content": "Nope"}
    record = {"messages": TALK[:-1], "chosen": chosen, "rejected": rejected}
    if method == "kto":
        record = {"messages": TALK, "desirable": True}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    config = TrainConfig.model_construct(method=method, rewards=None)
    (row,) = read_rows(tmp_path / "train.jsonl", "train", config, of, stop_tokens(of), None).sequences
    assert marked(of, *seen_by_trl(row, method)[0]) == f"{first}[[{last}"
    if method != "kto":
        assert marked(of, *seen_by_trl(row, method)[1]) == f"{first}[[{worse}"


@pytest.mark.parametrize(
    ("name", "ahead"),
    [
        ("chatml", "<|im_start|>system\nBe brief.<|im_end|>\n"),
        ("llama3", "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"),
        ("mistral", ""),  # puts the system's words into the last question, so that each answer is a sequence of its own
    ],
)
def test_token_by_token_a_system_message_carries_no_loss(name: str, ahead: str, tmp_path: Path) -> None:
    of = family(name, tmp_path)
    rows = encode(of, [SYSTEM, *TALK], (), loss_on="completions", stops=stop_tokens(of))
    seen = [marked(of, row.input_ids, [label != IGNORED for label in row.labels]) for row in rows]
    if name == "mistral":
        first = "<s>[INST] Be brief.\n\nHi[/INST][[ Yo</s>]]"
        assert seen == [first, "<s>[INST] Hi[/INST] Yo</s>[INST] Be brief.\n\nSo?[/INST][[ No.</s>]]"]
    else:
        bos = FAMILIES[name][1] or ""
        assert seen == [ahead + FAMILIES[name][2].removeprefix(bos)]


def published(name: str, folder: Path, eos: str) -> Any:
    """A tokenizer with a template as its family published it; TRL carries them."""
    trl = find_spec("trl")
    assert trl is not None and trl.submodule_search_locations
    return tokenizer(folder, (Path(trl.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text(), eos, "<s>")


ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}


def sums(arguments: Any) -> list[dict[str, Any]]:
    """A conversation with a tool, whose ``arguments`` are an object or, as OpenAI has it, JSON in a string."""
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return [
        {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "name": "add", "tool_call_id": "abcdefghi"}, {"role": "assistant", "content": "Two."},
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [{"a": "é"}, '{"a": "é"}'], ids=["object", "string"])
@pytest.mark.parametrize(
    ("name", "eos", "call"),
    [
        ("qwen2_5", "<|im_end|>", '<tool_call>\n{"name": "add", "arguments": {"a": "é"}}\n</tool_call>'),
        ("llama3_1", "<|eot_id|>", '{"name": "add", "parameters": {"a": "é"}}'),
        ("lfm2_2_5", "<|im_end|>", "<|tool_call_start|>[add(a='é')]<|tool_call_end|>"),
        ("qwen3", "<|im_end|>", '<tool_call>\n{"name": "add", "arguments": {"a": "é"}}\n</tool_call>'),
    ],
)
def test_calls_of_tools_are_learnt_and_their_results_are_not(name: str, eos: str, call: str, arguments: Any, tmp_path: Path) -> None:
    of = published(name, tmp_path, eos)
    rows = encode(of, sums(arguments), [ADD], loss_on="completions", stops=stop_tokens(of))
    learnt = "".join(trained(of, row) for row in rows)
    assert learnt.replace("<think>\n\n</think>\n\n", "") == f"{call}{eos}Two.{eos}"
    assert '"properties"' in of.decode(rows[0].input_ids)  # the model is shown what there is to call


@pytest.mark.parametrize(
    ("name", "messages", "tools", "fault"),
    [
        ("llama3", TALK, [ADD], "shows nothing of the row's tools"),
        ("lfm2", sums({"a": 1}), [ADD], "shows nothing of the row's tool calls"),
        ("smolvlm", TALK, (), "leaves out what the user says"),
        ("llama3_1", sums("{a"), [ADD], "arguments of the tool call add are not JSON"),
    ],
)
def test_what_a_template_would_drop_in_silence_is_refused(name: str, messages: Any, tools: Any, fault: str, tmp_path: Path) -> None:
    of = published(name, tmp_path, "<|eot_id|>")
    for loss_on in ("completions", "all"):
        with pytest.raises(DataError, match=fault):
            encode(of, messages, tools, loss_on=loss_on, stops=stop_tokens(of))
    if fault.endswith(("tools", "says")):
        with pytest.raises(DataError, match=fault):
            prompt_ids(of, messages[:1], tools)


def seen_by_trl(row: Any, method: str) -> list[tuple[list[int], list[bool]]]:
    """(ids, trained) of each answer as the method's trainer makes them of the row."""
    from dataclasses import asdict

    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    from tuneport.local_backend.methods import _Tokenised

    if method == "orpo":
        made = _Tokenised.tokenize_row(asdict(row))
        pairs = [(made[f"{answer}_input_ids"], made[f"{answer}_labels"]) for answer in ("chosen", "rejected")]
        return [(ids, [label != IGNORED for label in labels]) for ids, labels in pairs]
    if method == "dpo":
        batch = DataCollatorForPreference(pad_token_id=256)([asdict(row)])
    else:
        batch = DataCollatorForUnpairedPreference(pad_token_id=256)([asdict(row) | {"label": row.desirable}])
    kept = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool(), strict=True)
    return [(ids[real].tolist(), learns[real].tolist()) for ids, real, learns in kept]


@pytest.mark.parametrize(
    ("template", "eos", "end"),
    [(CHATML, "<|im_end|>", "<|im_end|>"), (LLAMA3, "<|endoftext|>", "<|eot_id|>"), (INST, "<|endoftext|>", "<|endoftext|>")],
    ids=["chatml", "llama3", "inst"],
)
def test_loss_is_on_the_answers_up_to_and_with_the_stop_token(tmp_path: Path, template: str, eos: str, end: str) -> None:
    of = tokenizer(tmp_path, template, eos)
    stops = stop_tokens(of)
    (row,) = encode(of, [ASK, SAY, MORE, LAST], (), loss_on="completions", stops=stops)
    space = " " if template == INST else ""
    assert trained(of, row) == f"{space}Ja, 42 <ok>\nende{end}{space}nein{end}"
    assert row.input_ids[-1] in stops  # nothing behind the last trained token
    assert not row.added_end


def test_the_model_reads_in_training_what_it_reads_when_it_answers(tmp_path: Path) -> None:
    of = tokenizer(tmp_path, CHATML)
    (row,) = encode(of, [SYSTEM, ASK, SAY], (), loss_on="completions", stops=stop_tokens(of))
    start = next(i for i, label in enumerate(row.labels) if label != IGNORED)
    assert row.input_ids[:start] == prompt_ids(of, [SYSTEM, ASK])


def test_a_weight_of_zero_takes_an_answer_out_of_the_loss(tmp_path: Path) -> None:
    of = tokenizer(tmp_path, CHATML)
    (row,) = encode(of, [ASK, SAY | {"weight": 0}, MORE, LAST | {"weight": 1}], (), loss_on="completions", stops=stop_tokens(of))
    assert trained(of, row) == "nein<|im_end|>"
    with pytest.raises(DataError, match="no assistant message that carries loss"):
        encode(of, [ASK, SAY | {"weight": 0}], (), loss_on="completions", stops=stop_tokens(of))


def test_a_template_that_drops_earlier_reasoning_gives_one_sequence_per_answer(tmp_path: Path) -> None:
    of = tokenizer(tmp_path, THINKING)
    messages = [ASK, {"role": "assistant", "content": "<think>hm</think>yes"}, MORE, LAST]
    rows = encode(of, messages, (), loss_on="completions", stops=stop_tokens(of))
    assert [trained(of, row) for row in rows] == ["<think>hm</think>yes<|im_end|>", "nein<|im_end|>"]
    assert "<think>" not in of.decode(rows[1].input_ids)


def test_loss_on_all_trains_every_token(tmp_path: Path) -> None:
    of = tokenizer(tmp_path, CHATML)
    (row,) = encode(of, [ASK, LAST], (), loss_on="all", stops=stop_tokens(of))
    assert row.labels == row.input_ids
    assert trained(of, row) == "<|im_start|>user\nGrüße 🏔️?<|im_end|>\n<|im_start|>assistant\nnein<|im_end|>"


def test_a_template_without_stop_token_gets_one_and_says_so(tmp_path: Path) -> None:
    of = tokenizer(tmp_path, ENDLESS, "<|endoftext|>")
    (row,) = encode(of, [ASK, LAST], (), loss_on="completions", stops=stop_tokens(of))
    assert row.added_end
    assert trained(of, row) == "nein\n<|endoftext|>"


def test_faults_of_templates_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="no chat template"):
        tokenizer(tmp_path / "none", None)
    of = tokenizer(tmp_path / "own", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="roles must alternate"):
        encode(of, [ASK, SAY], (), loss_on="completions", stops=stop_tokens(of))
    odd = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
    of = tokenizer(tmp_path / "odd", odd)
    with pytest.raises(DataError, match="generation prompt"):
        encode(of, [ASK, SAY], (), loss_on="completions", stops=stop_tokens(of))
