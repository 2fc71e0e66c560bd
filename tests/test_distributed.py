"""Two processes on the CPU: `--trainer.devices 2`.

Starting the program takes seconds: where it does not matter who has started the processes they are forked, and where it
does, Lightning's launcher starts them, as for a user.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killing import TWO_PROCESSES, Moment, Program, assert_same_run, copy_until

from montessori_pl import classroom
from montessori_pl.batches.encoding import encode_examples
from montessori_pl.cli.fit import main
from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.data.records import Example, Score, append_records, read_records
from montessori_pl.models.loading import ModelSource, load_chat_template
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.signals.base import REPORT

pytestmark = pytest.mark.slow

SCORES = Path("iteration_1/influence/scores.jsonl")
SCORED: dict[str, Any] = {"probing_data": {"samples_per_prompt": 4}}
"""So many examples that both processes have some left after a kill."""
ONE_BATCH = """
import sys
import time

from montessori_pl.__main__ import main
from montessori_pl.signals.base import SignalCallback

score = SignalCallback.on_predict_batch_end

def score_and_wait(*args, **kwargs):
    score(*args, **kwargs)
    time.sleep(600)

SignalCallback.on_predict_batch_end = score_and_wait
main()
"""
"""The program, each of whose processes scores one batch and then waits until it is killed."""


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    """The tiny recipe."""
    return tiny_recipe(**SCORED)


def command(recipe: Path, run: Path, *options: str) -> list[str]:
    """The program on this recipe and run."""
    return [sys.executable, "-m", "montessori_pl", "fit", "--config", str(recipe), "--run", str(run), *options]


def fit_by_two(recipe: Path, run: Path, *options: str) -> str:
    """Run the program to its end by two processes that are forked; returns what they have said."""
    program = Program(recipe, run.parent, [*options, *TWO_PROCESSES])
    program.launch(run, 2)
    assert [end.status for end in program.ends()] == [0, 0], program.log.read_text()
    return program.log.read_text()


def members(run: Path) -> list[int]:
    """The processes whose command line names this run."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended since
            continue
        if str(run).encode() in arguments:
            found.append(int(directory.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Look again and again.

    Raises:
        AssertionError: the condition does not come true in this time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    run = tmp_path_factory.mktemp("finished") / "run"
    main(command(recipe, run)[3:])
    return run


def test_two_processes_score_as_one(recipe: Path, finished: Path, tmp_path: Path) -> None:
    """Of a finished run, the scoring stage alone is done again by two processes: the same bytes.

    Training by two processes takes larger batches and makes another student; that is why only this stage is repeated.
    """
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree((run / SCORES).parent)  # which undoes the stage
    said = fit_by_two(recipe, run)
    assert said.count("influence: done") == 1
    assert "[9/14] iteration_1/preferences: finished before" in said
    assert (run / SCORES).read_bytes() == (finished / SCORES).read_bytes()
    assert [path.name for path in (run / SCORES).parent.glob("*.part*")] == []


def test_a_student_that_answers_says_the_same_in_two_processes(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Solve rates, of which each process measures a share, with a student that is drawn from: the same bytes."""
    recipe = tiny_recipe("solve_rate_signal.yaml", solve_rates={"batch_tokens": 64}, **SCORED)
    whole, run = tmp_path / "whole", tmp_path / "run"
    main(command(recipe, whole)[3:])
    copy_until(whole, "solve_rates", run)
    fit_by_two(recipe, run)
    one, two = (records / "iteration_1/solve_rates/scores.jsonl" for records in (whole, run))
    assert two.read_bytes() == one.read_bytes()
    assert len({score.value for score in read_records(one, Score)}) > 2


def late(*args: Any) -> None:
    """Die some time before the call, in which others could have done much."""
    time.sleep(5)


def test_what_a_signal_says_is_kept_before_the_first_score(recipe: Path, tmp_path: Path) -> None:
    """One process scores all there is, while the other one is killed before it writes the report.

    The scores would be complete when the run goes on, and nobody would prepare the signal again.
    """
    program, run, whole = Program(recipe, tmp_path, TWO_PROCESSES), tmp_path / "run", tmp_path / "whole"
    program.launch(whole, 2)
    assert [end.status for end in program.ends()] == [0, 0], program.log.read_text()
    copy_until(whole, "influence_2", run)
    program.launch(run, 2, Moment("influence_2", "montessori_pl.signals.base.write_json", late, file=REPORT))
    assert [end.status for end in program.ends()] == [-signal.SIGKILL, 1], program.log.read_text()
    program.launch(run, 2)
    assert [end.status for end in program.ends()] == [0, 0], program.log.read_text()
    assert_same_run(run, whole)


def lengths(paths: Sequence[Path]) -> list[int]:
    """Of files, in bytes; those that do not exist yet are empty."""
    return [path.stat().st_size if path.exists() else 0 for path in paths]


def test_one_process_goes_on_where_two_were_killed(recipe: Path, finished: Path, tmp_path: Path) -> None:
    """When one of two processes is killed, the other ends too, and says why; what both have scored is kept."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree((run / SCORES).parent)
    parts = [(run / SCORES).with_name(f"scores.part{rank}.jsonl") for rank in range(2)]
    program = tmp_path / "one_batch.py"
    program.write_text(ONE_BATCH)
    for killed, status in ((1, 1), (0, -signal.SIGKILL)):
        sizes = lengths(parts)
        with subprocess.Popen(
            [sys.executable, str(program), *command(recipe, run, *TWO_PROCESSES)[3:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_for(
                lambda before=sizes, one=process: (
                    one.poll() is not None or all(now > size for now, size in zip(lengths(parts), before, strict=True))
                ),
                300,
            )
            assert process.poll() is None, process.stderr and process.stderr.read()
            first, second = sorted(members(run), key=lambda number: number != process.pid)
            os.kill((first, second)[killed], signal.SIGKILL)
            wait_for(lambda: not members(run), 15)
            assert process.stderr is not None
            said = process.stderr.read()
        assert process.returncode == status
        assert f"error: process {killed} of this run " in said
        assert "; stopped in iteration_1/influence; the same command goes on from here\n" in said
    with open(parts[1], "ab") as file:
        file.write('{"id": "tör'.encode()[:-1])  # torn within a character
    main(command(recipe, run)[3:])
    assert (run / SCORES).read_bytes() == (finished / SCORES).read_bytes()


def test_second_process_does_not_outlive_the_first(
    tiny_recipe: Callable[..., Path], finished: Path, tmp_path: Path
) -> None:
    """The first is killed while it writes data alone, more than it has time for, and the second waits for it."""
    program = Program(tiny_recipe(**SCORED, training_data={"num_examples": 20_000}), tmp_path, TWO_PROCESSES)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "iteration_1" / "training_data")
    first, _ = program.launch(run, 2)
    wait_for(lambda: (run / "iteration_1" / "training_data" / "examples.jsonl").exists(), 300)
    os.kill(first, signal.SIGKILL)
    one, two = program.ends()
    assert [one.status, two.status] == [-signal.SIGKILL, 1], program.log.read_text()
    assert two.time - one.time < 15
    assert not RunDirectory(run).finished("iteration_1/training_data")


def trained_on(
    examples: Sequence[Example], recipe: Path, directory: Path, all_weights: bool = False, **settings: Any
) -> Path:
    """A recipe that trains the student on these examples, four at a time, twice, and evaluates it."""
    source = directory / "examples.jsonl"
    append_records(source, examples)
    config = yaml.safe_load(recipe.read_text())
    training = {"lr": 1e-3, "eps": 1e-3, "epochs": 2, "batch_size": 4, "schedule": "constant", **settings}
    learning = {"examples": "recorded", "training": training, "all_weights": all_weights}
    evaluation = {"students": ["base", "trained"], "evaluators": [{"class_path": "ResponseLoss"}]}
    config["recipe"] = {
        "recorded": {"class_path": "RecordedExamples", "init_args": {"source": str(source)}},
        "trained": {"class_path": "TrainStudent", "init_args": learning},
        "evaluation": {"class_path": "Evaluate", "init_args": evaluation},
    }
    path = directory / "training.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def outcome(run: Path) -> dict[str, Any]:
    """How the training went, and the losses of the students."""
    metrics = {
        name: json.loads((run / f"iteration_1/{name}/metrics.json").read_text()) for name in ("trained", "evaluation")
    }
    losses = {
        student: {name: value for name, value in found.items() if "loss" in name}
        for student, found in metrics["evaluation"]["students"].items()
    }
    return {**metrics["trained"], "students": losses}


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    """By name."""
    found: dict[str, torch.Tensor] = torch.load(run / "iteration_1/trained/last.ckpt", weights_only=False)["state_dict"]
    return found


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Of any weight."""
    assert one.keys() == two.keys()
    return max((value - two[name]).abs().max().item() for name, value in one.items())


def test_two_processes_train_as_one(recipe: Path, tmp_path: Path) -> None:
    """Batches of four in one process, or of two in each of two: the same student, but for rounding.

    Responses have different lengths: the loss of a step is the mean over the tokens of both processes.

    How much rounding may matter: a gradient has a norm of at most 1, to which it is clipped, and the sum of some
    hundred products in another order differs by less than e = 1e-6. AdamW moves a weight by lr * m / (sqrt(v) + eps),
    and both m and sqrt(v) are off by e at most, so that a step is off by 2 * lr / eps * e at most: with lr = eps =
    1e-3, and six steps, by 1.2e-5. (Seen: 3e-8.)
    """
    chat_template = load_chat_template(ModelSource("classroom/student"))
    examples = read_records(classroom.resolve("classroom/seed_tasks"), Example)
    chosen = examples[:12]
    lengths = [sum(one.completion_mask) for one in encode_examples(chosen, chat_template, max_length=64)[0]]
    assert len(lengths) == 12
    assert len(set(lengths)) >= 4
    path = trained_on(chosen, recipe, tmp_path)

    half = ["--recipe.trained.training.batch_size", "2"]
    main(command(path, tmp_path / "one")[3:])
    main([*command(path, tmp_path / "half")[3:], *half])
    fit_by_two(path, tmp_path / "two", *half)
    # Each example by itself, and its layers computed again.
    fit_by_two(path, tmp_path / "parts", *half, "--recipe.trained.training.activation_memory", "1")

    one, two = (outcome(tmp_path / name) for name in ("one", "two"))
    assert two["steps"] == one["steps"] == 6
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["students"]["base"] == one["students"]["base"]
    assert two["students"]["trained"] == pytest.approx(one["students"]["trained"], abs=1e-5)
    weights = {name: trained_weights(tmp_path / name) for name in ("one", "two", "parts", "half")}
    assert largest_difference(weights["two"], weights["one"]) < 1.2e-5
    assert largest_difference(weights["parts"], weights["one"]) < 1.2e-5
    assert largest_difference(weights["parts"], weights["two"]) > 0, "it has gone another way"
    # One process alone on batches of two makes another student: what the other process has read matters.
    assert largest_difference(weights["half"], weights["one"]) > 1e-3


def test_two_processes_reinforce_as_one(recipe: Path, tmp_path: Path) -> None:
    """Batches of eight completions in one process, or of four in each of two: the same teacher, but for rounding."""
    config, grpo = yaml.safe_load(recipe.read_text()), yaml.safe_load((shipped_configs() / "grpo.yaml").read_text())
    names = ("warmup_data", "warmup", "probing_data")
    scoring = {
        "examples": "probing_data",
        "signal": {"class_path": "callbacks.ResponseLengthSignal", "init_args": {"direction": "low"}},
        "student": "warmup",
    }
    training = {"lr": 1e-3, "eps": 1e-3, "epochs": 2, "batch_size": 8, "schedule": "constant"}
    policy = grpo["recipe"]["policy_1"]["init_args"] | {
        **{"examples": "probing_data", "scores": "lengths", "training": training, "monitor": None}
    }
    config["recipe"] = {
        **{name: config["recipe"][name] for name in names},
        "lengths": {"class_path": "ScoreExamples", "init_args": scoring},
        "policy": {"class_path": "ReinforceTeacher", "init_args": policy},
    }
    path = tmp_path / "grpo.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    half = ["--recipe.policy.training.batch_size", "4"]
    main(command(path, tmp_path / "one")[3:])
    fit_by_two(path, tmp_path / "two", *half)
    main([*command(path, tmp_path / "half")[3:], *half])
    one, two, alone = (policy_weights(tmp_path / name) for name in ("one", "two", "half"))
    assert largest_difference(two, one) < 1e-4
    assert largest_difference(alone, one) > 1e-3, "what the other process has read matters"


def policy_weights(run: Path) -> dict[str, torch.Tensor]:
    """By name."""
    found: dict[str, torch.Tensor] = torch.load(run / "iteration_1/policy/last.ckpt", weights_only=False)["state_dict"]
    return found


def test_whole_recipe_by_two_processes(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages finish, one process speaks, and nothing is left to do."""
    run = tmp_path / "run"
    said = fit_by_two(recipe, run)
    stages = RunDirectory(run).entries
    assert len(stages) == 14
    for number, stage in enumerate(stages, start=1):
        assert RunDirectory(run).finished(stage)
        assert said.count(f"[{number}/14] {stage}: done") == 1
    assert said.count("summary.json") == 1
    assert set(json.loads((run / "summary.json").read_text())["students"]) == {"base", "warmup", "trained"}
    # The same options again; and one process finds nothing to do either: how many work is no setting of a result.
    assert "nothing was left to do" in fit_by_two(recipe, run)
    main(command(recipe, run)[3:])
    assert "nothing was left to do" in capsys.readouterr().out


def test_both_processes_stop_where_one_diverges(tmp_path: Path) -> None:
    """One sees NaN in its half of the first step alone; neither takes the step, and the run says so."""
    training = {"lr": 1e-3, "batch_size": 4, "gradient_clip_val": None}
    config = {
        "run": str(tmp_path / "run"),
        "num_threads": 1,
        "student": {"class_path": "StudentModule", "init_args": {"backbone": "classroom/student"}},
        "generation": {"class_path": "TransformersBackend"},
        "data": {role: f"classroom/{role}[:8]" for role in ("seed_tasks", "reference")},
        "trainer": {"logger": False, "callbacks": [{"class_path": "astray.LoseLoss"}]},
        "recipe": {
            "recorded": {"class_path": "RecordedExamples", "init_args": {"source": "classroom/seed_tasks[:32]"}},
            "trained": {"class_path": "TrainStudent", "init_args": {"examples": "recorded", "training": training}},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "astray.py").write_text(
        "from lightning.pytorch import Callback\n\n\n"
        "class LoseLoss(Callback):\n"
        "    def on_before_backward(self, trainer, pl_module, loss):\n"
        "        if trainer.global_rank == 1:\n"
        "            loss.data.fill_(float('nan'))\n\n"
        "    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):\n"
        "        open(f'stepped_{trainer.global_rank}', 'w').close()\n"
    )
    done = subprocess.run(
        command(tmp_path / "recipe.yaml", tmp_path / "run", *TWO_PROCESSES),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # Once or twice: whichever process is first with it may end the other in the middle of its own sentence.
    assert "iteration_1/trained diverged at optimizer step 1 of 4, with training.lr 0.001: the " in done.stderr
    assert done.returncode == 2, done.stderr
    assert not list(tmp_path.glob("stepped_*"))
    assert not list((tmp_path / "run/iteration_1/trained").glob("*.ckpt"))
