"""Who reads what, over one and three iterations, and every mistake that is found before anything runs."""

from typing import Any

import pytest

from callbacks import InfluenceProbeCallback, RandomSignal, TrainingLossSignal
from montessori_pl.evaluation import ResponseLoss
from montessori_pl.optim import TrainingSettings
from montessori_pl.pipeline.recipe import RecipeError, Step, resolve_recipe
from montessori_pl.stages import (
    AlignTeacher,
    Augment,
    BuildPreferences,
    CollapseGuard,
    ConcatExamples,
    Evaluate,
    RecordedExamples,
    ScoreExamples,
    SelectHardExamples,
    Stage,
    Synthesize,
    TrainStudent,
)

TRAINING = TrainingSettings(lr=1e-3)


def montessori(**changes: Stage) -> dict[str, Stage]:
    """The paper's recipe."""
    return {
        "warmup_data": Synthesize(num_examples=4, first_iteration_only=True),
        "warmup": TrainStudent("warmup_data", TRAINING, first_iteration_only=True),
        "probing_data": Synthesize(num_prompts=4),
        "influence": ScoreExamples("probing_data", InfluenceProbeCallback()),
        "preferences": BuildPreferences("probing_data", "influence"),
        "aligned_teacher": AlignTeacher("preferences", TRAINING),
        "training_data": Synthesize(num_examples=4, teacher="aligned_teacher"),
        "trained": TrainStudent("training_data", TRAINING),
        "evaluation": Evaluate(["base", "warmup", "trained"], [ResponseLoss()]),
        **changes,
    }


def reads(steps: list[Step]) -> dict[str, Any]:
    return {step.key: dict(step.inputs) for step in steps}


def test_first_iteration() -> None:
    """Influence is measured on the warmed-up student, the only one there is; the teacher is the base until aligned."""
    assert reads(resolve_recipe(montessori(), 1)) == {
        "iteration_1/warmup_data": {"teacher": None},
        "iteration_1/warmup": {"examples": "iteration_1/warmup_data"},
        "iteration_1/probing_data": {"teacher": None},
        "iteration_1/influence": {"examples": "iteration_1/probing_data", "student": "iteration_1/warmup"},
        "iteration_1/preferences": {"examples": "iteration_1/probing_data", "scores": "iteration_1/influence"},
        "iteration_1/aligned_teacher": {"pairs": "iteration_1/preferences", "teacher": None},
        "iteration_1/training_data": {"teacher": "iteration_1/aligned_teacher"},
        "iteration_1/trained": {"examples": "iteration_1/training_data"},
        "iteration_1/evaluation": {
            "students.base": None,
            "students.warmup": "iteration_1/warmup",
            "students.trained": "iteration_1/trained",
        },
    }


def test_later_iterations_go_on_from_the_one_before() -> None:
    """The teacher, also as the reference policy, and the probed student come from before; the student starts anew."""
    steps = resolve_recipe(montessori(), 3)
    assert [step.iteration for step in steps] == [1] * 9 + [2] * 7 + [3] * 7
    inputs = reads(steps)
    assert inputs.items() >= reads(resolve_recipe(montessori(), 1)).items(), "more iterations do not change the first"
    for now, before in ((2, 1), (3, 2)):
        assert f"iteration_{now}/warmup" not in inputs
        assert inputs[f"iteration_{now}/probing_data"] == {"teacher": f"iteration_{before}/aligned_teacher"}
        assert inputs[f"iteration_{now}/influence"] == {
            "examples": f"iteration_{now}/probing_data",
            "student": f"iteration_{before}/trained",
        }
        assert inputs[f"iteration_{now}/aligned_teacher"] == {
            "pairs": f"iteration_{now}/preferences",
            "teacher": f"iteration_{before}/aligned_teacher",
        }
        assert inputs[f"iteration_{now}/training_data"] == {"teacher": f"iteration_{now}/aligned_teacher"}
        assert inputs[f"iteration_{now}/trained"] == {"examples": f"iteration_{now}/training_data"}
        assert inputs[f"iteration_{now}/evaluation"] == {
            "students.base": None,
            "students.warmup": "iteration_1/warmup",
            "students.trained": f"iteration_{now}/trained",
        }


