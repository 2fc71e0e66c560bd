"""Rounds that add up, on the classroom at a tiny size: what the records of two rounds say, also when killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import GENERATE, OPEN, Moment, Program, assert_same_run, half_a_line

from montessori_pl.data.records import Example, read_records
from montessori_pl.run_directory.run_directory import RunDirectory

pytestmark = pytest.mark.slow

NUMBER = 24
"""New examples in each round."""
MOMENTS = [
    Moment("new_data", GENERATE),
    Moment(
        "aligned_teacher", "montessori_pl.models.dpo.TeacherDPOModule.dpo", call=3
    ),  # from here on in the second iteration
    Moment("new_data", GENERATE, call=3),
    Moment("new_data", OPEN, half_a_line, file="/examples.jsonl"),
    Moment("training_data", OPEN, half_a_line, file="/examples.jsonl.draft"),
]


@pytest.fixture(scope="module")
def program(tiny_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Two rounds."""
    recipe = tiny_recipe("accumulate.yaml", new_data={"num_examples": NUMBER})
    return Program(recipe, tmp_path_factory.mktemp("rounds"))


@pytest.fixture(scope="module")
def run(program: Program) -> Path:
    """An undisturbed run."""
    run = program.directory / "undisturbed"
    program.finish(run)
    return run


def examples(run: Path, stage: str, iteration: int) -> list[Example]:
    return read_records(run / f"iteration_{iteration}" / stage / "examples.jsonl", Example)


def metrics(run: Path, key: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / key / "metrics.json").read_text())
    return content


def test_data_add_up_and_repeat_nothing(run: Path) -> None:
    first, second = (examples(run, "new_data", iteration) for iteration in (1, 2))
    assert len(first) == len(second) == NUMBER
    assert examples(run, "training_data", 1) == first
    assert examples(run, "training_data", 2) == [*first, *second]
    assert len({example.instruction for example in [*first, *second]}) == 2 * NUMBER
    assert [metrics(run, f"iteration_{n}/trained")["examples"] for n in (1, 2)] == [NUMBER, 2 * NUMBER]


def test_doses_do_not_add_up(run: Path) -> None:
    """The teacher and the student start from their bases; influence is measured on the student of the round before."""
    inputs = {
        key: {name: value.split()[0] for name, value in entry.inputs.items()}
        for key, entry in RunDirectory(run).entries.items()
    }
    for iteration in (1, 2):
        here = f"iteration_{iteration}"
        assert inputs[f"{here}/aligned_teacher"] == {"pairs": f"{here}/preferences", "teacher": "base"}
        assert inputs[f"{here}/trained"] == {"examples": f"{here}/training_data"}
    assert inputs["iteration_1/influence"]["student"] == "iteration_1/warmup"
    assert inputs["iteration_2/influence"]["student"] == "iteration_1/trained"
    assert inputs["iteration_2/new_data"]["deduplicate_against.training_data"] == "iteration_1/training_data"


def test_killed(program: Program, run: Path) -> None:
    killed = program.directory / "killed"
    for moment in MOMENTS:
        program.kill(killed, moment)
    program.finish(killed)
    assert_same_run(killed, run)
