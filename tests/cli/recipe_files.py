"""What the tests of the command line share: the shipped recipes, and what a run has written."""

from collections.abc import Callable
from pathlib import Path

Mistake = Callable[..., str]
"""Runs `fit` with these arguments and returns the sentence with which it ends."""
Recipe = Callable[..., str]
"""Writes a recipe and returns its name."""

SHIPPED = sorted(path.name for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a run that holds results, with its bytes."""
    ours = (".lock", "error.log")
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ours
    }
