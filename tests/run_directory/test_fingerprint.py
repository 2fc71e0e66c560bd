"""Which settings pin a stage: those that decide what it makes."""

from montessori_pl import classroom
from montessori_pl.classroom.names import with_versions
from montessori_pl.run_directory.fingerprint import pinned


def test_settings_that_say_how_fast_are_left_out() -> None:
    """`training.checkpoint_every_n_steps` of TrainStudent; `max_batch_tokens` and `device` of the engine."""
    training = {"lr": 1e-3, "checkpoint_every_n_steps": 5}
    stage = {
        "class_path": "montessori_pl.stages.TrainStudent",
        "init_args": {"examples": "warmup_data", "training": training},
    }
    engine = {
        "class_path": "montessori_pl.generation.TransformersBackend",
        "init_args": {"max_batch_tokens": 64, "device": "cpu"},
    }
    evaluator = {"class_path": "montessori_pl.evaluation.ExactMatch", "init_args": {"max_tokens": 8}}
    in_rounds = {**evaluator, "init_args": {"max_tokens": 8, "items_per_batch": 9}}
    assert pinned({"evaluators": [in_rounds]}) == {"evaluators": [evaluator]}
    assert pinned(stage)["init_args"] == {"examples": "warmup_data", "training": {"lr": 1e-3}}
    assert pinned(engine) == {"class_path": "montessori_pl.generation.TransformersBackend", "init_args": {}}
    assert training == {"lr": 1e-3, "checkpoint_every_n_steps": 5}, "the settings themselves are not changed"


def test_plugins_inside_a_stage_name_their_own() -> None:
    signal = {"class_path": "callbacks.InfluenceProbeCallback", "init_args": {"lr": 1e-3, "reference_batch_tokens": 9}}
    stage = {"class_path": "montessori_pl.stages.ScoreExamples", "init_args": {"examples": "data", "signal": signal}}
    assert pinned(stage)["init_args"]["signal"]["init_args"] == {"lr": 1e-3}


def test_lists_and_plain_values_stay() -> None:
    evaluators = [{"class_path": "montessori_pl.evaluation.ResponseLoss", "init_args": {"max_length": 3}}, 1, None]
    assert pinned({"evaluators": evaluators, "data": {"seed_tasks": "a"}}) == {
        "evaluators": evaluators,
        "data": {"seed_tasks": "a"},
    }


def test_missing_sections_do_no_harm() -> None:
    """A stage without init_args, and one whose nested settings are not there."""
    assert pinned({"class_path": "montessori_pl.stages.TrainStudent"}) == {
        "class_path": "montessori_pl.stages.TrainStudent"
    }
    stage = {"class_path": "montessori_pl.stages.TrainStudent", "init_args": {"training": None}}
    assert pinned(stage) == stage


def test_names_of_the_classroom_are_pinned_with_its_version() -> None:
    settings = {
        "data": {"seed_tasks": "classroom@3/seed_tasks[:4]", "test": "mine.jsonl"},
        "students": ["classroom/student", 1],
    }
    version = classroom.version()

    assert with_versions(settings) == {
        "data": {"seed_tasks": f"classroom@3/seed_tasks[:4] (version {version})", "test": "mine.jsonl"},
        "students": [f"classroom/student (version {version})", 1],
    }


def test_how_a_model_is_trained_matters_to_stages_that_train_it() -> None:
    teacher = {"class_path": "montessori_pl.TeacherDPOModule", "init_args": {"backbone": "b", "beta": 0.2, "lora": {}}}
    assert pinned(teacher, trained=True) == teacher
    assert pinned(teacher, trained=False)["init_args"] == {"backbone": "b", "lora": {}}
