"""Each shipped recipe, killed in the stages that make it itself, ends as if nothing had happened, and is itself."""

import dataclasses
import json
import runpy
import statistics
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import test_accumulate
import test_kill_and_resume
import test_llm2llm
import test_recorded_teachers
import yaml
from killing import (
    GENERATE,
    OPEN,
    REPLACE,
    SAVE_WEIGHTS,
    STUDENT_STEP,
    Moment,
    Program,
    assert_same_run,
    copy_until,
    everything,
    half_a_line,
)

from montessori_pl.classroom.tasks import SKILLS, family
from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.data.records import Example, PreferencePair, Record, Rejection, Score, read_records
from montessori_pl.generation import TransformersBackend
from montessori_pl.models.loading import ModelSource
from montessori_pl.routing import load_router
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stages.base import ROUTING
from montessori_pl.stats.gradients import grace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
R = TypeVar("R", bound=Record)
SHORT = {"temperature": 1.0, "presence_penalty": 0.0, "max_tokens": 24}


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe at a size of seconds, and where it is killed."""

    settings: dict[str, dict[str, Any]]
    """What is smaller than in the shipped recipe, by stage."""
    moments: list[Moment]
    """When it dies, in turn."""
    check: Callable[[Path], None] = lambda run: None
    """What makes the recipe itself, as assertions about the records of a finished run."""


ELSEWHERE = {
    "iter1.yaml": test_kill_and_resume.MOMENTS,
    "iter2.yaml": [],  # the stages of iter1
    "llm2llm.yaml": test_llm2llm.MOMENTS,
    "real_text.yaml": [],  # which test_real_text.py runs: the stages of iter1, and one of llm2llm
    "smollm2.yaml": [],  # which test_smollm2.py runs: the stages of iter1
    "smollm2_selection.yaml": [],  # which test_real_model_study.py runs: the stages of aligned_selection
    "smollm2_active.yaml": [],  # the same test: the stages of active_consistency
    "tinyllama_1.1b.yaml": [],  # planned in tests/pipeline/test_resources.py: the stages of iter1
    "llama3_8b.yaml": [],  # the same
    "qwen2.5_0.5b_from_7b.yaml": [],  # the same
    "recorded_teachers.yaml": test_recorded_teachers.MOMENTS,
    "accumulate.yaml": test_accumulate.MOMENTS,
}
"""Shipped recipes that other tests run, and where they kill them."""
POOL = ["letters", "digits", "chatty", "peer"]


def records(run: Path, stage: str, kind: type[R]) -> list[R]:
    """What a stage of the only iteration has written."""
    name = {Example: "examples", Score: "scores", PreferencePair: "pairs"}[kind]  # type: ignore[index]
    return read_records(run / "iteration_1" / stage / f"{name}.jsonl", kind)


def metrics(run: Path, stage: str) -> dict[str, Any]:
    """The numbers of a stage of the only iteration."""
    found: dict[str, Any] = json.loads((run / "iteration_1" / stage / "metrics.json").read_text())
    return found


def best_is_chosen(run: Path, stage: str, largest: Callable[[Score], float]) -> None:
    """Of each prompt the example with the largest number is preferred to the one with the smallest."""
    scores = {score.id: score for score in records(run, stage, Score)}
    groups: dict[str, list[float]] = {}
    for example in records(run, "probing_data", Example):
        if example.id in scores:
            groups.setdefault(example.prompt, []).append(largest(scores[example.id]))
    pairs = records(run, "preferences", PreferencePair)
    assert pairs
    for pair in pairs:
        assert largest(scores[pair.chosen_id]) == max(groups[pair.prompt])
        assert largest(scores[pair.rejected_id]) == min(groups[pair.prompt])


def hard_examples_are_preferred(run: Path) -> None:
    """By the loss of the warm student, which is not the score's value by definition but its detail."""
    best_is_chosen(run, "losses", lambda score: score.details["loss"])


def what_is_answered_alike_is_learned(run: Path, stage: str = "training_data") -> None:
    """Chatter has no answer that the teacher would give five times."""
    rejected = read_records(run / "iteration_1" / stage / "rejections.jsonl", Rejection)
    undecided = [one for one in rejected if one.reason == "inconsistent answers"]
    assert undecided
    assert statistics.fmean(family(one.text) not in SKILLS for one in undecided) > 0.5
    examples = records(run, stage, Example)
    # Of what the teacher writes these are fewer than half.
    assert statistics.fmean(family(one.instruction) in SKILLS for one in examples) > 0.6


