"""What a reader of one row finds in it, or why it finds nothing."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Unusable(ValueError):
    """A row that becomes a rejection: (reason, detail)."""


class Turns(NamedTuple):
    """What a layout finds in a row, as it stands there."""

    instruction: Any
    response: Any
    system: Any = ""


def objects(value: Any, name: str) -> list[Row]:
    """A list of JSON objects, empty for null.

    Raises:
        Unusable: it is something else.
    """
    entries = [] if value is None else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Unusable("malformed row", f"{name} is no list of objects")
    return entries
