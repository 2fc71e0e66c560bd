"""Rows as people have them: what has a meaning for an example is read, and what has none is said."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from montessori_pl.data.formats import load_source, read_examples, read_source
from montessori_pl.data.records import Example, Turn, append_records

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
FIRST, SECOND = {"role": "user", "content": "first"}, {"role": "assistant", "content": "second"}
EARLIER = (Turn("user", "first"), Turn("assistant", "second"))
NAN = float("nan")


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def example(system: str, instruction: str, response: str, *history: Turn) -> tuple[Any, ...]:
    return system, history, instruction, response


READ: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    # Columns beside an instruction.
    "context": ({"instruction": "Q", "context": "C", "response": "A"}, example("", "Q\nC", "A")),
    "blank_context": ({"instruction": "Q", "context": "", "response": "A"}, example("", "Q", "A")),
    "input_beside_response": ({"instruction": "Q", "input": "I", "response": "A"}, example("", "Q\nI", "A")),
    "question_context": ({"question": "Q", "context": "C", "answer": "A"}, example("", "Q\nC", "A")),
    "prompt_context": ({"prompt": "Q", "context": "C", "completion": "A"}, example("", "Q\nC", "A")),
    "system_prompt": ({"question": "Q", "answer": "A", "system_prompt": "S"}, example("S", "Q", "A")),
    "choices_letter": ({"question": "Q", "choices": ["x", "y"], "answer": "B"}, example("", "Q\nA. x\nB. y", "B")),
    "choices_place": ({"question": "Q", "choices": ["x", "y"], "answer": 1}, example("", "Q\nA. x\nB. y", "B")),
    "choices_number": ({"question": "Q", "choices": [1, 2], "answer": 1}, example("", "Q\nA. 1\nB. 2", "1")),
    "choices_of_digits": ({"question": "Q", "choices": ["1", "2"], "answer": 1}, example("", "Q\nA. 1\nB. 2", "B")),
    "choices_decimal_place": (
        {"question": "Q", "choices": ["x", "y"], "answer": 1.0},
        example("", "Q\nA. x\nB. y", "B"),
    ),
    "choices_no_place": ({"question": "Q", "choices": ["x", "y"], "answer": 1.5}, example("", "Q\nA. x\nB. y", "1.5")),
    "choices_number_label": (
        {"question": "Q", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answer": 1},
        example("", "Q\n1. x\n2. y", "1"),
    ),
    "choices_text": ({"question": "Q", "options": ["x", "y"], "answer": "y"}, example("", "Q\nA. x\nB. y", "y")),
    "choices_labels": (
        {"question": "Q", "choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answer": "2"},
        example("", "Q\n1. x\n2. y", "2"),
    ),
    "choices_mapping": (
        {"question": "Q", "options": {"A": "x", "B": "y"}, "answer": "A"},
        example("", "Q\nA. x\nB. y", "A"),
    ),
    "history_pairs": (
        {"instruction": "Q", "input": "", "output": "A", "system": "", "history": [["first", "second"]]},
        example("", "Q", "A", *EARLIER),
    ),
    "history_messages": (
        {"instruction": "Q", "response": "A", "history": [FIRST, SECOND]},
        example("", "Q", "A", *EARLIER),
    ),
    # Values.
    "numbers": ({"question": 7, "answer": 2}, example("", "7", "2")),
    "decimals": ({"question": "Q", "answer": 0.5}, example("", "Q", "0.5")),
    "zero": ({"question": "Q", "answer": 0}, example("", "Q", "0")),
    "nan_input": ({"instruction": "Q", "input": NAN, "output": "A"}, example("", "Q", "A")),
    "nan_everywhere": (
        {"instruction": "Q", "input": NAN, "output": "A", "system": NAN, "history": NAN, "id": NAN, "messages": NAN},
        example("", "Q", "A"),
    ),
    "zero_width_system": ({"question": "Q", "answer": "A", "system": "\u200b\ufeff "}, example("", "Q", "A")),
    # Conversations.
    "several_turns": ({"messages": [FIRST, SECOND, Q, A]}, example("", "Q", "A", *EARLIER)),
    "system_and_turns": (
        {"conversations": [{"from": "system", "value": "S"}, FIRST, SECOND, Q, A]},
        example("S", "Q", "A", *EARLIER),
    ),
    "weights": (
        {"messages": [FIRST, SECOND | {"weight": 0}, Q, A | {"weight": 1}]},
        example("", "Q", "A", EARLIER[0], Turn("assistant", "second", 0)),
    ),
    "train_false": (
        {"messages": [FIRST, SECOND | {"train": False}, Q, A]},
        example("", "Q", "A", EARLIER[0], Turn("assistant", "second", 0)),
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q1"}, {"type": "text", "text": "Q2"}]},
                A,
            ]
        },
        example("", "Q1Q2", "A"),
    ),
    "union_parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q", "image_url": None}]}, A]},
        example("", "Q", "A"),
    ),
    "union_keys": (
        {"messages": [Q | {"from": None, "value": None, "tool_calls": None, "weight": None}, A | {"tool_calls": []}]},
        example("", "Q", "A"),
    ),
    "union_columns": ({"messages": None, "conversations": [Q, A], "instruction": None}, example("", "Q", "A")),
    "union_columns_of_text": (
        {"messages": None, "instruction": "Q", "output": "A", "prompt": None, "completion": None},
        example("", "Q", "A"),
    ),
    "roles": (
        {"conversations": [{"from": "Human", "value": "Q"}, {"from": "ChatGPT", "value": "A"}]},
        example("", "Q", "A"),
    ),
    "developer": ({"messages": [{"role": "developer", "content": "S"}, Q, A]}, example("S", "Q", "A")),
    "no_tools": ({"conversations": [Q, A], "tools": "[]"}, example("", "Q", "A")),
    "conversation_column": ({"conversation": [Q, A]}, example("", "Q", "A")),
    "ultrachat_200k": ({"prompt": "Q", "prompt_id": "p", "messages": [Q, A]}, example("", "Q", "A")),
    "ultrachat": ({"id": "0", "data": ["first", "second", "Q", "A"]}, example("", "Q", "A", *EARLIER)),
    "json_in_a_cell": ({"messages": json.dumps([Q, A])}, example("", "Q", "A")),
    # TRL: answers in the prompt are not learned.
    "trl_turns": (
        {"prompt": [FIRST, SECOND, Q], "completion": [A]},
        example("", "Q", "A", EARLIER[0], Turn("assistant", "second", 0)),
    ),
    "trl_completion_of_turns": ({"prompt": [FIRST], "completion": [SECOND, Q, A]}, example("", "Q", "A", *EARLIER)),
    "trl_implicit_prompt": (
        {"chosen": [FIRST, SECOND, Q, A], "rejected": [FIRST, SECOND, Q, SECOND]},
        example("", "Q", "A", EARLIER[0], Turn("assistant", "second", 0)),
    ),
    "llama_factory_ranking": (
        {"instruction": "Q", "input": "I", "chosen": "A", "rejected": "B"},
        example("", "Q\nI", "A"),
    ),
    "llama_factory_chat_ranking": ({"conversations": [Q], "chosen": A, "rejected": SECOND}, example("", "Q", "A")),
}


@pytest.mark.parametrize("name", READ)
def test_what_has_a_meaning_is_read(name: str, tmp_path: Path) -> None:
    row, expected = READ[name]
    loaded = load_source(write(tmp_path / "data.jsonl", row))
    assert loaded.rejections == []
    (one,) = loaded.examples
    assert (one.system, one.history, one.instruction, one.response) == expected


@pytest.mark.parametrize("name", READ)
def test_a_saved_table_of_all_rows_says_the_same(name: str, tmp_path: Path) -> None:
    """Beside a row of another layout, Arrow gives each row all columns, and each message all keys."""
    from datasets import Dataset

    row, expected = READ[name]
    other = {"messages": [{"role": "user", "content": "other"}, A], "id": "other", "label": None}
    columns = {**row, **other}
    try:
        table = Dataset.from_list([{name: one.get(name) for name in columns} for one in (row, other)])
    except (TypeError, ValueError, NotImplementedError):  # one column of two types, which no table holds
        pytest.skip("no table holds these rows")
    table.save_to_disk(tmp_path / "saved")
    one, _ = read_examples(str(tmp_path / "saved"))
    assert (one.system, one.history, one.instruction, one.response) == expected


TOOL_CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f"}}]}
LEFT_OUT: dict[str, tuple[dict[str, Any], str, str]] = {
    "tool_calls": ({"messages": [Q, TOOL_CALL, {"role": "tool", "content": "1"}, A]}, "more than text", "tool_calls"),
    "tool_turns": (
        {"conversations": [Q, {"from": "function_call", "value": "{}"}, {"from": "observation", "value": "1"}, A]},
        "more than text",
        "turn 2 is a tool's (function_call)",
    ),
    "tools": ({"messages": [Q, A], "tools": '[{"name": "f"}]'}, "more than text", "the row has tools"),
    "tools_beside_text": ({"instruction": "Q", "output": "A", "tools": [{"name": "f"}]}, "more than text", "has tools"),
    "image": ({"question": "Q", "answer": "A", "image": {"bytes": "x"}}, "more than text", "the row has image"),
    "image_part": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, A]},
        "more than text",
        "turn 1 has parts that are no text: image_url",
    ),
    "reasoning": ({"messages": [Q, A | {"reasoning_content": "R"}]}, "more than text", "has reasoning_content"),
    "reasoning_column": ({"question": "Q", "answer": "A", "reasoning_content": "R"}, "more than text", "reasoning_co"),
    "two_user_turns": ({"messages": [FIRST, Q, A]}, "other turns", "turns 1 and 2 are both the user's"),
    "two_answers": ({"messages": [Q, A, A]}, "other turns", "turns 2 and 3 are both the assistant's"),
    "begins_with_an_answer": ({"messages": [A, Q, A]}, "other turns", "the first turn is the assistant's"),
    "ends_with_a_question": ({"messages": [Q, A, Q]}, "other turns", "the last turn is the user's"),
    "late_system": ({"messages": [Q, {"role": "system", "content": "S"}, A]}, "other turns", "does not stand first"),
    "unknown_role": (
        {"messages": [{"role": "narrator", "content": "N"}, Q, A]},
        "unknown role",
        "by 'narrator'; known",
    ),
    "untrained": ({"messages": [Q, A | {"weight": 0}]}, "untrained answer", "has weight 0"),
    "bad_weight": ({"messages": [Q, A | {"weight": 0.5}]}, "malformed row", "weight 0.5, which is neither 0 nor 1"),
    "row_weight": ({"question": "Q", "answer": "A", "weight": 0}, "undesirable completion", "its weight is 0"),
    "kto": ({"messages": [Q, A], "kto_tag": False}, "undesirable completion", "its kto_tag is false"),
    "blank_turn": (
        {"messages": [FIRST, SECOND | {"content": "\u200b"}, Q, A]},
        "empty turn",
        "turn 2, the assistant's",
    ),
    "history_and_messages": (
        {"messages": [Q, A], "history": [["x", "y"]]},
        "other turns",
        "history beside its messages",
    ),
    "half_history": ({"instruction": "Q", "output": "A", "history": [FIRST]}, "other turns", "before the instruction"),
    "bad_history": ({"instruction": "Q", "output": "A", "history": "first"}, "malformed row", "history is no list"),
    "bad_choices": ({"question": "Q", "answer": "A", "choices": "x or y"}, "malformed row", "the choices are no list"),
    "two_systems": (
        {"messages": [{"role": "system", "content": "S"}, Q, A], "system_prompt": "T"},
        "two system messages",
        "system_prompt and the conversation",
    ),
    "zero_width_response": (
        {"question": "Q", "answer": "\u200b\u2060\ufeff"},
        "empty response",
        "the response is blank",
    ),
    "zero_width_instruction": (
        {"question": "\u200d \u3164", "answer": "A"},
        "empty instruction",
        "instruction is blank",
    ),
    "nan_response": ({"question": "Q", "answer": NAN}, "empty response", "the response is blank"),
    "truth": ({"question": "Q", "answer": True}, "malformed row", "response is bool, not text"),
    "infinity": ({"question": "Q", "answer": float("inf")}, "malformed row", "response is float, not text"),
    "several_answers": ({"question": "Q", "answer": ["A", "B"]}, "malformed row", "response is list, not text"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_has_no_place_in_an_example_is_left_out_with_a_reason(name: str, tmp_path: Path) -> None:
    row, reason, detail = LEFT_OUT[name]
    examples, rejections = read_source(write(tmp_path / "data.jsonl", {"question": "other", "answer": "A"}, row))
    assert [one.instruction for one in examples] == ["other"]
    assert [one.reason for one in rejections] == [reason]
    assert detail in rejections[0].detail
    assert rejections[0].detail.startswith("row 2 of ")


def test_the_whole_conversation_decides_on_duplicates_and_ids(tmp_path: Path) -> None:
    """Two conversations may end in the same words; an id depends on all that is said, in whatever order rows come."""
    rows = [{"messages": [*before, Q, A]} for before in ([FIRST, SECOND], [], [FIRST, SECOND])]
    examples, rejections = read_source(write(tmp_path / "data.jsonl", *rows))
    assert [one.history for one in examples] == [EARLIER, ()]
    assert [one.reason for one in rejections] == ["duplicate"]
    again, _ = read_source(write(tmp_path / "data.jsonl", *rows[:2][::-1]))
    assert [one.id for one in again] == [one.id for one in examples][::-1]


def test_columns_that_are_not_read_are_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Q", "response": "A", "category": "c", "empty": None, "blank": " ", "label": 3},
        {"instruction": "R", "response": "A", "category": "c", "model": "m", "weight": 1, "label": True},
        {"instruction": "S", "response": "A", "model": "m", "generator": "g", "weight": 0.5},
        {"messages": [{**FIRST, "name": "Ann"}, {**A, "name": None}], "prompt": "first", "category": "c"},
        {"instruction": "T", "instances": [{"input": "", "output": "A"}, {"input": "", "output": "B"}]},
        {"instruction": "", "response": "A", "category": "left out"},
    ]
    loaded = load_source(write(tmp_path / "data.jsonl", *rows))
    assert loaded.unread == {
        "category": 3,
        "label": 1,
        "model": 1,
        "generator": 1,
        "weight": 1,
        "messages[].name": 1,
        "instances after the first": 1,
    }
    left_out, unread = loaded.notes()
    assert left_out.startswith("1 of 6 rows are left out: 1 empty instruction; the first is row 6 of ")
    assert unread.startswith("columns that are not read: category (3 rows), label (1 row), ")


def test_columns_of_another_meaning_under_our_names_are_not_read(tmp_path: Path) -> None:
    """All keys are those of an example; of these values none is what we write there, and one row is ours."""
    origin = {"prompt_id": "p", "prompt": "ask", "completion": "c", "completion_finished": False, "batch": 3}
    ours = Example.from_dict(
        {"id": "x", "instruction": "T", "response": "A", "seed_task_ids": ["s"], "teacher": "m", "quality": 0.5}
        | origin
    )
    strange = {
        "prompt_id": 7,
        "prompt": [{"role": "user", "content": "Q"}],
        "prompt_format": "x",
        "prefill": ["a"],
        "completion": 7,
        "completion_finished": "yes",
        "seed_task_ids": "abc",
        "batch": "train",
        "teacher": 5,
        "quality": "high",
    }
    path = write(tmp_path / "data.jsonl", {"instruction": "Q", "response": "A", **strange}, json.loads(ours.to_json()))
    loaded = load_source(path)
    assert loaded.unread == dict.fromkeys(strange, 1)
    assert dataclasses.replace(loaded.examples[0], id="") == Example(id="", instruction="Q", response="A")
    assert loaded.examples[1] == ours


def test_our_own_conversations_come_back_whole(tmp_path: Path) -> None:
    whole = Example(id="x", instruction="Q", response="A", history=(EARLIER[0], Turn("assistant", "second", 0)))
    append_records(tmp_path / "examples.jsonl", [whole])
    loaded = load_source(str(tmp_path / "examples.jsonl"))
    assert loaded.examples == [whole]
    assert loaded.notes() == []


def test_records_of_one_turn_that_were_written_before_read_as_they_are() -> None:
    old = {"id": "x", "instruction": "Q", "response": "A", "system": "S", "seed_task_ids": ["a"], "batch": 1}
    assert Example.from_dict(old) == Example(
        id="x", instruction="Q", response="A", system="S", seed_task_ids=("a",), batch=1
    )
