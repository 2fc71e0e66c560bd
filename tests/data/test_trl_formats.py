"""TRL's dataset formats, read as TRL's own helpers take them apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from montessori_pl.data.formats import read_examples, read_source


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM, ASKED, GOOD, BAD = say("system", "S"), say("user", "Q"), say("assistant", "A"), say("assistant", "B")
FORMATS: dict[str, dict[str, Any]] = {
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "prompt_completion_conversations": {"prompt": [SYSTEM, ASKED], "completion": [GOOD]},
    "unpaired": {"prompt": [ASKED], "completion": [GOOD], "label": True},
    "preference": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "preference_conversations": {"prompt": [SYSTEM, ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "implicit_prompt": {"chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]},
    "implicit_prompt_and_its_text": {"prompt": "Q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
}


def write(path: Path, *rows: Any) -> str:
    """Write rows as JSON lines and give the path as a source."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turns_of_trl(row: dict[str, Any]) -> tuple[str, str, str]:
    """System message, user turn and response of a row, taken apart by TRL."""
    from trl.data_utils import is_conversational, maybe_extract_prompt

    row = maybe_extract_prompt(row)
    answer = row["completion"] if "completion" in row else row["chosen"]
    if not is_conversational({"prompt": row["prompt"]}):
        return "", row["prompt"], answer
    said = {message["role"]: message["content"] for message in (*row["prompt"], *answer)}
    return said.get("system", ""), said["user"], said["assistant"]


@pytest.mark.slow
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_read_as_trl_takes_it_apart(name: str, saved: bool, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset

    row = FORMATS[name]
    source = str(tmp_path / "saved") if saved else write(tmp_path / "data.jsonl", row)
    if saved:
        Dataset.from_list([row]).save_to_disk(source)
    (example,) = read_examples(source)

    assert (example.system, example.instruction, example.response) == turns_of_trl(row)
    assert (example.instruction, example.response) == ("Q", "A")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": [ASKED], "completion": [BAD], "label": False}, "undesirable completion", "its label is false"),
        ({"prompt": [ASKED], "completion": [GOOD, ASKED]}, "other turns", "the last turn is the user's"),
        ({"prompt": [ASKED, GOOD], "completion": [GOOD]}, "other turns", "turns 2 and 3 are both the assistant's"),
        ({"prompt": [], "completion": [GOOD]}, "no user turn", "the roles are assistant"),
        (
            {"prompt": [say("judge", "S"), ASKED], "completion": [GOOD]},
            "unknown role",
            "turn 1 is by 'judge'; known are",
        ),
        ({"prompt": "Q", "completion": [GOOD]}, "malformed row", "the prompt is no list of objects"),
        ({"prompt": [ASKED], "chosen": "A", "rejected": "B"}, "malformed row", "the completion is no list of objects"),
        ({"prompt": [ASKED], "completion": [say("assistant", None)]}, "empty response", "the response is blank"),
        (
            {"prompt": [ASKED], "completion": [say("assistant", [{"type": "image", "image": "A"}])]},
            "more than text",
            "turn 2 has parts that are no text: image",
        ),
        (
            {"prompt": [ASKED], "completion": [say("assistant", "A", thinking="T", tool_calls=None)]},
            "more than text",
            "the assistant turn has thinking",
        ),
        ({"prompt": "Q", "completion": "A", "tools": [{"name": "f"}]}, "more than text", "the row has tools"),
        (
            {"prompt": [SYSTEM, ASKED], "completion": [GOOD], "system": "T"},
            "two system messages",
            "system and the conversation say",
        ),
        ({"chosen": "QA", "rejected": "QB"}, "no prompt", "no column prompt says where it ends"),
        ({"chosen": [ASKED, GOOD], "rejected": [say("user", "R"), BAD]}, "two prompts", "do not begin with the same"),
        ({"prompt": "R", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, "two prompts", "is not the user turn"),
    ],
)
def test_what_an_example_cannot_hold_is_rejected_with_a_reason(
    row: dict[str, Any], reason: str, detail: str, tmp_path: Path
) -> None:
    examples, rejections = read_source(write(tmp_path / "data.jsonl", FORMATS["preference"], row))
    assert [example.response for example in examples] == ["A"]
    (rejection,) = rejections
    assert rejection.reason == reason
    assert detail in rejection.detail
    assert json.loads(rejection.text) == row


def test_nulls_that_a_saved_dataset_fills_in_say_nothing(tmp_path: Path) -> None:
    """Arrow gives every message each of the keys that one of them has."""
    asked, answered = say("user", "Q", tool_calls=None, thinking=""), say("assistant", "A", tool_calls=[])
    row = {"prompt": [asked], "completion": [answered], "tools": None, "chat_template_kwargs": {"enable": None}}
    (example,) = read_examples(write(tmp_path / "data.jsonl", row))
    assert (example.instruction, example.response) == ("Q", "A")
