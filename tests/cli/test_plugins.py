"""A user's `callbacks` in the working directory, beside ours: both in one recipe."""

import functools
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_files import Mistake, Recipe

from montessori_pl.cli.fit import main
from montessori_pl.cli.plugins import SharedPackage

ROOT = Path(__file__).parents[2]
MINE = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from callbacks import ResponseLengthSignal
from callbacks.controls import RandomSignal


@dataclass
class Settings:
    """Settings of a signal."""

    weight: float = 1.0


class MySignal(ResponseLengthSignal):
    """Prefers long responses.

    Args:
        how: in which way.
        settings: nested ones.
    """

    def __init__(self, how: Literal["this", "that"] = "this", settings: Settings | None = None) -> None:
        super().__init__(direction="high")
        self.how, self.settings = how, settings
'''
"""Uses ours by the names that they have in a recipe, and hints that are looked up in the module."""


def in_a_child(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a forked process: a class that was once imported stays a subclass for the rest of a session."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe(duplex=False)

        def report() -> None:
            if isinstance(shared := sys.modules.get("callbacks"), SharedPackage):
                sys.modules["callbacks"] = shared._ours
            try:
                test(**fixtures)
            except BaseException:
                there.send(traceback.format_exc())
            else:
                there.send(None)

        child = fork.Process(target=report)
        child.start()
        there.close()
        failure = here.recv()
        child.join()
        assert failure is None, failure

    return run


def score(signal: str, **settings: Any) -> dict[str, Any]:
    """A stage that scores with a signal."""
    return {
        "class_path": "ScoreExamples",
        "init_args": {"examples": "recorded", "signal": {"class_path": signal, "init_args": settings}},
    }


def stages(**signals: str) -> dict[str, Any]:
    """For `recipe`: a stage for each of these signals."""
    return {f"recipe__score_{name}": score(signal) for name, signal in signals.items()}


def check_dry_run(capsys: pytest.CaptureFixture[str], recipe: str, *names: str) -> None:
    """Check that a dry run in this process plans these stages."""
    capsys.readouterr()
    main(["fit", "--config", recipe, "--dry_run"])
    printed = capsys.readouterr().out
    assert [name for name in names if f"score_{name}" not in printed] == []


def check_started_dry_run(recipe: str, *names: str) -> None:
    """The same for a program that is started here, by a user who has installed us elsewhere."""
    done = subprocess.run(
        [sys.executable, "-m", "montessori_pl", "fit", "--config", recipe, "--dry_run"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [name for name in names if f"score_{name}" not in done.stdout] == []


@pytest.mark.slow
def test_package_whose_modules_import_each_other(recipe: Recipe) -> None:
    """One of its modules takes a class of ours, and passes it on."""
    package = Path("callbacks")
    package.mkdir()
    (package / "helpers.py").write_text("from callbacks import InfluenceProbeCallback\nNAME = 'mine'")
    (package / "mine.py").write_text(f"{MINE}\nfrom callbacks.helpers import NAME\nassert NAME")
    (package / "__init__.py").write_text(
        "from callbacks.helpers import InfluenceProbeCallback\nfrom .mine import MySignal\n"
        "from callbacks import helpers\n"
        "class Here(MySignal): ...\n"
    )
    signals = stages(
        ours="callbacks.InfluenceProbeCallback",
        theirs="callbacks.MySignal",
        here="callbacks.Here",
        whole="callbacks.mine.MySignal",
        short="IFDSignal",
    )
    check_started_dry_run(recipe(**signals), "ours", "theirs", "here", "whole", "short")


@pytest.mark.slow
def test_module(recipe: Recipe) -> None:
    Path("callbacks.py").write_text(MINE)
    signals = stages(ours="callbacks.InfluenceProbeCallback")
    signals["recipe__score_theirs"] = score("callbacks.MySignal", how="that", settings={"weight": 2.0})
    check_started_dry_run(recipe(**signals), "ours", "theirs")


@in_a_child
def test_mistakes_in_the_settings_of_a_module(recipe: Recipe, mistake: Mistake) -> None:
    Path("callbacks.py").write_text(MINE)
    wrong = {"recipe__score_theirs": score("callbacks.MySignal", how="other")}
    assert mistake("--config", recipe(**wrong)) == (
        "recipe.score_theirs.signal.how: expected one of this, that, found other"
    )
    said = mistake("--config", recipe(**stages(theirs="callbacks.MySignall")))
    assert said.startswith(
        "recipe.score_theirs.signal: module callbacks has no class 'MySignall'; did you mean 'MySignal'? "
    )


@in_a_child
def test_folder_without_init(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    Path("callbacks").mkdir()
    Path("callbacks/mine.py").write_text(MINE)
    signals = stages(ours="callbacks.InfluenceProbeCallback", theirs="callbacks.mine.MySignal")
    check_dry_run(capsys, recipe(**signals), "ours", "theirs")


@pytest.mark.slow
@in_a_child
def test_two_classes_of_one_name(recipe: Recipe, mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither is taken silently; the place where each is defined says which one is meant, and the others still work."""
    Path("callbacks.py").write_text(f"{MINE}\nclass JudgeSignal(MySignal): ...\n")
    assert mistake("--config", recipe(**stages(judged="callbacks.JudgeSignal"))) == (
        "recipe.score_judged.signal: callbacks.JudgeSignal is a class that ships with us and also one in "
        f"{Path('callbacks.py').resolve()}; write callbacks.judge.JudgeSignal for ours, or rename yours"
    )
    signals = stages(ours="callbacks.InfluenceProbeCallback", theirs="callbacks.MySignal")
    signals["recipe__score_judged"] = score("callbacks.judge.JudgeSignal", judge={"backbone": "classroom/student"})
    check_dry_run(capsys, recipe(**signals), "ours", "theirs", "judged")


@in_a_child
def test_two_modules_of_one_name(recipe: Recipe, mistake: Mistake) -> None:
    Path("callbacks").mkdir()
    Path("callbacks/__init__.py").write_text("from callbacks.judge import MySignal")
    Path("callbacks/judge.py").write_text(MINE)
    assert mistake("--config", recipe(**stages(theirs="callbacks.MySignal"))) == (
        "recipe.score_theirs.signal: callbacks.judge is a module that ships with us and also one in "
        f"{Path('callbacks').resolve()}; rename yours"
    )


@in_a_child
def test_module_of_another_program_is_not_run(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    Path("callbacks.py").write_text("raise SystemExit('this is run')")
    check_dry_run(capsys, recipe(**stages(ours="callbacks.InfluenceProbeCallback")), "ours")
