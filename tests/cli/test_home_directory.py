"""A `~` at the beginning of a path is the home directory, wherever a path is given."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
from jsonargparse import Namespace
from recipe_files import Recipe

from montessori_pl import classroom
from montessori_pl.__main__ import main
from montessori_pl.cli.common import expand_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_settings_are_expanded_at_any_depth(home: Path) -> None:
    inner = Namespace(path="~/a.jsonl[:4]", number=3, names=["~/b", "c~", "a ~/b"], sizes=(1, 2), file=Path("~/d"))
    given = Namespace(run="~/run", stages={"~/key": inner}, nothing=None)
    found = expand_home(given)
    assert isinstance(found, Namespace)
    assert found.as_dict() == {
        "run": f"{home}/run",
        "nothing": None,
        "stages": {
            "~/key": {
                "path": f"{home}/a.jsonl[:4]",
                "number": 3,
                "names": [f"{home}/b", "c~", "a ~/b"],
                "sizes": (1, 2),
                "file": home / "d",
            }
        },
    }
    assert given.run == "~/run", "what was given stays as it was"
    assert expand_home("~nobody of this name/a") == "~nobody of this name/a"
    assert expand_home(argparse.Namespace(a="~")).a == str(home)


@pytest.mark.slow
def test_commands_expand_it(home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """`fit` in its options, its files and all of its sections, then `compare` and `export`."""
    shutil.copytree(classroom.resolve("classroom/student"), home / "models" / "student")
    shutil.copy(classroom.resolve("classroom/reference"), home / "reference.jsonl")
    (home / "layout.jinja").write_text(
        (Path(__file__).parents[2] / "montessori_pl/data/chat_templates/plain.jinja").read_text()
    )
    stages = {
        "recipe__recorded__init_args__source": "~/reference.jsonl[8:16]",
        "recipe__evaluation": {
            "class_path": "Evaluate",
            "init_args": {"students": ["base"], "evaluators": [{"class_path": "ResponseLoss"}]},
        },
    }
    student = {"backbone": "~/models/student", "chat_template": "~/layout.jinja"}
    name = recipe(**stages, student__init_args=student, data__reference="~/reference.jsonl[:8]", run="~/first")
    shutil.move(name, home / name)
    main(["fit", f"--config=~/{name}"])
    main(["fit", "--config", f"~/{name}", "--run=~/second", "--seed_everything", "7"])
    for run in ("first", "second"):
        assert json.loads((home / run / "summary.json").read_text())["students"]
    capsys.readouterr()
    main(["compare", "~/first", "NAMED=~/second", "--output", "~/table.txt"])
    assert "NAMED" in (home / "table.txt").read_text()
    main(["export", "~/first", "--output", "~/exported"])
    assert (home / "exported" / "train.jsonl").is_file()
    assert not Path("~").exists()
