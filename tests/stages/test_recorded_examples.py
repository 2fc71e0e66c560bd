"""RecordedExamples: rows that others wrote become examples, or rejections with a reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_runs import write

from montessori_pl.data.records import Example, Rejection, read_records
from montessori_pl.stages import RecordedExamples, StageContext


def test_rows_become_examples_or_rejections(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": "q1", "output": "a1"},
        {"instruction": "q2", "input": "i", "output": "a2"},
        {"instruction": "q3", "output": " "},
        {"instruction": "q1", "output": "a1"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = context()
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


def test_slices_and_missing_files(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    source = tmp_path / "rows.jsonl"
    write(source, [Example(id=str(n), instruction=f"q{n}", response="a") for n in range(5)])
    assert RecordedExamples(f"{source}[1:3]").run(context())["accepted"] == 2
    with pytest.raises(ValueError, match=r"^source: no file .*rowz\.jsonl; .* holds rows\.jsonl; correct the path"):
        RecordedExamples(str(tmp_path / "rowz.jsonl")).run(context())
