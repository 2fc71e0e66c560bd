"""The recipes that update otherwise than by DPO over instructions: killed in their own stages, they end the same."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_kill_and_resume import (
    GENERATE,
    OPEN,
    REPLACE,
    SAVE_WEIGHTS,
    STUDENT_STEP,
    Moment,
    Program,
    assert_same_run,
    everything,
    half_a_line,
)

from montessori_pl import classroom
from montessori_pl.workspace import Workspace

pytestmark = pytest.mark.slow

SHORT = {"temperature": 1.0, "presence_penalty": 0.0, "max_tokens": 24}


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe at a size of seconds, and where it is killed."""

    settings: dict[str, dict[str, Any]]
    """What is smaller than in the shipped recipe, by stage."""
    moments: list[Moment]
    """When it dies, in turn."""


CASES = {
    "response_optimization.yaml": Case(
        settings={
            "instructions": {"num_examples": 24, "prompts_per_round": 4},
            "responses": {"instructions_per_round": 8},
            "aligned_teacher": {"watch.sampling": SHORT},
            "training_instructions": {"num_examples": 32, "prompts_per_round": 4},
            "training_responses": {"instructions_per_round": 8},
        },
        moments=[
            Moment("responses", GENERATE, call=2),
            Moment("responses", OPEN, half_a_line, file="/examples.jsonl", call=2),
            Moment("aligned_teacher", "montessori_pl.teacher.TeacherDPOModule.dpo", call=3),
            Moment("aligned_teacher", OPEN, half_a_line, file="/looks.jsonl.draft", call=2),
            Moment("training_responses", OPEN, file="/journal.jsonl", call=2),
            Moment("trained", STUDENT_STEP, call=2),
        ],
    ),
    "bootstrap.yaml": Case(
        settings={},
        moments=[
            Moment("best_half", OPEN, half_a_line, file="/examples.jsonl.draft"),
            Moment("best_half", "montessori_pl.workspace.Workspace.finish"),
            Moment("training_data", OPEN, half_a_line, file="/examples.jsonl", call=2),
        ],
    ),
    "self_reward.yaml": Case(
        settings={
            "new_instructions": {"num_examples": 32, "prompts_per_round": 4},
            "answers": {"instructions_per_round": 8},
            "judgements": {"batch_tokens": 64},
            "aligned": {"training.checkpoint_every_n_steps": 1, "training.batch_size": 4},
        },
        moments=[
            Moment("answers", GENERATE, everything, call=2),
            Moment("judgements", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("aligned", "montessori_pl.dpo.DPOModule.training_step", call=2),
            Moment("aligned", REPLACE, file="last.ckpt.draft", call=2),
            Moment("aligned", SAVE_WEIGHTS),
            Moment("aligned", SAVE_WEIGHTS, everything),
            Moment("evaluation", GENERATE, call=2),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_in_their_own_stages(name: str, tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """A run that was killed again and again, and one that nobody disturbed; and the report shows every student."""
    classroom.resolve("classroom/teacher")  # built once, in this process
    case = CASES[name]
    program = Program(tiny_recipe(name, **case.settings), tmp_path)
    program.finish(tmp_path / "whole")
    for moment in case.moments:
        program.kill(tmp_path / "killed", moment)
    program.finish(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    last = [step.removeprefix("iteration_1/") for step in Workspace(tmp_path / "whole").entries][-2]
    assert list(summary["students"])[-1] == last
