"""RecordedExamples: rows that others wrote become examples, or rejections with a reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_runs import write

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example, Rejection, Turn, read_records
from montessori_pl.stages import RecordedExamples, StageContext


@pytest.fixture
def held_out(tmp_path: Path) -> DataSources:
    """A reference and a test set of one example each."""
    reference, test = (
        write(tmp_path / role / "rows.jsonl", [Example(id="one", instruction=instruction, response="a")]) / "rows.jsonl"
        for role, instruction in (("reference", "name a cat"), ("test", "Add 2 and 3"))
    )
    return DataSources("none", str(reference), str(test))


def test_rows_become_examples_or_rejections(
    tmp_path: Path, context: Callable[..., StageContext], held_out: DataSources
) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": "q1", "output": "a1"},
        {"instruction": "q2", "input": "i", "output": "a2"},
        {"instruction": "q3", "output": " "},
        {"instruction": "q1", "output": "a1"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = context(data=held_out)
    metrics = RecordedExamples(str(source)).run(here)
    examples = read_records(here.directory / "examples.jsonl", Example)
    assert [(example.instruction, example.response) for example in examples] == [("q1", "a1"), ("q2\ni", "a2")]
    rejections = read_records(here.directory / "rejections.jsonl", Rejection)
    assert {rejection.reason for rejection in rejections} == {"empty response", "duplicate"}
    assert metrics["accepted"] == 2
    assert metrics["rejected"] == {"empty response": 1, "duplicate": 1}
    assert metrics["diversity"]["distinct_rate"] == 1
    before = (here.directory / "examples.jsonl").read_bytes()
    assert RecordedExamples(str(source)).run(here) == metrics
    assert (here.directory / "examples.jsonl").read_bytes() == before


def test_slices_and_missing_files(tmp_path: Path, context: Callable[..., StageContext], held_out: DataSources) -> None:
    source = tmp_path / "rows.jsonl"
    write(source, [Example(id=str(n), instruction=f"q{n}", response="a") for n in range(5)])
    assert RecordedExamples(f"{source}[1:3]").run(context(data=held_out))["accepted"] == 2
    with pytest.raises(ValueError, match=r"^source: no file .*rowz\.jsonl; .* holds rows\.jsonl; correct the path"):
        RecordedExamples(str(tmp_path / "rowz.jsonl")).run(context(data=held_out))


def test_examples_that_repeat_what_is_held_out_are_counted_aloud(
    tmp_path: Path, context: Callable[..., StageContext], held_out: DataSources
) -> None:
    """Also in an earlier turn; they are kept, for somebody may have meant it."""
    source = tmp_path / "rows.jsonl"
    earlier = Turn("user", "add 2  and 3"), Turn("assistant", "5")
    rows = [
        Example(id="same", instruction="add 2 and 3", response="5"),
        Example(id="turn", instruction="thanks", response="welcome", history=earlier),
        Example(id="other", instruction="add 2 and 4", response="6"),
    ]
    write(source, rows)
    metrics = RecordedExamples(str(source)).run(context(data=held_out))
    assert metrics["accepted"] == 3
    assert metrics["warnings"] == [
        "2 of 3 examples repeat data.test, for example same: the same instruction as test example one; what is "
        "measured on it says little of a student that learns them: leave them out, or take other rows"
    ]
    alone = DataSources("none", held_out.reference)
    assert RecordedExamples(str(source)).run(context(data=alone))["warnings"] == []
