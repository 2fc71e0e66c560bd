"""What counts as text in a row of data: numbers do, lists of text parts do, invisible characters do not."""

import json
import math
import re
import unicodedata
from typing import Any

_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that show nothing although Unicode calls them letters, marks or symbols."""
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing them, that turn the text around, or that no file can hold."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a message that are text, as OpenAI's and Hugging Face's formats name them."""


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: blanks, control characters, zero-width and other invisible ones."""
    return all(
        unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Zs")
        or character in _INVISIBLE
        or "\ufe00" <= character <= "\ufe0f"  # they choose how the character before them is drawn
        for character in text
    )


def says_something(value: Any) -> bool:
    """Whether a value holds more than the nulls, NaN and empty texts by which tables fill what a row does not have."""
    if isinstance(value, dict):
        return any(map(says_something, value.values()))
    if isinstance(value, list | tuple):
        return any(map(says_something, value))
    if isinstance(value, str):
        return not is_blank(value)
    return value is not None and value == value


def without_nan(value: Any) -> Any:
    """The same value with null for each NaN, which is how pandas writes an empty cell."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_of_cell(cell: str) -> Any:
    """The number or the truth that a cell of a table writes out; the cell where it writes none."""
    try:
        value = json.loads(cell.strip().lower())  # pandas writes True
    except ValueError:
        return cell
    return value if isinstance(value, bool) or is_number(value) else cell


def is_writable(text: str) -> bool:
    r"""Whether UTF-8 can write it; JSON may hold half of a pair ("\ud83d"), as of texts that were cut in an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def writable(text: str) -> str:
    """The text with U+FFFD in place of each half of a pair that stands alone, which UTF-8 cannot write."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def printable(text: str) -> str:
    """The text as a terminal may show it, on its lines: escapes such as `\\x1b` in place of control characters."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def joined_parts(parts: list[Any]) -> str | None:
    """The text of a list of parts, joined as chat templates join them; none if some part is no text."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            return None
        others = [value for key, value in part.items() if key not in ("type", "text")]
        if part.get("type", "text") not in TEXT_PARTS or says_something(others):
            return None
        texts.append(part["text"])
    return "".join(texts)
