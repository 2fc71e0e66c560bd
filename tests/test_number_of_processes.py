"""A training that one, two or four processes make, with whole weights or with parts of them, and go on with.

Steps are of eight examples of twenty: 8, 8 and 4, twice. How much rounding may matter is derived in
`test_distributed.py`.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import STUDENT_STEP, TWO_PROCESSES, Moment, Program
from test_distributed import command, largest_difference, outcome, trained_on, trained_weights

from montessori_pl import classroom
from montessori_pl.cli.fit import main
from montessori_pl.data.records import Example, read_records

pytestmark = pytest.mark.slow

ROUNDING = 1.2e-5
SIZES = {2: "4", 4: "2"}
"""Examples of each process that make a step of eight."""


@pytest.fixture(scope="module", params=["lora", "all_weights"])
def training(
    request: pytest.FixtureRequest, tiny_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A recipe that trains the student, and its run by one process."""
    directory = tmp_path_factory.mktemp("training")
    examples = read_records(classroom.resolve("classroom/seed_tasks"), Example)[:20]
    whole = request.param == "all_weights"
    path = trained_on(examples, tiny_recipe(), directory, all_weights=whole, checkpoint_every_n_steps=1)
    main([*command(path, directory / "one")[3:], *batches_of("8")])
    return path, directory / "one"


def batches_of(size: str) -> list[str]:
    return ["--recipe.trained.training.batch_size", size]


def program(recipe: Path, directory: Path, processes: int, strategy: str, begun: int) -> Program:
    """So many processes on a training that so many have begun."""
    options = [*TWO_PROCESSES[:3], str(processes), TWO_PROCESSES[4], strategy, *batches_of(SIZES[begun])]
    place = directory / f"{processes}_{strategy}"
    place.mkdir(parents=True)
    return Program(recipe, place, options)


def finish(program: Program, run: Path, processes: int) -> str:
    """Run it to its end; returns what is said."""
    program.launch(run, processes)
    assert [end.status for end in program.ends()] == [0] * processes, program.log.read_text()
    return program.log.read_text()


def state(run: Path) -> dict[str, Any]:
    """What the checkpoint keeps of the optimizer."""
    found: dict[str, Any] = torch.load(run / "iteration_1/trained/last.ckpt", weights_only=False)["optimizer_states"][0]
    return found


def assert_same_training(run: Path, one: Path) -> None:
    """But for rounding: weights, moments, and the losses of the student that others load.

    The loss that was logged last is that of the last batch, which is smaller where steps are accumulated.
    """
    assert largest_difference(trained_weights(run), trained_weights(one)) < ROUNDING
    found, expected = outcome(run), outcome(one)
    assert found["steps"] == expected["steps"] == 6
    assert found["students"]["trained"] == pytest.approx(expected["students"]["trained"], abs=1e-5)
    moments, others = state(run)["state"], state(one)["state"]
    assert moments.keys() == others.keys()
    for place, moment in moments.items():
        assert {name: one.shape for name, one in moment.items()} == {
            name: one.shape for name, one in others[place].items()
        }
        torch.testing.assert_close(moment["exp_avg"], others[place]["exp_avg"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("begun", "goes_on", "strategies"),
    [
        (2, 4, ("ddp", "ddp")),
        (4, 2, ("ddp", "ddp")),
        (2, 4, ("fsdp2", "fsdp2")),
        (4, 2, ("fsdp2", "ddp")),
        (2, 2, ("ddp", "fsdp2")),
    ],
)
def test_killed_and_gone_on_with(
    training: tuple[Path, Path], begun: int, goes_on: int, strategies: tuple[str, str], tmp_path: Path
) -> None:
    """Killed in its fourth step, the first of the second epoch, and gone on with by others: the same training."""
    recipe, one = training
    first = program(recipe, tmp_path / "first", begun, strategies[0], begun)
    run = tmp_path / "run"
    steps_before = 3
    first.launch(run, begun, Moment("trained", STUDENT_STEP, call=steps_before + 1))
    assert first.ends()[0].status == -9, first.log.read_text()
    kept = torch.load(run / "iteration_1/trained/last.ckpt", weights_only=False)
    assert kept["global_step"] == steps_before
    said = finish(program(recipe, tmp_path / "then", goes_on, strategies[1], begun), run, goes_on)
    sentence = f"goes on with {goes_on} processes in place of {begun}: the same steps, each in 4 batches of up to 2"
    assert said.count(sentence) == (begun != goes_on), "by the first process alone"
    assert_same_training(run, one)


def test_killed_amid_epochs_by_ever_others(training: tuple[Path, Path], tmp_path: Path) -> None:
    """Four processes take one step of three, two the second one and the first of the next epoch, and four the rest."""
    recipe, one = training
    run, done = tmp_path / "run", 0
    for number, (processes, steps) in enumerate([(4, 1), (2, 4)]):
        killed = program(recipe, tmp_path / str(number), processes, "ddp", 4)
        batches = (steps - done) * 4 // processes
        killed.launch(run, processes, Moment("trained", STUDENT_STEP, call=batches + 1))
        assert killed.ends()[0].status == -9, killed.log.read_text()
        done = steps
        kept = torch.load(run / "iteration_1/trained/last.ckpt", weights_only=False)
        assert kept["global_step"] == steps
        epoch, batch = divmod(steps, 3)
        place = {"epoch": epoch, "next_batch": batch * 4 // processes} if batch else {"epoch": epoch - 1}
        assert place.items() <= kept["TrainingData"].items()
    finish(program(recipe, tmp_path / "last", 4, "ddp", 4), run, 4)
    assert_same_training(run, one)


def by_signal() -> None:
    """What a scheduler does to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_signal_ends_the_step_and_all_processes(training: tuple[Path, Path], strategy: str, tmp_path: Path) -> None:
    """The step at hand is kept, although checkpoints are rare; with weights in parts, both processes save."""
    recipe, one = training
    two = program(recipe, tmp_path, 2, strategy, 2)
    two.options = [*two.options, "--recipe.trained.training.checkpoint_every_n_steps", "100"]
    run = tmp_path / "run"
    two.launch(run, 2, Moment("trained", STUDENT_STEP, call=2), by_signal)
    ends = two.ends()
    assert [end.status for end in ends] == [128 + signal.SIGTERM] * 2, two.log.read_text()
    assert torch.load(run / "iteration_1/trained/last.ckpt", weights_only=False)["global_step"] == 2
    finish(two, run, 2)
    assert_same_training(run, one)


def test_four_processes_and_parts_of_weights(training: tuple[Path, Path], tmp_path: Path) -> None:
    """Without a kill, layers computed again; one process then finds nothing to do."""
    recipe, one = training
    run = tmp_path / "run"
    four = program(recipe, tmp_path, 4, "fsdp2", 4)
    four.options = [*four.options, "--recipe.trained.training.gradient_checkpointing", "true"]
    finish(four, run, 4)
    assert_same_training(run, one)
    assert "nothing was left to do" in finish(four, run, 4)
