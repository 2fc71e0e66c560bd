"""Which stages are not done twice: those with the same settings and the same content made by other stages."""

import json
from pathlib import Path
from typing import Any

import pytest

from montessori_pl.pipeline.equal_work import equal_stage, take_result
from montessori_pl.pipeline.recipe import Step
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stages.base import Kind, Stage, StageContext


class Learns(Stage):
    """Depends on what it reads, whoever wrote it."""

    produces = Kind.STUDENT
    artifacts = ("weights/*",)

    def input_content(self, setting: str, directory: Path) -> str | None:
        return (directory / "text").read_text() if setting == "examples" else None

    def run(self, context: StageContext) -> dict[str, Any]:
        raise AssertionError


class Plain(Learns):
    """Depends on who wrote what it reads."""

    def input_content(self, setting: str, directory: Path) -> str | None:
        return None


class Run:
    """Two stages that have left the same behind, `one` and `two`, and `three`, which has not."""

    def __init__(self, root: Path) -> None:
        self.directory = RunDirectory(root)
        for name, text in (("one", "same"), ("two", "same"), ("three", "other")):
            self._finish(f"iteration_1/{name}", {"text": text})

    def _finish(self, key: str, files: dict[str, str], settings: Any = None, inputs: Any = None) -> None:
        self.directory.begin(key, settings or {}, inputs or {})
        paths = [self.directory.directory(key) / name for name in files]
        for path, text in zip(paths, files.values(), strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        self.directory.finish(key, paths)

    def inputs(self, examples: str, scores: str) -> dict[str, str]:
        names = {"examples": examples, "scores": scores}
        digests = {name: self.directory.digest(f"iteration_1/{one}") for name, one in names.items()}
        return {name: f"iteration_1/{one} {digests[name]}" for name, one in names.items()}

    def learned(self, name: str, examples: str, scores: str = "three", iteration: int = 1, lr: float = 0.1) -> None:
        """A stage of this name has finished."""
        key, files = f"iteration_{iteration}/{name}", {"weights/w": "learned", "metrics.json": "{}"}
        self._finish(key, files, settings(name, examples, scores, lr), self.inputs(examples, scores))

    def equal(
        self, name: str, examples: str, scores: str = "three", lr: float = 0.1, kind: type[Stage] = Learns
    ) -> Any:
        """What can be taken for the stage of this name."""
        step = Step(f"iteration_1/{name}", name, 1, kind(), {})
        return equal_stage(self.directory, step, settings(name, examples, scores, lr), self.inputs(examples, scores))


def settings(name: str, examples: str, scores: str, lr: float) -> dict[str, Any]:
    arguments = {"examples": examples, "scores": scores, "training": {"lr": lr, "betas": (0.9, 0.95)}}
    return {
        "seed_everything": 1,
        f"recipe.{name}": {"class_path": "Learns", "init_args": arguments},
        "student": {"r": 2},
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.learned("first", "one")
    return run


def test_the_same_content_by_another_stage(run: Run) -> None:
    assert run.equal("second", "two") == "iteration_1/first"
    assert run.equal("second", "two", kind=Plain) is None, "what counts is said by the stage"


def test_the_same_stage_read_twice_is_a_repetition(run: Run) -> None:
    assert run.equal("second", "one") is None


def test_what_differs(run: Run) -> None:
    assert run.equal("second", "three") is None
    assert run.equal("second", "two", lr=0.2) is None
    assert run.equal("second", "two", scores="one") is None, "of this input, who left it counts"


def test_only_what_finished_before_in_the_iteration(run: Run) -> None:
    assert run.equal("first", "one") is None
    run.learned("later", "three")
    run.learned("again", "two", iteration=2, lr=0.3)
    assert run.equal("last", "one", lr=0.3) is None, "of another iteration"
    run.learned("fourth", "two", lr=0.4)
    run.directory.begin("iteration_1/half", settings("half", "one", "three", 0.5), run.inputs("one", "three"))
    assert run.equal("last", "two", lr=0.5) is None, "half done"
    assert run.equal("later", "one", lr=0.4) is None, "it began after this one, which is done again"
    assert run.equal("last", "one", lr=0.4) == "iteration_1/fourth"


def test_all_but_the_metrics_is_taken(run: Run) -> None:
    run.directory.begin("iteration_1/second", {}, {})
    target = run.directory.directory("iteration_1/second")
    (target / "weights").mkdir()
    (target / "weights" / "w").write_text("torn")
    take_result(run.directory, "iteration_1/second", "iteration_1/first", "metrics.json")
    assert (target / "weights" / "w").read_text() == "learned"
    assert not (target / "metrics.json").exists()
    assert json.loads((run.directory.directory("iteration_1/first") / "metrics.json").read_text()) == {}
