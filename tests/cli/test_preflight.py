"""What a run would find out after hours ends in one sentence before anything has run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from recipe_files import Mistake, Recipe
from tiny_models import save_tiny_model, save_tiny_reward_model

EXAMPLES = "recorded"


def stage(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": arguments}


def scored(signal: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    return stage("ScoreExamples", examples=EXAMPLES, student="base", signal=signal, **arguments)


@pytest.mark.parametrize("evaluator", ["ExactMatch", "WinRate"])
def test_a_test_set_that_a_late_stage_wants(recipe: Recipe, mistake: Mistake, evaluator: str) -> None:
    judge = {"init_args": {"judge": {"backbone": "classroom/teacher"}}} if evaluator == "WinRate" else {}
    last = stage("Evaluate", students=["base"], evaluators=[{"class_path": evaluator, **judge}])
    said = mistake("--config", recipe(data__test=None, recipe__evaluation=last))
    assert said == (
        f"recipe.evaluation: {evaluator} needs a test set, and data.test is not set: name one, or leave the evaluator "
        "out"
    )
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (
            scored({"class_path": "callbacks.TrainingLossSignal", "init_args": {"direction": "low"}}, max_length=4),
            r"none of the 8 examples of the reference set has a response within max_length 4 tokens",
        ),
        (
            stage("Evaluate", students=["base"], evaluators=[stage("ResponseLoss", max_length=4)]),
            "data.reference: none of the 8 examples has a response within max_length 4 tokens",
        ),
        (
            stage("Evaluate", students=["base"], evaluators=[stage("ExactMatch", max_tokens=4000)]),
            r"no prompt has room: the shortest of 8 takes \d+ tokens, max_tokens is 4000, and the model has \d+ positi",
        ),
        (
            stage(
                "Synthesize",
                num_examples=4,
                instruction_sampling={"max_tokens": 16},
                response_sampling={"max_tokens": 4000},
            ),
            r"no prompt has room: .* response_sampling.max_tokens is 4000",
        ),
        (
            stage("GenerateResponses", instructions=EXAMPLES, student="base", sampling={"max_tokens": 4000}),
            "no prompt has room: .* sampling.max_tokens is 4000",
        ),
        (
            scored({"class_path": "callbacks.JudgeSignal", "init_args": {"sampling": {"max_tokens": 4000}}}),
            "no prompt has room: .* signal.init_args.sampling.max_tokens is 4000",
        ),
    ],
    ids=["no reference", "no loss", "no answer", "no response", "no generated response", "no judgement"],
)
def test_what_leaves_no_room(recipe: Recipe, mistake: Mistake, late: dict[str, Any], expected: str) -> None:
    said = mistake("--config", recipe(recipe__late=late))
    assert said.startswith("recipe.late: ")
    assert re.search(expected, said)
    assert not Path("run").exists()


@pytest.mark.slow
def test_every_model_that_is_only_asked_is_looked_at(recipe: Recipe, mistake: Mistake, tmp_path: Path) -> None:
    """A teacher of the pool, a judge, a reward model and the encoder of a router, each with its weights cut."""
    backbone, reward = save_tiny_model(tmp_path / "model"), save_tiny_reward_model(tmp_path / "reward")
    for directory in (backbone, reward):
        config = json.loads((Path(directory) / "config.json").read_text())
        (Path(directory) / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    answered = stage("GenerateResponses", instructions=EXAMPLES, teachers=["elsewhere"], sampling={"max_tokens": 8})
    judged = scored({"class_path": "callbacks.JudgeSignal", "init_args": {"judge": {"backbone": backbone}}})
    rewarded = scored({"class_path": "callbacks.RewardModelSignal", "init_args": {"model": reward}})
    router = stage("TrainRouter", examples=EXAMPLES, quality="scores", learnability="scores", encoder=backbone)
    random = scored({"class_path": "callbacks.RandomSignal"})
    for section, changes in {
        "teachers.elsewhere": {"recipe__late": answered, "teachers": {"elsewhere": {"backbone": backbone}}},
        "recipe.late": {"recipe__late": judged},
        "recipe.rewards": {"recipe__rewards": rewarded},
        "recipe.router": {"recipe__scores": random, "recipe__router": router},
    }.items():
        said = mistake("--config", recipe(**changes))
        assert said.startswith(f"{section}: the checkpoint of the backbone ")
        assert "has no weights for" in said
        assert not Path("run").exists()
