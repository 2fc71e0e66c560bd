"""Names that become directories: those of stages and of teachers."""

import re
from collections.abc import Collection

LONGEST_NAME = 100
"""Bytes; file systems take 255."""


def check_name(name: object, what: str, taken: Collection[str] = ()) -> None:
    """Let nobody name a place outside of the directory in which a name becomes one.

    Args:
        name: the name.
        what: whose name it is, for the sentence: `a stage`.
        taken: names that mean something else.

    Raises:
        ValueError: it is none, or taken.
    """
    fits = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) and len(name.encode()) <= LONGEST_NAME
    if fits and name not in taken:
        return
    but = f"; {' and '.join(map(repr, taken))} are taken" if taken else ""
    raise ValueError(
        f"{what} cannot be called {name!r}: the name becomes a directory, so use letters, digits, '_', '-' and '.', at "
        f"most {LONGEST_NAME} bytes, and begin with a letter or digit{but}"
    )
