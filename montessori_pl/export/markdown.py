"""Pieces of Markdown that read well as plain text, too."""

import re
import textwrap
from collections.abc import Iterable, Sequence

from montessori_pl.data.markup import in_cell
from montessori_pl.data.text import printable

WIDTH = 120


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; its cells are Markdown."""
    lines = ([in_cell(str(cell)) for cell in row] for row in (header, ["---"] * len(header), *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    """A block of code, in which lines may begin with backticks."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"
