"""What belongs to an instruction in other columns: a text that it is about, and choices among which it lets choose."""

from typing import Any

from montessori_pl.data.text import says_something
from montessori_pl.data.turns import Row, Unusable, as_text

MATERIAL = ("input", "context", "passage")
"""Columns of a text that the instruction is about."""
CHOICES = ("choices", "options")
"""Columns of the answers among which a question lets choose."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def asked(row: Row, instruction: Any) -> str:
    """The instruction, behind it on new lines what it is about and its choices, each behind its letter.

    Args:
        row: the row.
        instruction: what its instruction column holds.

    Raises:
        Unusable: a column holds something else.
    """
    text = as_text(instruction, "the instruction")
    parts = [text, *(as_text(row.get(name), name) for name in MATERIAL)]
    parts += [f"{label}. {choice}" for label, choice in labelled_choices(row).items()]
    # A blank instruction stays blank: the material alone asks nothing.
    return "\n".join(part for part in parts if says_something(part)) if says_something(text) else text


def chosen(row: Row, response: Any) -> Any:
    """The response; where it is the place of a choice, counted from 0, the letter of that choice."""
    choices = labelled_choices(row)
    is_place = isinstance(response, int) and not isinstance(response, bool) and 0 <= response < len(choices)
    if is_place and str(response) not in (*choices, *choices.values()):
        return list(choices)[response]
    return response


def labelled_choices(row: Row) -> dict[str, str]:
    """The choices by their labels, which are letters where the row names none; empty where there is no choice.

    Choices are a list of texts, a mapping of labels to texts, or the two lists `label` and `text` (ARC).

    Raises:
        Unusable: they are something else.
    """
    value = next((row[name] for name in CHOICES if says_something(row.get(name))), None)
    if value is None:
        return {}
    labels, texts = None, value
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        labels, texts = value["label"], value["text"]
    elif isinstance(value, dict):
        said = {label: text for label, text in value.items() if says_something(text)}
        labels, texts = list(said), list(said.values())
    if not isinstance(texts, list) or len(texts) > len(LETTERS) or (labels and len(labels) != len(texts)):
        raise Unusable("malformed row", "the choices are no list of texts")
    texts = [as_text(text, "a choice") for text in texts]
    return dict(zip(map(str, labels or LETTERS), texts, strict=False))
