"""What a reader of one row finds in it, or why it finds nothing."""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from montessori_pl.data.records import Turn
from montessori_pl.data.text import is_number, is_writable, joined_parts, says_something

Row = Mapping[str, Any]

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
"""Columns of the system message, where the layout has no other place for it."""
HISTORY = "history"
"""Column of the turns before the instruction: [user, assistant] pairs, as LLaMA-Factory writes them, or messages."""


class Unusable(ValueError):
    """A row that becomes a rejection: (reason, detail)."""


@dataclass(frozen=True)
class Turns:
    """What a layout finds in a row, as it stands there."""

    instruction: Any
    """The last user turn."""
    response: Any
    """Its answer."""
    system: Any = ""
    """The system message."""
    history: tuple[Turn, ...] = ()
    """The turns before the instruction."""
    unread: frozenset[str] = field(default=frozenset(), compare=False)
    """Names of what was not read within the columns of the layout, and says something."""


def objects(value: Any, name: str) -> list[Row]:
    """A list of JSON objects, empty for null; a cell of a table may hold the list as JSON text.

    Raises:
        Unusable: it is something else.
    """
    entries = [] if value is None else value
    if isinstance(entries, str) and entries.lstrip().startswith("["):
        with contextlib.suppress(json.JSONDecodeError):
            entries = json.loads(entries)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Unusable("malformed row", f"{name} is no list of objects")
    return entries


def as_text(value: Any, name: str) -> str:
    """The text of a value: of a number its digits, of a list of text parts all of them; empty for null.

    Raises:
        Unusable: it is something else.
    """
    if isinstance(value, list):
        parts = joined_parts(value)
        if parts is None and all(isinstance(part, dict) for part in value):
            kinds = dict.fromkeys(str(part.get("type", "unknown")) for part in value)
            raise Unusable("more than text", f"{name} has parts that are no text: {', '.join(kinds)}")
        value = parts if parts is not None else value
    elif is_number(value):
        value = str(value)
    if not isinstance(value, str | None):
        raise Unusable("malformed row", f"{name} is {type(value).__name__}, not text")
    if value and not is_writable(value):
        raise Unusable("malformed row", f"{name} holds half of a surrogate pair, which is no character")
    return value or ""


def system_of(row: Row, said: str = "") -> str:
    """The system message: the one of the conversation, or that of a column.

    Args:
        row: the row.
        said: what the conversation itself says.

    Raises:
        Unusable: there are two different ones.
    """
    found = {text: name for name in SYSTEM_COLUMNS if says_something(text := as_text(row.get(name), name))}
    if says_something(said):
        found.setdefault(said, "the conversation")
    if len(found) > 1:
        raise Unusable("two system messages", f"{' and '.join(found.values())} say different things")
    return next(iter(found), "")


def checked_history(turns: list[Turn]) -> tuple[Turn, ...]:
    """Whole exchanges, each a user turn and an answer, none of them blank.

    Raises:
        Unusable: it is something else.
    """
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise Unusable("other turns", f"user and assistant must take turns before the instruction; {place_of(roles)}")
    for number, turn in enumerate(turns, start=1):
        if not says_something(turn.content):
            raise Unusable("empty turn", f"turn {number}, the {turn.role}'s, is blank")
    return tuple(turns)


def place_of(roles: Sequence[str]) -> str:
    """Where roles stop taking turns, user first and assistant last."""
    if not roles or roles[0] != "user":
        return f"the first turn is the {roles[0]}'s" if roles else "there is no turn"
    for number, (one, next_one) in enumerate(itertools.pairwise(roles), start=1):
        if one == next_one:
            return f"turns {number} and {number + 1} are both the {one}'s"
    return "the last turn is the user's, and no answer follows"