def llm2llm(**changes: Stage) -> dict[str, Stage]:
    """The recipe whose training set grows, and whose mistakes are looked for among the first examples only."""
    return {
        "seed_data": RecordedExamples("seeds.jsonl", first_iteration_only=True),
        "seed_student": TrainStudent("seed_data", TRAINING, first_iteration_only=True),
        "mistakes": SelectHardExamples("seed_data"),
        "augmented": Augment("mistakes", per_example=1, deduplicate_against=["training_set"]),
        "training_set": ConcatExamples(["seed_data", "augmented"], growing=True),
        "trained": TrainStudent("training_set", TRAINING),
        **changes,
    }


def test_a_stage_reads_itself_in_the_iteration_before() -> None:
    """Nothing in the first iteration; of a stage that stands later, its last step is read likewise."""
    inputs = reads(resolve_recipe(llm2llm(), 3))
    before = None
    for now in (1, 2, 3):
        assert inputs[f"iteration_{now}/mistakes"] == {
            "examples": "iteration_1/seed_data",
            "student": f"iteration_{now - 1}/trained" if now > 1 else "iteration_1/seed_student",
        }
        assert inputs[f"iteration_{now}/augmented"] == {
            "examples": f"iteration_{now}/mistakes",
            "teacher": None,
            "deduplicate_against.training_set": before,
        }
        assert inputs[f"iteration_{now}/training_set"] == {
            "growing": before,
            "examples.seed_data": "iteration_1/seed_data",
            "examples.augmented": f"iteration_{now}/augmented",
        }
        assert inputs[f"iteration_{now}/trained"] == {"examples": f"iteration_{now}/training_set"}
        before = f"iteration_{now}/training_set"


@pytest.mark.parametrize(
    ("name", "why"),
    [("trained", "stage 'trained' produces student"), ("training_sets", "there is no such stage")],
)
def test_what_need_not_be_there_must_fit_all_the_same(name: str, why: str) -> None:
    stages = llm2llm(augmented=Augment("mistakes", per_example=1, deduplicate_against=[name]))
    with pytest.raises(RecipeError) as error:
        resolve_recipe(stages, 1)
    assert str(error.value) == (
        f"recipe.augmented: deduplicate_against names {name!r}, but {why}; what can be read there, "
        "examples of stages before it: seed_data, mistakes"
    )


def test_base_can_be_asked_for_in_every_iteration() -> None:
    stages = montessori(aligned_teacher=AlignTeacher("preferences", TRAINING, teacher="base"))
    assert reads(resolve_recipe(stages, 2))["iteration_2/aligned_teacher"]["teacher"] is None