def what_the_student_solves_at_times_is_preferred(run: Path) -> None:
    """Eight answers have five uncertainties, from never or always to every second time."""
    best_is_chosen(run, "solve_rates", lambda score: -abs(score.details["solve_rate"] - 0.5))
    values = [score.value for score in records(run, "solve_rates", Score)]
    assert all(0 <= value <= 1 for value in values)
    assert len(set(values)) > 2


def what_the_judge_likes_is_preferred(run: Path) -> None:
    best_is_chosen(run, "judgements", lambda score: score.value)
    values = [score.value for score in records(run, "judgements", Score)]
    assert all(0 <= value <= 5 for value in values)
    assert len(set(values)) > 2


def rounds_follow_each_other(run: Path) -> None:
    """Each round is written by the teacher of the round before, and the last one's teacher writes the data."""
    for stage, teacher in (
        ("written_1", "classroom/teacher"),
        ("written_2", "classroom/teacher + policy_1"),
        ("training_data", "classroom/teacher + policy_4"),
    ):
        assert {example.teacher for example in records(run, stage, Example)} == {teacher}
    for number in range(1, 5):
        assert metrics(run, f"policy_{number}")["completions"] > 0


def nothing_is_measured(run: Path) -> None:
    assert not list(run.glob("iteration_1/*/scores.jsonl"))
    assert {example.teacher for example in records(run, "training_data", Example)} == {"classroom/teacher"}


def users_have_written_everything(run: Path) -> None:
    """Tasks of the classroom, in user turns that end themselves; no shots, and nothing in front of them."""
    examples = records(run, "training_data", Example)
    assert {(one.prompt, one.prompt_format, one.seed_task_ids) for one in examples} == {("", "user_turn", ())}
    assert all(one.completion_finished and one.completion.strip() == one.instruction for one in examples)
    assert sum(family(one.instruction) is not None for one in examples) > len(examples) / 4


def the_endpoint_has_written_everything(run: Path) -> None:
    """And the engine has paid for what the metrics count, and for nothing else, whatever was killed."""
    assert {example.teacher for example in records(run, "training_data", Example)} == {"strong"}
    spent = json.loads((run / "requests" / "strong" / "usage.json").read_text())
    counted = metrics(run, "training_data")
    assert counted["cost"] == pytest.approx(spent["dollars"])
    assert counted["generated_tokens"] == spent["num_tokens"] > 0


def one_teacher_answers_everything(run: Path) -> None:
    """The one whose quality / (1 + 3 * loss), from the records, is the largest."""
    quality = {score.id: score.value for score in records(run, "quality", Score)}
    loss = {score.id: score.details["loss"] for score in records(run, "learnability", Score)}
    answers: dict[str, list[str]] = {}
    for example in records(run, "calibration", Example):
        answers.setdefault(example.instruction, []).append(example.id)
    complete = [ids for ids in answers.values() if len(ids) == len(POOL) and all(id_ in quality for id_ in ids)]
    merits = {}
    for place, name in enumerate(POOL):
        own = [ids[place] for ids in complete]
        assert all(f"-{name}-" in id_ for id_ in own)
        mean_loss = sum(loss[id_] for id_ in own) / len(own)
        merits[name] = sum(quality[id_] for id_ in own) / len(own) / (1 + 3 * mean_loss)
    best = max(POOL, key=merits.__getitem__)
    assert metrics(run, "chosen")["teacher"] == best
    assert {example.teacher for example in records(run, "training_data", Example)} == {best}


def the_lowest_grace_answers_everything(run: Path) -> None:
    """By the gradients in the records."""
    gradients = {score.id: score.gradient for score in records(run, "gradients", Score)}
    answers: dict[str, list[str]] = {}
    for example in records(run, "calibration", Example):
        answers.setdefault(example.instruction, []).append(example.id)
    complete = [ids for _, ids in sorted(answers.items()) if len(ids) == len(POOL)]
    found = {
        name: grace([np.array([gradients[ids[place]]]) for ids in complete]).mean() for place, name in enumerate(POOL)
    }
    lowest = min(POOL, key=found.__getitem__)
    assert metrics(run, "chosen")["teachers"][lowest]["grace"]["mean"] == pytest.approx(found[lowest])
    assert {example.teacher for example in records(run, "training_data", Example)} == {lowest}


