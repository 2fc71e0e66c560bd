"""What the commands beside `fit` share: a parser, and mistakes in one sentence.

Knows nothing of models or of Lightning, which take seconds to import.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class CommandError(ValueError):
    """Why a command cannot do what it is asked, in a sentence for the user."""


class CommandParser(argparse.ArgumentParser):
    """Raises its mistakes instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Say it in one sentence."""
        raise CommandError(f"{message}; `{self.prog} --help` lists what exists")


@contextmanager
def errors_end_in_a_sentence() -> Iterator[None]:
    """Mistakes of the user within the block end the program with one sentence and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
