"""LLM2LLM on the classroom, at a tiny size, through the command line: what its records say of who learned from what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from killing import GENERATE, OPEN, REPLACE, STUDENT_STEP, Moment, Program, assert_same_run, everything, half_a_line

from montessori_pl.cli.fit import main
from montessori_pl.data.records import Example, read_records
from montessori_pl.run_directory.run_directory import RunDirectory

ROUNDS = (1, 2, 3)
MOMENTS = [
    Moment("mistakes", OPEN, half_a_line, file="/findings.jsonl", call=2),  # inside what was found out
    Moment("mistakes", GENERATE, call=2),  # the answers of the last round
    Moment("mistakes", OPEN, file="/journal.jsonl"),  # all is there, and the journal does not know it
    Moment("mistakes", OPEN, half_a_line, file="/metrics.json.draft"),
    Moment("augmented", GENERATE, call=3),  # instructions of the second round
    Moment("augmented", GENERATE, everything, call=2),  # its responses
    Moment("augmented", OPEN, half_a_line, file="/examples.jsonl"),
    Moment("augmented", OPEN, file="/journal.jsonl", call=2),
    Moment("training_set", OPEN, half_a_line, file="/examples.jsonl.draft"),
    Moment("training_set", REPLACE, file="/examples.jsonl.draft"),
    Moment("training_set", "montessori_pl.run_directory.run_directory.RunDirectory.finish"),
    Moment("trained", STUDENT_STEP, call=2),
    Moment("mistakes", GENERATE),  # from here on in the second iteration
    Moment("augmented", GENERATE, call=2),
    Moment("training_set", OPEN, half_a_line, file="/examples.jsonl.draft"),
]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    """Three rounds from sixteen seeds."""
    return tiny_recipe(
        "llm2llm.yaml",
        seed_data={"source": "classroom/seed_tasks[:16]"},
        mistakes={"examples_per_batch": 6},
        augmented={"num_examples": 12, "prompts_per_batch": 1},
        trained={"training.batch_size": 8},
    )


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """The run of this recipe."""
    main(["fit", "--config", str(recipe)])
    return recipe.parent / "run"


def examples(run: Path, stage: str, iteration: int = 1) -> dict[str, Example]:
    records = read_records(run / f"iteration_{iteration}" / stage / "examples.jsonl", Example)
    assert len({record.id for record in records}) == len(records)
    return {record.id: record for record in records}


def metrics(run: Path, key: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / key / "metrics.json").read_text())
    return content


@pytest.mark.slow
def test_an_augmentation_is_never_augmented(run: Path) -> None:
    """In every round the teacher is shown mistakes among the original seeds, and nothing that it has written."""
    seeds = examples(run, "seed_data")
    assert len(seeds) == 16
    for iteration in ROUNDS:
        mistakes, augmented = examples(run, "mistakes", iteration), examples(run, "augmented", iteration)
        assert 0 < len(mistakes) < 16
        assert all(seeds[id_] == mistake for id_, mistake in mistakes.items())
        assert len(augmented) == 12
        assert {id_ for example in augmented.values() for id_ in example.seed_task_ids} == mistakes.keys()
        for example in augmented.values():
            (seed_id,) = example.seed_task_ids
            assert example.prompt == f"Write a new task .\n<instruction>{seeds[seed_id].instruction}</instruction>"


@pytest.mark.slow
def test_the_training_set_grows_and_repeats_nothing(run: Path) -> None:
    expected = examples(run, "seed_data")
    for iteration in ROUNDS:
        new = examples(run, "augmented", iteration)
        assert not expected.keys() & new.keys()
        assert not {e.instruction for e in expected.values()} & {e.instruction for e in new.values()}
        expected |= new
        assert examples(run, "training_set", iteration) == expected
        assert metrics(run, f"iteration_{iteration}/trained")["examples"] == 16 + 12 * iteration
    added = metrics(run, "iteration_3/training_set")["added"]
    assert added == {
        "training_set before": 40,
        "seed_data": 0,
        "augmented": 12,
    }


def test_each_round_examines_the_student_of_the_round_before_and_trains_from_base(run: Path) -> None:
    inputs = {
        key: {name: value.split()[0] for name, value in entry.inputs.items()}
        for key, entry in RunDirectory(run).entries.items()
    }
    assert list(inputs["iteration_1/seed_student"]) == ["examples"]
    assert "iteration_2/seed_student" not in inputs
    student = "iteration_1/seed_student"
    for iteration in ROUNDS:
        here = f"iteration_{iteration}"
        assert inputs[f"{here}/mistakes"] == {"examples": "iteration_1/seed_data", "student": student}
        assert inputs[f"{here}/trained"] == {"examples": f"{here}/training_set"}
        student = f"{here}/trained"


def test_a_finished_run_has_nothing_left_to_do(recipe: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(recipe)])
    assert "All 17 stages had finished; nothing was left to do." in capsys.readouterr().out


@pytest.mark.slow
def test_a_student_without_a_mistake_does_not_stop_the_recipe(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No seed scores below 0 tokens: nothing is written, and each student learns from the seeds."""
    config = yaml.safe_load(recipe.read_text())
    stages = config["recipe"]
    judged = {
        "class_path": "ScoreExamples",
        "init_args": {
            "examples": "seed_data",
            "signal": {"class_path": "callbacks.ResponseLengthSignal", "init_args": {"direction": "high"}},
        },
    }
    stages["mistakes"]["init_args"] |= {"by": "score", "scores": "judged", "below": 0}
    first = ("seed_data", "seed_student")
    config["recipe"] = {name: stages[name] for name in first} | {"judged": judged} | stages
    config |= {"run": str(tmp_path / "run"), "iterations": 2}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    main(["fit", "--config", str(path)])
    printed = capsys.readouterr().out
    for iteration in (1, 2):
        for stage in ("mistakes", "augmented"):
            assert examples(tmp_path / "run", stage, iteration) == {}
        assert examples(tmp_path / "run", "training_set", iteration) == examples(tmp_path / "run", "seed_data")
    assert "(0 mistakes in 16 examples)" in printed
    assert "warning: of 16 examples none is a mistake: there is nothing to augment" in printed


@pytest.mark.slow
def test_killed(recipe: Path, run: Path, tmp_path: Path) -> None:
    """Killed in the stages that no other recipe has, in the first two rounds."""
    program = Program(recipe, tmp_path)
    for moment in MOMENTS:
        program.kill(tmp_path / "killed", moment)
    program.finish(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", run)