def the_router_decides_who_answers(run: Path) -> None:
    examples = records(run, "training_data", Example)
    router = load_router(run / "iteration_1" / "chosen" / ROUTING)
    assert [example.teacher for example in examples] == router.route([example.instruction for example in examples])
    assert len({example.instruction for example in examples}) == len(examples)


def the_best_is_made_likelier(run: Path) -> None:
    """And no loss of pairs is learned: the objective is the likelihood, up to rounding."""
    last = metrics(run, "aligned_teacher")
    assert last["loss"] == pytest.approx(last["chosen_nll"])
    assert last["chosen_reward"] != 0


def better_half(iteration: Path, stages: tuple[str, ...]) -> set[str]:
    """By the mean of several students, each divided by its standard deviation."""
    total: dict[str, float] = {}
    for stage in stages:
        scores = {score.id: score.value for score in read_records(iteration / stage / "scores.jsonl", Score)}
        size = statistics.pstdev(scores.values())
        for id_, value in scores.items():
            total[id_] = total.get(id_, 0.0) + value / size
    return set(sorted(total, key=lambda id_: (-total[id_], id_))[: round(len(total) / 2)])


def the_better_half_is_learned(run: Path) -> None:
    best = better_half(run / "iteration_1", ("influence", "influence_2", "influence_3"))
    assert {example.id for example in records(run, "training_data", Example)} == best


def the_better_half_of_an_aligned_teacher_is_learned(run: Path) -> None:
    learned = records(run, "training_data", Example)
    assert {example.id for example in learned} == better_half(run / "iteration_1", ("worth", "worth_2", "worth_3"))
    assert {example.teacher for example in learned} == {"classroom/teacher + aligned_teacher"}


def the_half_that_helps_the_base_is_learned(run: Path) -> None:
    """The base is one of four that are asked for pairs, and alone when examples are chosen."""
    learned = records(run, "training_data", Example)
    assert {example.id for example in learned} == better_half(run / "iteration_1", ("worth",))
    assert {example.teacher for example in learned} == {"classroom/teacher + aligned_teacher"}
    stages = RunDirectory(run).entries
    for name in ("influence_base", "worth"):
        assert stages[f"iteration_1/{name}"].inputs["student"] == "base"


def each_round_is_chosen_for_the_student_of_the_last(run: Path) -> None:
    """By the student that has learned what was chosen before, and a warm one; the teacher is aligned once."""
    iterations = [run / f"iteration_{number}" for number in (1, 2)]
    chosen = [better_half(iteration, ("worth", "worth_2")) for iteration in iterations]
    learned = [read_records(iteration / "training_data" / "examples.jsonl", Example) for iteration in iterations]
    assert {example.id for example in learned[0]} == chosen[0]
    assert {example.id for example in learned[1]} == chosen[0] | chosen[1]
    texts = [" ".join(example.instruction.lower().split()) for example in learned[1]]
    assert len(set(texts)) == len(texts)
    stages = RunDirectory(run).entries
    assert [stages[f"iteration_{number}/worth"].inputs["student"].split()[0] for number in (1, 2)] == [
        "iteration_1/warmup",
        "iteration_1/trained",
    ]
    assert not (iterations[1] / "aligned_teacher").exists()
    assert {example.teacher for example in learned[1]} == {"classroom/teacher + aligned_teacher"}


