"""`kill -9` at any moment: the same command goes on, and the run ends as if nothing had happened.

One run of the tiny recipe is killed again and again, at moments that are chosen to hurt: inside a JSON line, between a
file and its journal, inside a checkpoint, between two files of a stage, between stages. A run of the same recipe that
nobody disturbed must hold the same bytes.

Starting the program takes seconds of imports. Most attempts are therefore forked from a server that has imported
everything and computed nothing; only the kills from outside start `python -m montessori_pl`.
"""

import dataclasses
import json
import multiprocessing
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from montessori_pl import classroom
from montessori_pl.cli.fit import INTERRUPTED, main
from montessori_pl.run_directory.run_directory import RunDirectory

pytestmark = pytest.mark.slow

IMPORTED_ONCE = [
    "pytest",
    "montessori_pl.cli.fit",
    "montessori_pl.report",
    "peft",
    "safetensors.torch",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
]
"""What the server imports, so that its children need not."""

Action = Callable[..., Any]
"""What is still done of a call before the kill; gets the function that was called, and its arguments."""


def nothing(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Die before the call."""


def everything(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Die after the call."""
    function(*args, **kwargs)


def half_a_move(function: Callable[..., Any], source: str, destination: str) -> None:
    """Die as a move between two file systems would: half of the file has been copied."""
    content = Path(source).read_bytes()
    Path(destination).write_bytes(content[: len(content) // 2])


def half_a_tensor_file(function: Callable[..., Any], tensors: dict[str, Any], path: str, **kwargs: Any) -> None:
    """Die when half of a safetensors file is on the disk."""
    function(tensors, path, **kwargs)
    os.truncate(path, Path(path).stat().st_size // 2)


def half_a_line(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Open a file, and die when half of the first thing that is written to it is on the disk."""
    return TornFile(function(*args, **kwargs))


class TornFile:
    """An open file that is killed while it is written to."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def __enter__(self) -> "TornFile":
        return self

    def __exit__(self, *args: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> None:
        """Write half of it, and die; nothing to write is no moment."""
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        die()


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Moment:
    """A call of a function, within a stage, that is not survived."""

    stage: str
    """Name of the stage; empty for what happens outside of all stages."""
    function: str
    """Which function: its module and its name."""
    action: Action = nothing
    """What is still done of the call."""
    call: int = 1
    """Which call within the stage, from 1."""
    file: str = ""
    """Only calls count whose first argument is a file of this name, and not to read it."""
    seconds: float = 0.0
    """For a kill from outside: how long after the stage has begun."""

    def arm(self, note: Path, end: Callable[[], None] = die) -> None:
        """Wait for the moment; write it to `note` when it has come."""
        here, name = self.function.rsplit(".", 1)
        owner = pkgutil.resolve_name(here)
        original = getattr(owner, name)
        stage = _follow_stages()
        calls = 0

        @wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            reads = self.function == OPEN and "r" in kwargs.get("mode", args[1] if len(args) > 1 else "r")
            if stage() != self.stage or not str(args[0]).endswith(self.file) or reads:
                return original(*args, **kwargs)
            calls += 1
            if calls != self.call:
                return original(*args, **kwargs)
            note.write_text(self.stage, encoding="utf-8")
            result = self.action(original, *args, **kwargs)
            if isinstance(result, TornFile):
                return result
            end()
            return original(*args, **kwargs)

        setattr(owner, name, wrapper)


def _follow_stages() -> Callable[[], str]:
    """A function that says which stage the program works on now."""
    from montessori_pl.pipeline.runner import Runner

    lead, now = Runner._lead, ""

    @wraps(lead)
    def follow(self: Runner, step: Any, *args: Any) -> None:
        nonlocal now
        now = step.name
        lead(self, step, *args)
        now = ""

    Runner._lead = follow  # type: ignore[method-assign]
    return lambda: now


OPEN, REPLACE = "builtins.open", "os.replace"
STUDENT_STEP = "montessori_pl.models.student.StudentModule.training_step"
SAVE_WEIGHTS = "montessori_pl.stages.training.fit.save_weights"
GENERATE = "montessori_pl.generation.TransformersBackend.generate"
OUTSIDE = "(from outside)"
MOMENTS = [
    Moment("warmup_data", OUTSIDE, seconds=0.1),
    Moment("warmup_data", OPEN, half_a_line, file="/examples.jsonl", call=2),  # inside a record
    Moment("warmup_data", OPEN, half_a_line, file="/rejections.jsonl"),  # examples are there, rejections are not
    Moment("warmup_data", OPEN, file="/journal.jsonl"),  # both are there, and the journal does not know it
    Moment("warmup_data", OPEN, half_a_line, file="/journal.jsonl", call=2),  # inside the journal's line
    Moment("warmup_data", OPEN, half_a_line, file="/metrics.json.draft"),  # all done, and the stage cannot say so
    Moment("warmup_2", STUDENT_STEP, call=2),
    Moment("warmup_3", REPLACE, file="/weights.draft"),
    Moment("warmup", "montessori_pl.run_directory.run_directory.RunDirectory.begin"),  # between two stages
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
    Moment("aligned_teacher", "montessori_pl.models.teacher.TeacherDPOModule.dpo", call=3),
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


@dataclasses.dataclass
class Program:
    """The program on one recipe, as it is started again and again."""

    recipe: Path
    """The recipe."""
    directory: Path
    """Where logs are written."""

    def arguments(self, run: Path) -> list[str]:
        """The command line."""
        return ["fit", "--config", str(self.recipe), "--run", str(run)]

    def start(self, run: Path, moment: Moment | None = None, end: Callable[[], None] = die) -> tuple[int, str]:
        """Run it in a process that is forked from the server.

        Returns:
            the exit status, and what the program has said.
        """
        log = self.directory / "log.txt"
        log.unlink(missing_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        process = context.Process(target=_run, args=(self.arguments(run), log, self.note, moment, end))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, log.read_text(encoding="utf-8")

    @property
    def note(self) -> Path:
        """The file in which a moment says that it has come."""
        return self.directory / "note.txt"

    def kill(self, run: Path, moment: Moment) -> None:
        """Run it until the moment comes."""
        if moment.function == OUTSIDE:
            self.kill_from_outside(run, moment.stage, moment.seconds)
            return
        self.note.unlink(missing_ok=True)
        status, log = self.start(run, moment)
        assert status == -signal.SIGKILL, f"{moment}: exit status {status}\n{log}"
        assert self.note.read_text(encoding="utf-8") == moment.stage

    def kill_from_outside(self, run: Path, stage: str, seconds: float) -> None:
        """Start it as a user does, and kill it some time after it has begun a stage."""
        with subprocess.Popen(
            [sys.executable, "-m", "montessori_pl", *self.arguments(run)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and f"iteration_1/{stage}" not in RunDirectory(run).entries:
                time.sleep(0.05)
            time.sleep(seconds)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not RunDirectory(run).finished(f"iteration_1/{stage}")

    def finish(self, run: Path) -> None:
        """Run it to its end."""
        status, log = self.start(run)
        assert status == 0, log


def _run(arguments: list[str], log: Path, note: Path, moment: Moment | None, end: Callable[[], None]) -> None:
    """The program, in the forked process."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Started in the background of a script, the tests are deaf to Ctrl-C, and so would be what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if moment is not None:
        moment.arm(note, end)
    main(arguments)


def interrupt() -> None:
    """What Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def program(tiny_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program on the tiny recipe, with dropout, gradient accumulation and a checkpoint after every step."""
    classroom.resolve("classroom/teacher")  # built once, in this process
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


def artifacts(run: Path, pattern: str) -> dict[str, bytes]:
    """All files of a run's stages that fit the pattern, by path."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob(f"iteration_*/**/{pattern}"))}


def assert_same_run(run: Path, other: Path) -> None:
    """Records, metrics and weights are the same bytes, checkpoints hold the same numbers, and students do as well."""
    for pattern in ("*.jsonl", "*.safetensors", "metrics.json"):
        files, other_files = artifacts(run, pattern), artifacts(other, pattern)
        assert files
        assert list(files) == list(other_files)
        assert [name for name, content in files.items() if content != other_files[name]] == []
    for path in sorted(run.rglob("last.ckpt")):
        one = torch.load(path, weights_only=False)
        two = torch.load(other / path.relative_to(run), weights_only=False)
        assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    summary, other_summary = (json.loads((one / "summary.json").read_text())["students"] for one in (run, other))
    assert summary
    assert summary == other_summary


def test_killed_again_and_again(program: Program, undisturbed: Path, tmp_path: Path) -> None:
    """All moments, one after another, on one run."""
    run = tmp_path / "run"
    stages = list(dict.fromkeys(step.removeprefix("iteration_1/") for step in RunDirectory(undisturbed).entries))
    assert [stage for stage in dict.fromkeys(moment.stage for moment in MOMENTS) if stage] == stages
    for moment in MOMENTS:
        program.kill(run, moment)
    program.finish(run)
    assert_same_run(run, undisturbed)
    assert not [path for path in run.rglob("*") if ".draft" in path.name or ".part" in path.name]
    _, log = program.start(run)
    assert "nothing was left to do" in log


LLM2LLM_MOMENTS = [
    Moment("mistakes", OPEN, half_a_line, file="/findings.jsonl", call=2),  # inside what was found out
    Moment("mistakes", GENERATE, call=2),  # the answers of the last round
    Moment("mistakes", OPEN, file="/journal.jsonl"),  # all is there, and the journal does not know it
    Moment("mistakes", OPEN, half_a_line, file="/metrics.json.draft"),
    Moment("augmented", GENERATE, call=3),  # instructions of the second round
    Moment("augmented", GENERATE, everything, call=2),  # its responses
    Moment("augmented", OPEN, half_a_line, file="/examples.jsonl"),
    Moment("augmented", OPEN, half_a_line, file="/rejections.jsonl"),
    Moment("augmented", OPEN, file="/journal.jsonl", call=2),
    Moment("training_set", OPEN, half_a_line, file="/examples.jsonl.draft"),
    Moment("training_set", REPLACE, file="/examples.jsonl.draft"),
    Moment("training_set", "montessori_pl.run_directory.run_directory.RunDirectory.finish"),
    Moment("trained", STUDENT_STEP, call=2),
    Moment("mistakes", GENERATE),  # from here on in the second iteration
    Moment("augmented", GENERATE, call=2),
    Moment("training_set", OPEN, half_a_line, file="/examples.jsonl.draft"),
]


def test_two_rounds_of_llm2llm(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Killed in the stages that no other recipe has, in both rounds."""
    classroom.resolve("classroom/teacher")
    recipe = tiny_recipe(
        "llm2llm.yaml",
        config={"iterations": 2},
        seed_data={"source": "classroom/seed_tasks[:16]"},
        mistakes={"examples_per_batch": 6},
        augmented={"num_examples": 12, "prompts_per_batch": 1},
        trained={"training.batch_size": 8},
    )
    program = Program(recipe, tmp_path)
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    program.finish(undisturbed)
    for moment in LLM2LLM_MOMENTS:
        program.kill(run, moment)
    program.finish(run)
    assert_same_run(run, undisturbed)


def test_ctrl_c(program: Program, undisturbed: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a training stage ends the program with a sentence; the same command goes on."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for stage in ("trained", "evaluation"):
        shutil.rmtree(run / "iteration_1" / stage)  # which undoes it
    status, log = program.start(run, Moment("trained", STUDENT_STEP, call=5), interrupt)
    assert status == 1
    assert INTERRUPTED in log
    assert "Traceback" not in log
    assert not RunDirectory(run).finished("iteration_1/trained")
    program.finish(run)
    assert_same_run(run, undisturbed)
