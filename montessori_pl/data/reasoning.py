"""The reasoning that some models write in front of an answer: `<think>...</think>`."""

import re

REASONING_TAGS = OPENING, CLOSING = "<think>", "</think>"
"""What reasoning models write around their reasoning; part of a completion, also where it is a token of its own."""
_WHOLE = re.compile(rf"{OPENING}.*?{CLOSING}\s*", re.DOTALL)


def without_reasoning(text: str) -> str | None:
    """The text without its reasoning; none where the reasoning does not end.

    A generation prompt may have opened the reasoning, so that the text holds its end alone.
    """
    text = _WHOLE.sub("", text)
    text = text.rpartition(CLOSING)[2].lstrip() if CLOSING in text else text
    return None if OPENING in text else text