def the_hardest_are_shown(run: Path) -> None:
    """The quarter of the seed tasks on which the student's loss is highest, and nothing else."""
    loss = {score.id: score.value for score in records(run, "difficulty", Score)}
    hardest = sorted(loss, key=lambda id_: -loss[id_])[: len(loss) // 4]
    shown = {id_ for example in records(run, "new_data", Example) for id_ in example.seed_task_ids}
    assert len(shown) > 3
    assert shown <= set(hardest)


def the_hardest_are_answered_alike(run: Path) -> None:
    the_hardest_are_shown(run)
    what_is_answered_alike_is_learned(run, "new_data")


def what_the_student_lacks_is_learned(run: Path) -> None:
    what_is_answered_alike_is_learned(run, "candidates")
    loss = {score.id: score.value for score in records(run, "candidate_difficulty", Score)}
    learned = [example.id for example in records(run, "new_data", Example)]
    assert set(learned) == set(sorted(loss, key=lambda id_: -loss[id_])[: len(learned)])
    assert len(learned) == 16, "two thirds of them"


CALIBRATION: dict[str, dict[str, Any]] = {
    "calibration_prompts": {"num_examples": 60, "prompts_per_batch": 8},
    "calibration": {"instructions_per_batch": 16},
    "quality": {"batch_tokens": 256},
    "learnability": {"batch_tokens": 256},
    "training_prompts": {"num_examples": 24, "prompts_per_batch": 4},
    "training_data": {"instructions_per_batch": 8},
}

CASES = {
    "self_instruct.yaml": Case(
        settings={}, moments=[Moment("training_data", GENERATE, everything, call=2)], check=nothing_is_measured
    ),
    "self_instruct_api.yaml": Case(
        settings={},
        moments=[
            Moment("training_data", "montessori_pl.generation.OpenAIBackend.generate", call=2),
            Moment("training_data", OPEN, half_a_line, file="/answers.jsonl", call=30),
            Moment("training_data", OPEN, half_a_line, file="/examples.jsonl", call=2),
        ],
        check=the_endpoint_has_written_everything,
    ),
    "magpie.yaml": Case(
        settings={},
        moments=[
            Moment("training_data", GENERATE, everything, call=2),
            Moment("training_data", OPEN, half_a_line, file="/examples.jsonl", call=2),
        ],
        check=users_have_written_everything,
    ),
    "paper.yaml": Case(
        settings={"aligned_teacher": {"monitor": None}, "probing_data": {"samples_per_prompt": 4}},
        moments=[Moment("preferences", OPEN, half_a_line, file="/pairs.jsonl.draft")],
    ),
    "random_pairs.yaml": Case(
        settings={}, moments=[Moment("preferences", OPEN, half_a_line, file="/pairs.jsonl.draft")]
    ),
    "loss_signal.yaml": Case(
        settings={"losses": {"batch_tokens": 64}},
        moments=[Moment("losses", OPEN, half_a_line, file="/scores.part0.jsonl", call=2)],
        check=hard_examples_are_preferred,
    ),
    "solve_rate_signal.yaml": Case(
        settings={"solve_rates": {"batch_tokens": 64}},
        moments=[
            Moment("solve_rates", GENERATE, call=2),
            Moment("solve_rates", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
        ],
        check=what_the_student_solves_at_times_is_preferred,
    ),
    "judge_signal.yaml": Case(
        settings={"judgements": {"batch_tokens": 64}},
        moments=[
            Moment("judgements", "montessori_pl.generation.ClassroomJudge.generate", call=2),
            Moment("judgements", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
        ],
        check=what_the_judge_likes_is_preferred,
    ),
    "car.yaml": Case(
        settings=CALIBRATION,
        moments=[
            Moment("calibration", GENERATE, call=3),
            Moment("calibration", OPEN, half_a_line, file="/examples.jsonl", call=2),
            Moment("chosen", OPEN, half_a_line, file="/router.json.draft"),
            Moment("training_data", GENERATE, everything, call=2),
        ],
        check=one_teacher_answers_everything,
    ),
    "grace.yaml": Case(
        settings=CALIBRATION | {"gradients": {"batch_tokens": 256, "signal.init_args.dim": 32}},
        moments=[
            Moment("gradients", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("chosen", OPEN, half_a_line, file="/router.json.draft"),
        ],
        check=the_lowest_grace_answers_everything,
    ),
    "persyn.yaml": Case(
        settings=CALIBRATION | {"chosen": {"fallback_to_constant": False}},
        moments=[
            Moment("calibration", GENERATE, call=6),
            Moment("chosen", "montessori_pl.stages.train_router.fit_head"),
            Moment("chosen", OPEN, half_a_line, file="/router.json.draft"),
            Moment("training_data", GENERATE, everything, call=2),
        ],
        check=the_router_decides_who_answers,
    ),
    "response_optimization.yaml": Case(
        settings={
            "instructions": {"num_examples": 24, "prompts_per_batch": 4},
            "responses": {"instructions_per_batch": 8},
            "aligned_teacher": {"monitor.sampling": SHORT},
            "training_instructions": {"num_examples": 32, "prompts_per_batch": 4},
            "training_responses": {"instructions_per_batch": 8},
        },
        moments=[
            Moment("responses", GENERATE, call=2),
            Moment("responses", OPEN, half_a_line, file="/examples.jsonl", call=2),
            Moment("aligned_teacher", "montessori_pl.models.dpo.TeacherDPOModule.dpo", call=3),
            Moment("aligned_teacher", OPEN, half_a_line, file="/alignment_evaluations.jsonl.draft", call=2),
            Moment("training_responses", OPEN, file="/journal.jsonl", call=2),
            Moment("trained", STUDENT_STEP, call=2),
        ],
    ),
    "bootstrap.yaml": Case(
        settings={},
        moments=[
            Moment("best_half", OPEN, half_a_line, file="/examples.jsonl.draft"),
            Moment("best_half", "montessori_pl.run_directory.run_directory.RunDirectory.finish"),
            Moment("training_data", OPEN, half_a_line, file="/examples.jsonl", call=2),
        ],
    ),
    "grpo.yaml": Case(
        settings={
            **{f"written_{number}": {"num_prompts": 8, "prompts_per_batch": 4} for number in range(1, 5)},
            **{f"policy_{number}": {"monitor.sampling": SHORT} for number in range(1, 5)},
        },
        moments=[
            Moment("policy_1", OPEN, half_a_line, file="/sampled_log_probabilities.part0.jsonl"),
            Moment("policy_2", "montessori_pl.models.grpo.GRPOModule.policy_gradient", call=2),
            Moment("policy_3", OPEN, half_a_line, file="/alignment_evaluations.jsonl.draft", call=2),
            Moment("written_4", GENERATE, call=2),
            Moment("policy_4", REPLACE, file="last.ckpt.draft"),
        ],
        check=rounds_follow_each_other,
    ),
    "raft.yaml": Case(
        settings={"aligned_teacher": {"monitor.sampling": SHORT}},
        moments=[
            Moment("aligned_teacher", "montessori_pl.models.dpo.TeacherDPOModule.dpo", call=3),
            Moment("aligned_teacher", REPLACE, file="last.ckpt.draft"),
        ],
        check=the_best_is_made_likelier,
    ),
    "influence_selection.yaml": Case(
        settings={"candidates": {"num_examples": 48, "prompts_per_batch": 8}, "influence_3": {"batch_tokens": 64}},
        moments=[
            Moment("candidates", GENERATE, everything, call=2),
            Moment("influence_3", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("training_data", OPEN, half_a_line, file="/examples.jsonl.draft"),
        ],
        check=the_better_half_is_learned,
    ),
    "aligned_selection.yaml": Case(
        settings={"candidates": {"num_examples": 48, "prompts_per_batch": 8}, "worth_3": {"batch_tokens": 64}},
        moments=[
            Moment("candidates", GENERATE, everything, call=2),
            Moment("worth_3", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("training_data", OPEN, half_a_line, file="/examples.jsonl.draft"),
        ],
        check=the_better_half_of_an_aligned_teacher_is_learned,
    ),
    "self_consistency.yaml": Case(
        settings={"training_data": {"num_examples": 24, "prompts_per_batch": 4}},
        moments=[
            Moment("training_data", GENERATE, everything, call=3),  # of three calls the one for votes
            Moment("training_data", OPEN, half_a_line, file="/rejections.jsonl", call=2),
        ],
        check=what_is_answered_alike_is_learned,
    ),
    "trajectory_selection.yaml": Case(
        settings={"candidates": {"num_examples": 48, "prompts_per_batch": 8}, "worth": {"batch_tokens": 64}},
        moments=[
            Moment("influence_base", OPEN, half_a_line, file="/scores.part0.jsonl", call=1),
            Moment("worth", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
        ],
        check=the_half_that_helps_the_base_is_learned,
    ),
    "selection_in_rounds.yaml": Case(
        settings={
            "config": {"iterations": 2},
            "candidates": {"num_examples": 24, "prompts_per_batch": 8},
            "worth": {"batch_tokens": 64},
        },
        moments=[
            Moment("aligned_teacher", "montessori_pl.models.dpo.TeacherDPOModule.dpo", call=3),
            Moment("candidates", GENERATE, everything, call=2),
            Moment("worth", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("training_data", OPEN, half_a_line, file="/examples.jsonl.draft"),
        ],
        check=each_round_is_chosen_for_the_student_of_the_last,
    ),
    "active_synthesis.yaml": Case(
        settings={
            "config": {"iterations": 1},
            "new_data": {"num_examples": 12, "prompts_per_batch": 2},
            "difficulty": {"batch_tokens": 64},
        },
        moments=[
            Moment("difficulty", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("hardest", OPEN, half_a_line, file="/examples.jsonl.draft"),
            Moment("new_data", GENERATE, everything, call=2),
        ],
        check=the_hardest_are_shown,
    ),
    "active_consistency.yaml": Case(
        settings={"config": {"iterations": 1}, "new_data": {"num_examples": 24, "prompts_per_batch": 4}},
        moments=[
            Moment("new_data", GENERATE, everything, call=3),  # of three calls the one for votes
            Moment("new_data", OPEN, half_a_line, file="/rejections.jsonl", call=2),
        ],
        check=the_hardest_are_answered_alike,
    ),
    "active_selection.yaml": Case(
        settings={
            "config": {"iterations": 1},
            "candidates": {"num_examples": 24, "prompts_per_batch": 4},
            "candidate_difficulty": {"batch_tokens": 64},
        },
        moments=[
            Moment("candidates", GENERATE, everything, call=3),
            Moment("candidate_difficulty", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("new_data", OPEN, half_a_line, file="/examples.jsonl.draft"),
        ],
        check=what_the_student_lacks_is_learned,
    ),
    "self_reward.yaml": Case(
        settings={
            "new_instructions": {"num_examples": 32, "prompts_per_batch": 4},
            "answers": {"instructions_per_batch": 8},
            "judgements": {"batch_tokens": 64},
            "aligned": {"training.checkpoint_every_n_steps": 1, "training.batch_size": 4},
        },
        moments=[
            Moment("answers", GENERATE, everything, call=2),
            Moment("judgements", OPEN, half_a_line, file="/scores.part0.jsonl", call=2),
            Moment("aligned", "montessori_pl.models.dpo.DPOModule.training_step", call=2),
            Moment("aligned", REPLACE, file="last.ckpt.draft", call=2),
            Moment("aligned", SAVE_WEIGHTS),
            Moment("aligned", SAVE_WEIGHTS, everything),
            Moment("evaluation", GENERATE, call=2),
        ],
    ),
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a server of the classroom's teacher."""
    engine = TransformersBackend()
    engine.load(ModelSource("classroom/teacher"))
    server = runpy.run_path(str(ROOT / "examples" / "serve_model.py"))["make_server"](engine, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def undisturbed() -> list[Path]:
    """The runs of this file that nobody disturbed and that have finished."""
    return []


@pytest.mark.parametrize("name", CASES)
def test_killed_in_their_own_stages(
    name: str, tiny_recipe: Callable[..., Path], tmp_path: Path, endpoint: str, undisturbed: list[Path]
) -> None:
    """A run that was killed again and again, and one that nobody disturbed; and the report shows every student.

    They share the stages before the first that brings a kill: these are finished, and what comes later only reads them.
    What recipes have in common is done by the first of them, too.
    """
    case = CASES[name]
    changes = dict(case.settings)
    if name == "self_instruct_api.yaml":
        changes["config"] = {"teachers.strong.generation.init_args.base_url": endpoint}
    program = Program(tiny_recipe(name, **changes), tmp_path)
    program.finish(tmp_path / "whole", undisturbed)
    undisturbed.append(tmp_path / "whole")
    copy_until(tmp_path / "whole", case.moments[0].stage, tmp_path / "killed")
    for moment in case.moments:
        program.kill(tmp_path / "killed", moment)
    program.finish(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    last = [step.split("/")[1] for step in RunDirectory(tmp_path / "whole").entries][-2]
    assert list(summary["students"])[-1] == last
    case.check(tmp_path / "killed")


def test_no_shipped_recipe_is_forgotten() -> None:
    assert CASES.keys() | ELSEWHERE.keys() == {path.name for path in shipped_configs().glob("*.yaml")}


def test_every_kind_of_stage_is_killed() -> None:
    """Each class of stage that a shipped recipe takes dies at least once, and not only in a stage of another class."""
    recipes = {path.name: yaml.safe_load(path.read_text())["recipe"] for path in shipped_configs().glob("*.yaml")}
    shipped = {stage["class_path"] for recipe in recipes.values() for stage in recipe.values()}
    killed = {
        recipes[name][moment.stage]["class_path"]
        for name, moments in {**ELSEWHERE, **{name: case.moments for name, case in CASES.items()}}.items()
        for moment in moments
        if moment.stage
    }
    assert killed == shipped