@pytest.mark.parametrize("baseline", ["warmup_data", "probing_data"])
def test_a_guard_reads_its_baseline_and_the_teacher_that_may_have_to_write(baseline: str) -> None:
    """What only the first iteration writes is read there; where nobody else will write, no other teacher is read."""
    for fallback, others in (("none", {}), ("unaligned", {"guard.fallback_teacher": None})):
        guard = CollapseGuard(baseline=baseline, fallback=fallback)  # type: ignore[arg-type]
        stages = montessori(training_data=Synthesize(num_examples=4, teacher="aligned_teacher", guard=guard))
        assert reads(resolve_recipe(stages, 2))["iteration_2/training_data"] == {
            "teacher": "iteration_2/aligned_teacher",
            "guard.baseline": f"iteration_{1 if baseline == 'warmup_data' else 2}/{baseline}",
            **others,
        }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"warmup": TrainStudent("warmup_dat", TRAINING)},
            "recipe.warmup: examples names 'warmup_dat', but there is no such stage; "
            "what can be read there, examples of stages before it: warmup_data",
        ),
        (
            {"warmup": TrainStudent("training_data", TRAINING)},
            "recipe.warmup: examples names 'training_data', but stage 'training_data' comes later; "
            "what can be read there, examples of stages before it: warmup_data",
        ),
        (
            {"preferences": BuildPreferences("probing_data", "warmup")},
            "recipe.preferences: scores names 'warmup', but stage 'warmup' produces student; "
            "what can be read there, scores of stages before it: influence",
        ),
        (
            {"evaluation": Evaluate(["base", "aligned_teacher"], [ResponseLoss()])},
            "recipe.evaluation: students names 'aligned_teacher', but stage 'aligned_teacher' produces teacher; "
            "what can be read there, student of stages before it: warmup, trained, latest, base",
        ),
        (
            {"training_data": Synthesize(num_examples=4, guard=CollapseGuard(baseline="warmup_dat"))},
            "recipe.training_data: guard names 'warmup_dat', but there is no such stage; "
            "what can be read there, examples of stages before it: warmup_data, probing_data",
        ),
        (
            {"warmup_data": Synthesize(num_examples=4, guard=CollapseGuard(baseline="probing_data"))},
            "recipe.warmup_data: guard names 'probing_data', but stage 'probing_data' comes later; "
            "what can be read there, examples of stages before it: none",
        ),
        (
            {
                "training_data": Synthesize(
                    num_examples=4,
                    guard=CollapseGuard(baseline="warmup_data", fallback="mixture", fallback_teacher="warmup"),
                )
            },
            "recipe.training_data: guard names 'warmup', but stage 'warmup' produces student; "
            "what can be read there, teacher of stages before it: aligned_teacher, latest, base",
        ),
        (
            {"warmup_data": Synthesize(num_examples=4, teacher="warmup")},
            "recipe.warmup_data: teacher names 'warmup', but stage 'warmup' produces student; "
            "what can be read there, teacher of stages before it: latest, base",
        ),
        (
            {"warmup": TrainStudent("latest", TRAINING)},
            "recipe.warmup: examples names 'latest', but there is no such stage; "
            "what can be read there, examples of stages before it: warmup_data",
        ),
    ],
)
def test_stage_that_reads_what_is_not_there(changes: dict[str, Stage], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        resolve_recipe(montessori(**changes), 1)
    assert str(error.value) == sentence


def test_nothing_can_be_read() -> None:
    with pytest.raises(RecipeError, match=r"examples of stages before it: none$"):
        resolve_recipe({"trained": TrainStudent("data", TRAINING)}, 1)


def test_recipe_without_stages_and_iterations_below_one() -> None:
    with pytest.raises(RecipeError, match="the recipe has no stages"):
        resolve_recipe({}, 1)
    with pytest.raises(RecipeError, match="iterations must be at least 1, found 0"):
        resolve_recipe(montessori(), 0)


@pytest.mark.parametrize("name", ["latest", "base", "", "../elsewhere", "a/b", ".hidden", "two words"])
def test_names_that_are_no_directories(name: str) -> None:
    with pytest.raises(RecipeError, match=r"a stage cannot be called .*; 'latest' and 'base' are taken"):
        resolve_recipe({name: Synthesize(num_examples=4)}, 1)


def test_names_of_every_script_and_with_marks() -> None:
    assert [step.key for step in resolve_recipe({"données-1.2": Synthesize(num_examples=4)}, 1)] == [
        "iteration_1/données-1.2"
    ]


def test_a_signal_that_needs_no_student_reads_none() -> None:
    """Its recipe runs without a student that was trained, and whatever stands in the setting is not looked for."""
    data = {"data": RecordedExamples("rows.jsonl")}
    steps = resolve_recipe({**data, "scores": ScoreExamples("data", RandomSignal(), student="nobody")}, 1)
    assert reads(steps)["iteration_1/scores"] == {"examples": "iteration_1/data"}
    with pytest.raises(RecipeError, match=r"recipe\.scores: student names 'nobody', but there is no such stage"):
        resolve_recipe({**data, "scores": ScoreExamples("data", TrainingLossSignal("low"), student="nobody")}, 1)
