"""Combine: what it holds, in which order, what is one example, and how it grows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_runs import stage_context

from montessori_pl.data.records import Example, append_records, read_records
from montessori_pl.stages import ConcatExamples, StageError

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write the examples of a stage, given as `id` or `id: instruction`; returns its directory."""

    def write(stage: str, *texts: str) -> Path:
        directory = tmp_path / stage
        directory.mkdir(parents=True)
        pairs = [(text.partition(": ")[0], text.partition(": ")[2] or f"task {text}") for text in texts]
        append_records(
            directory / "examples.jsonl", [Example(id=id_, instruction=text, response="r") for id_, text in pairs]
        )
        return directory

    return write


def run(stage: ConcatExamples, directory: Path, inputs: dict[str, Path | None]) -> dict[str, Any]:
    return stage.run(stage_context(directory, key="iteration_1/set", name="set", inputs=inputs))


def ids(directory: Path) -> Sequence[str]:
    return [example.id for example in read_records(directory / "examples.jsonl", Example)]


def test_stages_in_their_order_and_repeated_examples_once(tmp_path: Path, put: Put) -> None:
    inputs: dict[str, Path | None] = {"examples.a": put("a", "x", "y"), "examples.b": put("b", "y", "z", "w")}
    metrics = run(ConcatExamples(["a", "b"]), tmp_path / "set", inputs)
    assert ids(tmp_path / "set") == ["x", "y", "z", "w"]
    assert (metrics["accepted"], metrics["added"]) == (4, {"a": 2, "b": 2})
    assert metrics["diversity"]["distinct_rate"] == 1
    other_way_round = run(ConcatExamples(["b", "a"]), tmp_path / "other", inputs)
    assert ids(tmp_path / "other") == ["y", "z", "w", "x"]
    assert other_way_round["added"] == {"b": 3, "a": 1}


def test_different_examples_of_one_id(tmp_path: Path, put: Put) -> None:
    inputs: dict[str, Path | None] = {"examples.a": put("a", "x: one task"), "examples.b": put("b", "x: another")}
    with pytest.raises(StageError) as error:
        run(ConcatExamples(["a", "b"]), tmp_path / "set", inputs)
    assert str(error.value) == (
        "iteration_1/set: a and b have different examples with the id 'x'; combine one of them only, or give the "
        "examples other ids"
    )
    with pytest.raises(StageError, match="set before and b have different examples with the id 'x'"):
        run(ConcatExamples(["b"], growing=True), tmp_path / "set", {"growing": tmp_path / "a", **inputs})


def test_growing(tmp_path: Path, put: Put) -> None:
    """Three rounds by hand: seeds stay once, what a round adds stays, and a round may add nothing."""
    stage, seed_tasks = ConcatExamples(["seed_tasks", "new"], growing=True), put("seed_tasks", "s0", "s1")
    before: Path | None = None
    grown = []
    for number, texts in enumerate([("n0", "n1"), (), ("n2",)]):
        here = tmp_path / f"iteration_{number + 1}" / "set"
        inputs = {"growing": before, "examples.seed_tasks": seed_tasks, "examples.new": put(f"new{number}", *texts)}
        metrics = run(stage, here, inputs)
        grown.append((ids(here), metrics["added"]))
        before = here
    assert grown == [
        (["s0", "s1", "n0", "n1"], {"set before": 0, "seed_tasks": 2, "new": 2}),
        (["s0", "s1", "n0", "n1"], {"set before": 4, "seed_tasks": 0, "new": 0}),
        (["s0", "s1", "n0", "n1", "n2"], {"set before": 4, "seed_tasks": 0, "new": 1}),
    ]


def test_what_it_reads() -> None:
    assert [(one.setting, one.name, one.optional) for one in ConcatExamples(["a", "b"], growing=True).reads()] == [
        ("growing", "", True),
        ("examples.a", "a", False),
        ("examples.b", "b", False),
    ]
    assert [one.name for one in ConcatExamples(["a"]).reads()] == ["a"]


@pytest.mark.parametrize("examples", [[], ["a", "a"]])
def test_stages_are_named_once(examples: list[str]) -> None:
    with pytest.raises(ValueError, match="examples: expected list, not empty, none twice, found"):
        ConcatExamples(examples)
