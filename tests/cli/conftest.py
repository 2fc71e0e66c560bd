"""An empty working directory, recipes of one quick stage, and the sentence with which a mistaken `fit` ends."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import Mistake, Recipe

from montessori_pl.cli.fit import main


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory; `main` puts it on the import path, which is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run `fit` and return the sentence with which it ends."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main(["fit", *arguments])
        printed = capsys.readouterr()
        assert exit_info.value.code == 2
        assert printed.err.startswith("error: ")
        said, *notes = printed.err.removeprefix("error: ").splitlines()
        assert notes in ([], ["the traceback is in run/error.log"]), "one sentence on one line"
        return said

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Write a recipe of one quick stage into `recipe.yaml`; `a__b=1` sets what `a: {b: 1}` means; returns its name."""

    def write(**changes: Any) -> str:
        config: dict[str, Any] = {
            "run": "run",
            "num_threads": 1,
            "student": {"class_path": "StudentModule", "init_args": {"backbone": "classroom/student"}},
            "teacher": {"class_path": "TeacherDPOModule", "init_args": {"backbone": "classroom/teacher"}},
            "generation": {"class_path": "TransformersBackend"},
            "data": {role: f"classroom/{role}[:8]" for role in ("seed_tasks", "reference", "test")},
            "trainer": {"logger": False},
            "recipe": {
                "recorded": {"class_path": "RecordedExamples", "init_args": {"source": "classroom/seed_tasks[:8]"}}
            },
        }
        for path, value in changes.items():
            *sections, last = path.split("__")
            node = config
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = value
        Path("recipe.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return "recipe.yaml"

    return write
