"""Pieces of Markdown that read well as plain text, too."""

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 120


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows))


def bullets(sentences: Iterable[str]) -> str:
    """A list."""
    return "\n".join(
        textwrap.fill(f"- {one}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for one in sentences
    )


def prose(text: str) -> str:
    """A paragraph, rewrapped."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def code(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"
