"""`kill -9` at any moment: the same command goes on, and the run ends as if nothing had happened.

One run of the tiny recipe is killed again and again, at moments that are chosen to hurt: inside a JSON line, between a
file and its journal, inside a checkpoint, between two files of a stage, between stages. A run of the same recipe that
nobody disturbed must hold the same bytes.
"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import (
    GENERATE,
    OPEN,
    OUTSIDE,
    REPLACE,
    SAVE_WEIGHTS,
    STUDENT_STEP,
    Moment,
    Program,
    assert_same_run,
    copy_until,
    everything,
    half_a_line,
    half_a_move,
    half_a_tensor_file,
)
from power_loss import LOSSES, PowerLoss

from montessori_pl.run_directory.run_directory import RunDirectory

pytestmark = pytest.mark.slow

BETWEEN_STAGES = Moment("warmup", "montessori_pl.run_directory.run_directory.RunDirectory.begin")
MOMENTS = [
    Moment("warmup_data", OUTSIDE, seconds=0.1),
    Moment("warmup_data", OPEN, half_a_line, file="/examples.jsonl", call=2),  # inside a record
    Moment("warmup_data", OPEN, file="/journal.jsonl"),  # both are there, and the journal does not know it
    Moment("warmup_data", OPEN, half_a_line, file="/journal.jsonl", call=2),  # inside the journal's line
    Moment("warmup_data", OPEN, half_a_line, file="/metrics.json.draft"),  # all done, and the stage cannot say so
    Moment("warmup_2", STUDENT_STEP, call=2),
    Moment("warmup_3", REPLACE, file="/weights.draft"),
    BETWEEN_STAGES,
    Moment("warmup", STUDENT_STEP, call=2),
    Moment("warmup", "shutil.move", half_a_move, call=2),  # inside a checkpoint
    Moment("warmup", REPLACE, file="last.ckpt.draft"),  # a whole checkpoint that is not yet in its place
    Moment("warmup", "montessori_pl.stages.training.fit.LastCheckpoint.on_train_epoch_end", everything),
    Moment("warmup", SAVE_WEIGHTS),  # trained, and nothing saved but the checkpoint
    Moment("probing_data", GENERATE, call=3),  # instructions of the second round
    Moment("probing_data", GENERATE, everything, call=2),  # its responses
    Moment("influence", OUTSIDE, seconds=0.3),
    Moment("influence", OPEN, half_a_line, file="/signal.json.draft"),  # chosen how to score, and nothing scored
    Moment("influence", OPEN, half_a_line, file="/scores.part0.jsonl", call=3),
    Moment("influence", OPEN, half_a_line, file="/scores.part0.jsonl"),  # the torn line gives way to the next one
    Moment("influence", "callbacks.InfluenceProbeCallback.score_batch", call=2),
    # The parts are still there.
    Moment("influence", "montessori_pl.stages.scoring.score_files.write_records", everything),
    Moment("influence_2", "callbacks.InfluenceProbeCallback.score_batch"),
    Moment("influence_3", OPEN, half_a_line, file="/scores.part0.jsonl"),
    Moment("preferences", OPEN, half_a_line, file="/pairs.jsonl.draft"),
    Moment("aligned_teacher", "montessori_pl.models.dpo.TeacherDPOModule.dpo", call=3),
    Moment(
        "aligned_teacher", OPEN, half_a_line, file="/alignment_evaluations.jsonl.draft", call=2
    ),  # its adapter is there
    Moment("aligned_teacher", "peft.peft_model.safe_save_file", half_a_tensor_file),
    Moment("aligned_teacher", REPLACE, file="/weights.draft"),
    Moment("training_data", OPEN, half_a_line, file="/examples.jsonl", call=3),
    Moment("training_data", "montessori_pl.run_directory.run_directory.RunDirectory.finish"),
    Moment("training_data", REPLACE, file="/manifest.json.draft"),
    Moment("influence_after", "callbacks.InfluenceProbeCallback.prepare", everything),
    Moment("trained", STUDENT_STEP, call=4),  # between two batches of one optimizer step
    Moment("trained", "torch.optim.AdamW.step", everything, call=2),
    Moment("trained", SAVE_WEIGHTS, everything),
    Moment("evaluation", GENERATE),
    Moment("evaluation", GENERATE, everything, call=2),  # answers of the second round
    Moment("evaluation", OPEN, half_a_line, file="/ExactMatch/answers.jsonl", call=2),
    Moment("evaluation", OPEN, file="/ExactMatch/journal.jsonl"),  # the answers are there, and the journal lacks them
    Moment("evaluation", OPEN, file="/evaluation/journal.jsonl"),  # a student is done, and the stage does not know it
    Moment("evaluation", OPEN, half_a_line, file="/evaluations.jsonl", call=2),
    Moment("evaluation", OUTSIDE, seconds=0.1),
    Moment("", "montessori_pl.cli.fit.write_summary"),
    Moment("", OPEN, half_a_line, file="/summary.json.draft"),
]

SYNCS = (3, 8, 21, 34, 55, 60, 75, 90, 110)
"""At which sync of a session the power fails; each session comes further than the one before."""


def interrupt() -> None:
    """What Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def program(tiny_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program on the tiny recipe, with dropout, gradient accumulation and a checkpoint after every step."""
    recipe = tiny_recipe(
        config={"student.init_args.lora.dropout": 0.1},
        warmup_data={"prompts_per_batch": 1},
        training_data={"prompts_per_batch": 1},
        trained={"training.batch_size": 8, "training.accumulate_grad_batches": 2},
        evaluation={
            "evaluators": [
                {"class_path": "ResponseLoss"},
                {"class_path": "ExactMatch", "init_args": {"max_tokens": 24, "items_per_batch": 24}},
            ]
        },
    )
    return Program(recipe, tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def undisturbed(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nobody disturbed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    program.finish(run)
    return run


def left_behind(run: Path) -> tuple[list[tuple[Any, ...]], set[Path]]:
    """What the manifest says, but for seconds and the bytes of checkpoints, and which files there are."""
    entries = [
        (key, one.settings, {name: source.split()[0] for name, source in one.inputs.items()}, one.finished, *one.files)
        for key, one in RunDirectory(run).entries.items()
    ]
    return entries, {path.relative_to(run) for path in run.rglob("*") if not path.name.startswith(".")}


def test_killed_again_and_again(program: Program, undisturbed: Path, tmp_path: Path) -> None:
    """All moments, one after another, on one run.

    Killed between two stages, it is what `copy_until` makes of a finished run: other recipes are killed from there on.
    """
    run = tmp_path / "run"
    stages = list(dict.fromkeys(step.removeprefix("iteration_1/") for step in RunDirectory(undisturbed).entries))
    assert [stage for stage in dict.fromkeys(moment.stage for moment in MOMENTS) if stage] == stages
    for moment in MOMENTS:
        program.kill(run, moment)
        if moment is BETWEEN_STAGES:
            copy_until(undisturbed, moment.stage, tmp_path / "copy")
            assert left_behind(run) == left_behind(tmp_path / "copy")
    program.finish(run)
    assert_same_run(run, undisturbed)
    assert not [path for path in run.rglob("*") if ".draft" in path.name or ".part" in path.name]
    _, log = program.start(run)
    assert "nothing was left to do" in log


def test_power_fails_again_and_again(program: Program, undisturbed: Path, tmp_path: Path) -> None:
    """What was not synced is gone each time, in one of the ways in which it can be."""
    run = tmp_path / "run"
    for number, call in enumerate(SYNCS):
        program.kill(run, PowerLoss("", "os.fsync", call=call, run=run, loss=LOSSES[number % len(LOSSES)]))
    program.finish(run)
    assert_same_run(run, undisturbed)
    assert not (run / "leftovers").exists()


def test_ctrl_c(program: Program, undisturbed: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a training stage ends the program with a sentence; the same command goes on.

    `test_signals.py` has all signals at random moments.
    """
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for stage in ("trained", "evaluation"):
        shutil.rmtree(run / "iteration_1" / stage)  # which undoes it
    status, log = program.start(run, Moment("trained", STUDENT_STEP, call=5), interrupt)
    assert status == 130
    assert log.endswith("\nstopped by SIGINT in iteration_1/trained; the same command goes on from here\n")
    assert "Traceback" not in log
    assert not RunDirectory(run).finished("iteration_1/trained")
    program.finish(run)
    assert_same_run(run, undisturbed)
