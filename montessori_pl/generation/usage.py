"""Tokens and money: what answers have used, and how many tokens a text probably has."""

import dataclasses
from collections.abc import Sequence

from montessori_pl.data.records import Message
from montessori_pl.generation.base import Price

BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 text that are taken for one token where nothing better is known."""
TOKENS_PER_TURN = 4
"""Tokens that are estimated to frame one turn of a conversation."""


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
    """Answers whose tokens the server did not count, so that they are estimated from their text."""

    def __add__(self, other: "Usage") -> "Usage":
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return Usage(**{name: mine[name] + theirs[name] for name in mine})

    def dollars(self, price: Price | None) -> float | None:
        """What it has cost; none where the price is not known."""
        return price.cost(self.num_prompt_tokens, self.num_tokens) if price is not None else None


def text_tokens(text: str) -> int:
    """Tokens of a text, estimated from its length."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a conversation, estimated from its length."""
    return sum(text_tokens(message["content"]) + TOKENS_PER_TURN for message in messages)
