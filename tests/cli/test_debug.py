"""`--debug` shows the traceback that a sentence stands for, in every command and anywhere on the command line."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from recipe_files import Recipe, contents

from montessori_pl.__main__ import main

STAGES = '''
from montessori_pl.stages import Kind, Stage, StageContext, StageError


class Picky(Stage):
    """Refuses one thing.

    Args:
        what: its settings, its environment, or its work.
    """

    produces = Kind.REPORT
    artifacts = ()

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        if what == "settings":
            raise ValueError("settings are refused")

    def check_environment(self) -> None:
        if self.what == "environment":
            raise ValueError("environment is refused")

    def run(self, context: StageContext) -> dict[str, str]:
        if self.what == "work":
            raise StageError("work is refused")
        return {}
'''

Ended = Callable[..., list[str]]


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    """Run the program, which ends with a mistake, and return the lines on the standard error."""

    def run(*arguments: str) -> list[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main(list(arguments))
        assert exit_info.value.code == 2
        return capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def picky(recipe: Recipe) -> Recipe:
    """Write a recipe whose stage refuses what is given."""
    Path("picky_stages.py").write_text(STAGES)
    return lambda what: recipe(recipe__picky={"class_path": "picky_stages.Picky", "init_args": {"what": what}})


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["fit", "--config", "nowhere.yaml"], "no recipe file 'nowhere.yaml' in the working directory; those that "),
        (
            ["fit", "--run", "x", "--iterationss", "2"],
            "unknown option --iterationss; did you mean '--iterations'? there are: --seed",
        ),
        (["compare", "nowhere"], "there is no directory nowhere; "),
        (["compare"], "the following arguments are required: RUN; "),
        (["export", "nowhere"], "there is no directory nowhere; "),
        (["export", "nowhere", "--stagee", "x"], "unrecognized arguments: --stagee x; "),
    ],
)
def test_anywhere_on_the_command_line(command: list[str], sentence: str, ended: Ended) -> None:
    """Without it the sentence stands alone; with it the same sentence stands below a traceback."""
    alone = ended(*command)
    assert len(alone) == 1
    assert alone[0].startswith(f"error: {sentence}")
    # Between an option and its value it would be the value.
    places = [place for place in range(len(command) + 1) if place == 0 or command[place - 1][:2] != "--"]
    for place in places:
        first, *_, last = ended(*command[:place], "--debug", *command[place:])
        assert (first, last) == ("Traceback (most recent call last):", alone[0]), f"in place {place}"


@pytest.mark.parametrize("what", ["settings", "environment"])
def test_shows_where_a_mistake_was_found_before_the_run(what: str, picky: Recipe, ended: Ended) -> None:
    """The sentence is another error's than the plugin's."""
    sentence = f"error: recipe.picky: {what} is refused".replace("settings is", "settings are")
    assert ended("fit", "--config", picky(what)) == [sentence]
    *shown, last = ended("fit", "--config", "recipe.yaml", "--debug")
    assert last == sentence
    assert any("picky_stages.py" in line for line in shown)
    assert not Path("run").exists(), "nothing is kept"


def test_says_where_the_traceback_of_a_run_is_kept(picky: Recipe, ended: Ended) -> None:
    said = ["error: work is refused", "the traceback is in run/error.log"]
    assert ended("fit", "--config", picky("work")) == said
    assert "picky_stages.py" in Path("run/error.log").read_text()
    assert ended("fit", "--config", "run/config.yaml") == said, "its settings are kept from the beginning"
    shown = ended("fit", "--config", "recipe.yaml", "--debug")
    assert shown[0] == "Traceback (most recent call last):"
    assert any("picky_stages.py" in line for line in shown)
    assert shown[-2:] == said


@pytest.mark.slow
def test_is_no_setting(picky: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither what is printed nor what a run writes knows of it, and the same run goes on without it."""
    path = picky("nothing")
    with pytest.raises(SystemExit):
        main(["fit", "--debug", "--config", path, "--print_config"])
    assert "debug" not in capsys.readouterr().out
    main(["fit", "--config", path, "--debug"])
    written = contents(Path("run"))
    assert "config.yaml" in written
    assert [name for name, text in written.items() if b"debug" in text] == []
    main(["--debug", "fit", "--config", path])
    main(["fit", "--config", path])
    assert "All 2 stages had finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "option"), product([[], ["fit"], ["compare"], ["export"]], [["--help"], ["--debug", "--help"]])
)
def test_is_listed(command: list[str], option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*command, *option])
    assert exit_info.value.code == 0
    assert "--debug" in capsys.readouterr().out.partition("options:")[2]
