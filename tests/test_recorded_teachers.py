"""The recipe `recorded_teachers.yaml` from a file of published responses to trained students, by the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from killing import OPEN, REPLACE, Moment, Program, assert_same_run, half_a_line
from recorded_pools import best_teacher, known_qualities, pool, prompts
from tiny_models import save_tiny_model

from montessori_pl.cli.fit import main
from montessori_pl.data.records import Example, read_records

Recipe = Callable[..., Path]
MOMENTS = [
    Moment("responses", OPEN, half_a_line, file="/examples.jsonl.draft"),
    Moment("responses", OPEN, file="/rejections.jsonl.draft"),  # the examples are there
    Moment("best_teacher", OPEN, half_a_line, file="/router.json.draft"),
    Moment("best_teacher_data", OPEN, half_a_line, file="/examples.jsonl.draft"),
    Moment("router", "montessori_pl.stages.train_router.fit_head"),
    Moment("routed_data", REPLACE, file="/examples.jsonl.draft"),
    Moment("routed_data", "montessori_pl.run_directory.run_directory.RunDirectory.finish"),
]


@pytest.fixture
def recipe(tiny_recipe: Recipe, tmp_path: Path) -> Callable[..., Path]:
    """The shipped recipe on 100 prompts that three teachers answered; keyword arguments rename columns.

    With `best`, the responses of this teacher are the best for all prompts.
    """

    def write(best: str = "", **names: str) -> Path:
        examples = pool(prompts(100))
        qualities = known_qualities(examples)
        qualities |= {one.id: qualities[one.id] + 9 for one in examples if one.teacher == best}
        columns = {"teacher": "model", "quality": "reward", **names}
        rows: list[dict[str, Any]] = [
            {
                "instruction": one.instruction,
                "output": one.response.lower(),
                columns["teacher"]: one.teacher,
                columns["quality"]: qualities[one.id] - 0.6,
            }
            for one in examples
        ]
        source, reference = tmp_path / "responses.jsonl", tmp_path / "reference.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        answers = [{"instruction": f"why {letter}?", "response": "so it is."} for letter in "abc"]
        reference.write_text("".join(json.dumps(row) + "\n" for row in answers))
        backbone = save_tiny_model(tmp_path / "student")
        training = {"training.checkpoint_every_n_steps": 1, "training.epochs": 1}
        return tiny_recipe(
            "recorded_teachers.yaml",
            config={
                "student.init_args.backbone": backbone,
                "data.seed_tasks": str(reference),
                "data.reference": str(reference),
                "trainer.accelerator": "cpu",
            },
            responses={"source": str(source)},
            router={"penalties": [0.01]},
            taught_by_best_teacher=training,
            taught_by_routed=training,
        )

    return write


@pytest.mark.slow
def test_from_responses_to_students(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is generated; the router finds who should answer what, and the report says by how much that is better."""
    path = recipe()
    main(["fit", "--config", str(path)])
    said = capsys.readouterr().out
    run = Path(yaml.safe_load(path.read_text())["run"]) / "iteration_1"
    metrics = {stage.name: json.loads((stage / "metrics.json").read_text()) for stage in run.iterdir()}
    assert metrics["best_teacher"]["prompts"] == 100
    assert set(metrics["best_teacher"]["rankings"]) >= {"car, beta 0", "car, beta inf", "quality", "loss", "length"}
    best = metrics["best_teacher"]["teacher"]
    assert metrics["best_teacher_data"]["shares"] == {best: 1.0}
    assert metrics["router"]["finding"].startswith("the router is better than always asking")
    assert metrics["router"]["finding"] in said
    assert "warning: the lowest mean quality of a teacher is -0." in said

    routed = read_records(run / "routed_data" / "examples.jsonl", Example)
    assert len(routed) == 100
    assert sum(one.teacher == best_teacher(one.instruction) for one in routed) > 90
    assert metrics["router"]["gain"]["quality"]["low"] > 0.1
    assert metrics["taught_by_routed"]["examples"] == metrics["taught_by_best_teacher"]["examples"] == 100
    assert set(metrics["evaluation"]["students"]) == {"base", "taught_by_best_teacher", "taught_by_routed"}

    # As the run kept it, with the `lora: null` of a student whose default is an adapter.
    main(["fit", "--config", str(run.parent / "config.yaml")])
    assert "All 10 stages had finished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_fallback_trains_no_second_student(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Where one teacher is the best for everything, the router gives way to it, and both arms have the same data."""
    path = recipe(best="steady")
    main(["fit", "--config", str(path)])
    said = capsys.readouterr().out
    run = Path(yaml.safe_load(path.read_text())["run"]) / "iteration_1"
    metrics = {stage.name: json.loads((stage / "metrics.json").read_text()) for stage in run.iterdir()}
    assert metrics["best_teacher"]["teacher"] == metrics["router"]["best_single_teacher"] == "steady"
    assert metrics["router"]["fell_back_to_constant"]
    assert metrics["taught_by_routed"]["same_as"] == "iteration_1/taught_by_best_teacher"
    assert metrics["taught_by_routed"]["loss"] == metrics["taught_by_best_teacher"]["loss"]
    assert "warning: iteration_1/taught_by_best_teacher has the same settings, and what it read has the same" in said
    first, second = run / "taught_by_best_teacher", run / "taught_by_routed"
    weights = sorted(file.relative_to(first) for file in (first / "weights").iterdir())
    assert weights
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in weights)
    students = metrics["evaluation"]["students"]
    assert students["taught_by_routed"] == students["taught_by_best_teacher"] != students["base"]

    main(["fit", "--config", str(path)])
    assert "All 10 stages had finished" in capsys.readouterr().out


@pytest.mark.slow
def test_responses_without_a_quality(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(quality="stars")
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(path)])
    assert "has no recorded quality, and so it is with 300 of 300 examples; write a fin" in capsys.readouterr().err


@pytest.mark.slow
def test_responses_of_nobody(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(teacher="author")
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(path)])
    said = capsys.readouterr().err
    assert "iteration_1/best_teacher: no teacher is recorded for the response of example" in said
    assert "write its teacher's name into a column `teacher`, `model` or `generator` of its source" in said


@pytest.mark.slow
def test_killed(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Killed in the stages that no recipe of the classroom has."""
    program = Program(recipe(), tmp_path)
    program.finish(tmp_path / "whole")
    for moment in MOMENTS:
        program.kill(tmp_path / "killed", moment)
    program.finish(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
