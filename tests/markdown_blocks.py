"""The code blocks and commands of a Markdown page, and which of them are not to be run.

A block is fenced and names its language. `<!-- not run: REASON -->` on the line above leaves it out of the tests, with
that reason.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w+-]*).*")
_NOT_RUN = re.compile(r"\s*<!-- not run:(?P<reason>.*)-->\s*")
_CONTAINER = re.compile(r" *([-*+] |\d+[.)] |!!! |\?\?\?\+? |=== |\[\^|: )")
"""What begins a list item, an admonition, a tab, a footnote or a definition: what is indented below belongs to it."""
_INLINE = re.compile(r"(?<!`)`((?:python -m montessori_pl|montessori-pl) [^`]+)`(?!`)")
_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|…")
"""`FILE`, `DIR` and the like: the command is a pattern and cannot be run as it is."""


class PageError(ValueError):
    """What is wrong with a page, in a sentence for its writer."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block."""

    line: int
    """Line of the opening fence, from 1."""
    language: str
    """The word behind the fence."""
    code: str
    """What stands between the fences, without the indentation that they have in common."""
    not_run: str | None = None
    """Why it is not run; none where it is."""


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order.

    Raises:
        PageError: a block has no language or no end, or is left out without a reason.
    """
    blocks, not_run = [], None
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    for number, line in lines:
        where = f"{page.name}:{number}"
        if match := _NOT_RUN.fullmatch(line):
            not_run = match["reason"].strip()
            if not not_run:
                raise PageError(f"{where}: a block that is not run needs a reason: <!-- not run: REASON -->")
        elif opening := _FENCE.fullmatch(line):
            if not opening["language"]:
                raise PageError(f"{where}: the block names no language: yaml, python, console, text, ...")
            code = "".join(_until(opening, lines, where))
            blocks.append(Block(number, opening["language"], code, not_run))
            not_run = None
        elif line.strip() and not_run is not None:
            raise PageError(f"{where}: <!-- not run: ... --> stands above something that is no block")
    return blocks


def inline_commands(page: Path) -> list[tuple[int, str]]:
    """The commands of ours that stand in running text, with their lines, but for those with a placeholder."""
    return [
        (number, match[1])
        for number, line in _outside_blocks(page)
        for match in _INLINE.finditer(line)
        if not _PLACEHOLDER.search(match[1])
    ]


def indented_code(page: Path) -> list[int]:
    """Lines at which Markdown begins a code block by indentation alone, which no test would see."""
    found, inside, begins = [], 0, True
    for number, line in _outside_blocks(page):
        indent = len(line) - len(line.lstrip(" "))
        if not line.strip():
            begins = True
            continue
        if _CONTAINER.match(line) and indent < inside + 4:
            inside = indent + 4
        elif begins and indent < inside:
            inside = indent // 4 * 4
        if begins and indent >= inside + 4:
            found.append(number)
        begins = False
    return found


def commands(code: str) -> list[str]:
    """The commands of a console: behind `$ `, and on the lines that a backslash continues; the rest is output."""
    joined = re.sub(r"\\\n\s*", "", code)
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def _until(opening: re.Match[str], lines: Iterator[tuple[int, str]], where: str) -> Iterator[str]:
    for _, line in lines:
        if line.strip() == opening["fence"]:
            return
        yield line.removeprefix(opening["indent"]) + "\n"
    raise PageError(f"{where}: the block has no end")


def _outside_blocks(page: Path) -> Iterator[tuple[int, str]]:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    for number, line in lines:
        if opening := _FENCE.fullmatch(line):
            list(_until(opening, lines, f"{page.name}:{number}"))
        else:
            yield number, line
