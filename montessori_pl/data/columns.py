"""What belongs to an instruction in other columns: a text that it is about, and choices among which it lets choose."""

from typing import Any

from montessori_pl.data.text import is_number, says_something
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
    """The response; where it is the place of a choice, counted from 0, the letter of that choice.

    A number is no place where it is itself a choice, or a label that the row names; among choices that are texts, even
    texts of digits, it is one. pandas writes a place as 1.0 where another row has none.
    """
    labels, choices = _choices(row)
    if not is_number(response) or response != int(response):
        return response
    place = int(response)
    if response in choices:
        return choices[choices.index(response)]
    if str(place) in labels:
        return str(place)
    return labels[place] if 0 <= place < len(choices) else response


def labelled_choices(row: Row) -> dict[str, str]:
    """The choices by their labels, which are letters where the row names none; empty where there is no choice.

    Choices are a list of texts, a mapping of labels to texts, or the two lists `label` and `text` (ARC).

    Raises:
        Unusable: they are something else.
    """
    labels, choices = _choices(row)
    return {label: as_text(choice, "a choice") for label, choice in zip(labels, choices, strict=True)}


def _choices(row: Row) -> tuple[list[str], list[Any]]:
    """Labels and choices as they stand in the row, as many of one as of the other."""
    value = next((row[name] for name in CHOICES if says_something(row.get(name))), None)
    if value is None:
        return [], []
    labels, texts = None, value
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        labels, texts = value["label"], value["text"]
    elif isinstance(value, dict):
        said = {label: text for label, text in value.items() if says_something(text)}
        labels, texts = list(said), list(said.values())
    if not isinstance(texts, list) or len(texts) > len(LETTERS) or (labels and len(labels) != len(texts)):
        raise Unusable("malformed row", "the choices are no list of texts")
    return list(map(str, labels or LETTERS[: len(texts)])), texts
