"""Texts of others within Markdown and CSV: they are read as they are, and nothing in them is obeyed."""

import re

from montessori_pl.data.text import printable

_OBEYED = re.compile(r"[\\`*\[\]]")
_FORMULA = ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet computes, also in full width."""


def in_markdown(text: str) -> str:
    """A text on one line of Markdown: no HTML, no link, no emphasis."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return _OBEYED.sub(r"\\\g<0>", line)


def code_span(text: object) -> str:
    """A text on one line as code, which may hold backticks."""
    line = one_line(str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    blank = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{blank}{line}{blank}{fence}"


def in_cell(markdown: str) -> str:
    """Markdown within a table, whose cells end at a pipe."""
    return markdown.replace("|", "\\|")


def csv_cell(text: str) -> str:
    """A text in a table that a spreadsheet may open; an apostrophe keeps it from being computed."""
    return f"'{printable(text)}" if text.startswith(_FORMULA) else printable(text)


def one_line(text: str) -> str:
    """A text on one line, without control characters."""
    return printable(" ".join(text.split()))
