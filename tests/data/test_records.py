import dataclasses
import json
import math
from pathlib import Path

import pytest

from montessori_pl.data.records import (
    Example,
    PreferencePair,
    Record,
    Rejection,
    SampledTokens,
    Score,
    Turn,
    append_records,
    drop_torn_line,
    json_text,
    read_lines,
    read_records,
    stable_id,
    stable_seed,
)

RECORDS: list[Record] = [
    Example(id="e", instruction="a\n\u2028b", response='"ñ" 你好 🎉', seed_task_ids=("x", "y"), batch=3, system="s"),
    Rejection(id="r", reason="near duplicate", detail="ROUGE-L 0.9", text="a"),
    Score(id="e", value=-1.5e-7, standard_error=None, details={"loss": 2.0}, terms=(1.0, -2.5), texts=("a\nb", "")),
    PreferencePair(
        id="p",
        prompt="q",
        chosen="c",
        rejected="d",
        chosen_id="1",
        rejected_id="2",
        margin=0.5,
        rejected_finished=False,
    ),
]


TURNS = Example(
    id="turns",
    instruction="a",
    response="b",
    history=(Turn("user", "one"), Turn("assistant", "two", weight=0)),
    prompt_format="text",
    prefill="So",
    completion_tokens=SampledTokens((1, 2), "v"),
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_come_back_as_they_were(record: Record, tmp_path: Path) -> None:
    """One line each, whatever line breaks and scripts the text holds; lists become tuples again."""
    path = tmp_path / "records.jsonl"
    append_records(path, [record])
    append_records(path, [record])
    assert path.read_bytes().count(b"\n") == 2
    assert read_records(path, type(record)) == [record, record]


@pytest.mark.parametrize("record", [*RECORDS, TURNS], ids=lambda record: f"{type(record).__name__}-{record.id}")
def test_a_line_is_the_dataclass_as_json(record: Record) -> None:
    """Without what has no place in it: fields that say something only at times, when they say nothing."""
    row = dataclasses.asdict(record)
    for name in ("prompt_format", "prefill", "completion_tokens", "response_tokens", "chosen_tokens", "gradient"):
        if row.get(name) in (None, "", (), "chat"):
            row.pop(name, None)
    row = {name: value for name, value in row.items() if (name, value) != ("rejected_tokens", None)}
    assert record.to_json() == json.dumps(row, ensure_ascii=False)


def test_examples_share_what_is_the_same(tmp_path: Path) -> None:
    """The samples of a prompt hold it once."""
    path = tmp_path / "records.jsonl"
    append_records(path, [Example(id=id_, instruction=id_, response="", prompt="ask this " * 100) for id_ in "ab"])
    first, second = read_records(path, Example)
    assert first.prompt is second.prompt
    assert first.instruction is not second.instruction


def test_text_stays_readable_and_records_are_frozen() -> None:
    assert "你好 🎉" in RECORDS[0].to_json()
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORDS[0].id = "other"  # type: ignore[misc]


def test_unknown_and_missing_fields_are_named() -> None:
    row = {"id": "e", "instruction": "a", "respnse": "b"}
    with pytest.raises(
        ValueError,
        match=r"not a Example record: unknown fields \['respnse'\], missing fields \['response'\]; "
        r"the fields are \['batch', 'c",
    ):
        Example.from_dict(row)


def test_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    """A kill may stop a write at any byte, also within a character."""
    path = tmp_path / "records.jsonl"
    append_records(path, [RECORDS[0]] * 2)
    whole = path.read_bytes()
    first = len(whole) // 2
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        assert read_records(path, Example) == [RECORDS[0]]
        drop_torn_line(path)
        assert path.read_bytes() == whole[:first]
    path.write_bytes(whole)
    drop_torn_line(path)
    assert path.read_bytes() == whole


def test_broken_whole_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "a"}\n{"id": \n')
    with pytest.raises(ValueError, match=r"records\.jsonl, line 2: not JSON"):
        list(read_lines(path))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"records\.jsonl, line 1: expected a JSON object, found list"):
        list(read_lines(path))


def test_messages_of_an_example() -> None:
    example = Example(id="e", instruction="q", response="a")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert example.messages() == turns
    with_system = dataclasses.replace(example, system="s")
    assert with_system.messages() == [{"role": "system", "content": "s"}, *turns]


def test_ids_and_seeds_depend_on_their_parts_alone() -> None:
    """The first digits of `printf 'a\\0371' | sha256sum`: a change would orphan every run directory."""
    assert stable_id("a", 1) == "839e11a421d3"
    assert stable_seed(42, 1, "warmup") == 6839256594897207296
    assert stable_id("a", "b") != stable_id("ab")
    assert stable_id("a", "b") != stable_id("b", "a")
    assert 0 <= stable_seed("x") < 2**63
    assert json.loads(json.dumps(stable_seed("x"))) == stable_seed("x")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_holds_numbers_only(number: float) -> None:
    """The sentence says where the other one stands."""
    with pytest.raises(ValueError, match=rf"^signal.quantiles\[1\] is {number}, which is no number"):
        json_text({"mean": 1.0, "signal": {"quantiles": (0.5, number)}})
    with pytest.raises(ValueError, match=rf"^value is {number}"):
        Score(id="a", value=number).to_json()
    assert json_text({"a": [1, 2.5, None]}) == '{"a": [1, 2.5, null]}'
