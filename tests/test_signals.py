"""Signals at random moments, to one process of a run or to all: each ends in order, and nothing is lost.

Two runs of the tiny recipe, one by one process and one by two, are stopped again and again in every stage. Runs that
nobody disturbed must hold the same bytes.
"""

import dataclasses
import itertools
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from killing import TWO_PROCESSES, Program, assert_same_run

from montessori_pl.run_directory.run_directory import RunDirectory

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
TO = {"alone": 1, "first": 2, "second": 2, "both": 2}
"""Who gets a signal, and how many processes there are."""
TIMES = 5
MOST_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A signal that is sent."""

    signum: signal.Signals
    to: str

    def send(self, processes: list[int]) -> None:
        """To one process, or to the group; they may have ended."""
        with suppress(ProcessLookupError):
            if self.to == "both":
                os.killpg(processes[0], self.signum)
            else:
                os.kill(processes[1 if self.to == "second" else 0], self.signum)

    def statuses(self) -> list[int]:
        """With which the processes must end."""
        if self.signum != signal.SIGKILL:
            return [128 + self.signum] * TO[self.to]
        killed, failed = -signal.SIGKILL, 1
        return {"alone": [killed], "first": [killed, failed], "second": [failed, killed], "both": [killed] * 2}[self.to]

    def sentence(self) -> str:
        """What is said: by the first process, or of it."""
        if self.signum != signal.SIGKILL:
            return f"stopped by {self.signum.name}"
        number = {"first": 0, "second": 1}.get(self.to)
        return f"error: process {number} of this run ended without a word" if number is not None else ""


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Callable[..., Path]) -> Path:
    """The tiny recipe, in small batches."""
    return tiny_recipe(warmup_data={"prompts_per_batch": 1}, training_data={"prompts_per_batch": 1})


@pytest.mark.parametrize("processes", [1, 2])
def test_hundred_signals(processes: int, recipe: Path, tmp_path: Path) -> None:
    """25 in a run of one process, and 75 in a run of two, the same number in each stage."""
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    moments = random.Random(seed)
    cases = [Case(*one) for one in itertools.product(SIGNALS, (to for to, count in TO.items() if count == processes))]
    cases *= TIMES
    moments.shuffle(cases)
    program = Program(recipe, tmp_path, TWO_PROCESSES if processes > 1 else ())
    whole, run = tmp_path / "whole", tmp_path / "run"
    program.launch(whole, processes)
    assert [end.status for end in program.ends()] == [0] * processes, program.log.read_text()
    stages = [key.removeprefix("iteration_1/") for key in RunDirectory(whole).entries]
    for number, stage in enumerate(stages):
        for case in cases[number :: len(stages)]:
            seconds = moments.uniform(0, RunDirectory(whole).entries[f"iteration_1/{stage}"].seconds)
            while not stop(program, run, stages[number:], seconds, case):
                seconds /= 2
    program.launch(run, processes)
    assert [end.status for end in program.ends()] == [0] * processes, program.log.read_text()
    assert_same_run(run, whole)


def stop(program: Program, run: Path, stages: list[str], seconds: float, case: Case) -> bool:
    """Run it, and send the signal so many seconds after the first of these stages has begun, or has gone on.

    Returns:
        whether it was in time; a process may have finished before.
    """
    key = f"iteration_1/{stages[0]}"
    if RunDirectory(run).finished(key):
        for stage in stages:
            shutil.rmtree(run / "iteration_1" / stage, ignore_errors=True)  # which undoes it
    processes = program.launch(run, TO[case.to])
    patience = time.monotonic() + 240
    while not re.search(rf"{key}: (?!finished)", program.log.read_text()):
        assert time.monotonic() < patience, program.log.read_text()
        time.sleep(0.02)
    time.sleep(seconds)
    sent = time.monotonic()
    case.send(processes)
    ends = program.ends()
    said = f"{case} {seconds:.3f} s after {key}: {ends}\n{program.log.read_text()}"
    if any(end.status == 0 for end in ends):
        assert RunDirectory(run).finished("iteration_1/evaluation"), said
        return False
    assert [end.status for end in ends] == case.statuses(), said
    assert max(end.time for end in ends) - sent < MOST_SECONDS, said
    assert case.sentence() in said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(processes[0], 0)
    return True
