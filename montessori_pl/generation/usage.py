"""Tokens: how many answers have used, and how many a text probably has."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from montessori_pl.data.records import Message

BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 text that are taken for one token where nothing better is known."""
TOKENS_PER_TURN = 4
"""Tokens that are estimated to frame one turn of a conversation."""
LONGEST_FRAME = 2**14
"""Tokens that a server may put around a conversation at most: a system prompt of its own, dates, tools."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What a number of answers has used."""

    num_answers: int = 0
    """Answers that were billed, those that could not be used included."""
    num_prompt_tokens: int = 0
    """Tokens of the conversations that were answered."""
    num_tokens: int = 0
    """Sampled tokens."""
    num_estimated: int = 0
    """Answers whose tokens the server did not count, or not as there can be, so that they are estimated."""
    num_refused: int = 0
    """Requests that were refused beside others that were answered."""

    def __add__(self, other: "Usage") -> "Usage":
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return Usage(**{name: mine[name] + theirs[name] for name in mine})


def text_tokens(text: str) -> int:
    """Tokens of a text, estimated from its length."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a conversation, estimated from its length."""
    return sum(text_tokens(message["content"]) + TOKENS_PER_TURN for message in messages)


def most_tokens(body: Mapping[str, Any]) -> int:
    """The most tokens that the conversation of a request may have: one for each byte, and what a server adds."""
    return sum(len(message["content"].encode()) for message in body["messages"]) + LONGEST_FRAME


def held_within(count: Any, least: int, most: int, estimate: int) -> tuple[int, bool]:
    """A foreign count of tokens, held within what is possible, and whether it was.

    Args:
        count: what was counted, whatever it is.
        least: the smallest possible number.
        most: the largest possible number, which stands for a larger one.
        estimate: what stands for a smaller one, and for what is no whole number.
    """
    if isinstance(count, bool) or not isinstance(count, int | float) or count != count or count < least:
        return estimate, False
    if count > most:
        return most, False
    return (int(count), True) if count == int(count) else (estimate, False)
