"""Recipe files that would never end, or grow: refused in a sentence, before they are parsed."""

import os
from pathlib import Path

import pytest
from recipe_files import Mistake, Recipe

from montessori_pl.cli.recipe_files import check_recipe_file, shipped_configs
from montessori_pl.config_errors import ConfigError

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
"""Ten aliases of ten aliases of ...: a thousand million values in half a kilobyte."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LAUGHS, r"bomb\.yaml holds [\d,]{13} values with those that its aliases .* repeat, and a recipe file at most"),
        ("a: &a [*a]\n", "nested too deeply to be read, or an alias in it stands within itself"),
        ("a: &a {b: *a}\n", "an alias in it stands within itself"),
        ("[" * 5_000, "nested too deeply"),
        ("run: " + "x" * 2**20, r"has 1,048,581 bytes, and a recipe file at most 1,048,576"),
        (b"run: \xff\n", "is not UTF-8 at byte 5; save it as UTF-8"),
    ],
)
def test_bombs(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=sentence):
        check_recipe_file(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, kind in ((tmp_path / "pipe.yaml", "a named pipe"), (tmp_path, "a directory")):
        with pytest.raises(ConfigError, match=f"cannot read {path}: it is {kind}"):
            check_recipe_file(path)


def test_shipped_recipes_and_plain_aliases_pass(tmp_path: Path) -> None:
    for path in shipped_configs().glob("*.yaml"):
        check_recipe_file(path)
    (tmp_path / "a.yaml").write_text("a: &a {b: 1}\nc: *a\nd:\n  <<: *a\n  <<: *a\n")
    check_recipe_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"a\.yaml is empty; a recipe file has sections such as `student:` and `recipe:`"),
        ("# nothing yet\n", r"a\.yaml is empty"),
        ("- a\n", r"a\.yaml is no mapping"),
        (
            "run: x\nrecipe:\n  trained: {lr: 1}\n  data: {}\n  trained: {lr: 2}\n",
            "has the key 'trained' twice, in lines 3 and 5; rename one of them",
        ),
        ("a: 1\ntraining: {lr: 1, epochs: 2, lr: 3}\n", "the key 'lr' twice, in line 2; rename one of them"),
        ("iterations: 2\nrun: x\niterations: 3\n", "'iterations' twice, in lines 1 and 3"),
    ],
)
def test_what_says_nothing_or_one_thing_twice(tmp_path: Path, text: str, sentence: str) -> None:
    """YAML's parser takes the last of two keys without a word: a copied stage under an unchanged name is gone."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        check_recipe_file(tmp_path / "a.yaml")


def test_on_the_command_line(mistake: Mistake, recipe: Recipe) -> None:
    Path("bomb.yaml").write_text(LAUGHS)
    assert "values with those that its aliases" in mistake("--config", recipe(), "--config", "bomb.yaml")
    Path("loop.yaml").write_text("a: &a [*a]\n")
    assert "alias in it stands within itself" in mistake("--config=loop.yaml")


@pytest.mark.slow
def test_names_of_teachers_stay_in_the_run(mistake: Mistake, recipe: Recipe) -> None:
    """They become directories of `requests/`."""
    for name in ("../../../x", "/tmp/x", "judge", "answers.jsonl", "latest"):
        said = mistake("--config", recipe(teachers={name: {"backbone": "classroom/teacher"}}))
        assert said.startswith(f"a teacher cannot be called {name!r}: the name becomes a directory")
    assert not Path("run").exists()
