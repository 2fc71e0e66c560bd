"""What the commands beside `fit` share: a parser, mistakes in one sentence, and a look at a run directory.

Knows nothing of models or of Lightning, which take seconds to import.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from montessori_pl.workspace import Workspace, WorkspaceError

MANY = 16
"""So many names are listed."""


class CommandError(ValueError):
    """Why a command cannot do what it is asked, in a sentence for the user."""


class CommandParser(argparse.ArgumentParser):
    """Raises its mistakes instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Say it in one sentence."""
        raise CommandError(f"{message}; `{self.prog} --help` lists what exists")


@contextmanager
def mistakes_end_in_a_sentence() -> Iterator[None]:
    """Mistakes of the user within the block end the program with one sentence and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def open_run(root: Path) -> Workspace:
    """The workspace of a run that exists.

    Raises:
        CommandError: it is no run directory, or its manifest is damaged.
    """
    if not root.is_dir():
        above = next(parent for parent in root.absolute().parents if parent.is_dir())
        raise CommandError(f"there is no directory {root}; {_holds(above)}; correct the path")
    if not (root / "manifest.json").exists():
        raise CommandError(
            f"{root} is no run directory, for it holds no manifest.json; {_holds(root)}; give the directory that "
            "`fit` was given with --run"
        )
    try:
        return Workspace(root)
    except WorkspaceError as error:
        raise CommandError(
            f"{root / 'manifest.json'} is not a manifest of this program ({error.__cause__}); restore it, or give "
            "another run"
        ) from error


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first of them if there are many."""
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def _holds(directory: Path) -> str:
    """What lies in a directory."""
    names = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir() if not path.name.startswith("."))
    return f"{directory} holds {listed(names) or 'nothing'}"
