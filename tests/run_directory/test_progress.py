"""What a person sees while a stage runs: on a terminal, in a notebook, and in a log file."""

import io
import re

import pytest

from montessori_pl.run_directory import progress as shown
from montessori_pl.run_directory.console import PlainConsole
from montessori_pl.run_directory.progress import ConsoleDisplay, Progress


def show(*, terminal: bool) -> str:
    """Everything that is written for a stage of ten parts that takes a while, in a recipe of two."""
    file = io.StringIO()
    display = ConsoleDisplay(PlainConsole(file=file, force_terminal=terminal, width=120))
    with display.stage("iteration_1/data", lambda seconds: None, lambda one: f"recipe: {one.share:.0%} of one") as one:
        one.start(10, done=2)
        one.advance(3, note="92% accepted", cost=0.314)
    return file.getvalue()


def test_a_terminal_gets_two_lines_that_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(shown.NOTEBOOK, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(shown, "SECONDS_BETWEEN_LOOKS", 0.0)
    text = show(terminal=True)
    assert "\x1b[1A" in text, "it goes a line up"
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\r")[-1]
    assert "recipe: 50% of one" in text
    assert re.search(r"iteration_1/data .*5/10 .*92% accepted, \$0\.31", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    assert not drawn.strip(), "in the end all of it is taken away"


@pytest.mark.parametrize(
    ("terminal", "environment"), [(False, {}), (True, {shown.NOTEBOOK: "1"}), (True, {"TERM": "dumb"})]
)
def test_elsewhere_lines_are_plain_and_rare(
    terminal: bool, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook shows what is drawn again below what it was; a log file keeps each control character."""
    monkeypatch.delenv(shown.NOTEBOOK, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert show(terminal=terminal) == "", "nothing within half a minute"
    monkeypatch.setattr(shown, "SECONDS_BETWEEN_LINES", 0.0)
    said = show(terminal=terminal)
    assert re.sub(r"[0-9.e+]+/s, [0-9]+ s left", "RATE", said).split("\n") == [
        "  iteration_1/data: 2 of 10, 0/s; recipe: 20% of one",
        "  iteration_1/data: 5 of 10, RATE, 92% accepted, $0.31; recipe: 50% of one",
        "",
    ]


def test_the_share_of_what_is_done() -> None:
    progress = Progress()
    assert progress.share == 0
    progress.start(None, done=4)
    assert progress.share == 0, "of how much is not known"
    progress.start(4, done=3)
    assert progress.share == 0.75
    progress.advance(3)
    assert progress.share == 1, "a last batch may hold more than was asked for"
