"""Tokens and money: what answers have used, and what requests will probably use."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What requests will probably use."""

    num_requests: int
    """Requests that have not been answered yet; the others cost nothing."""
    num_prompt_tokens: int
    """Tokens of their conversations, estimated from the text."""
    num_tokens: int
    """Sampled tokens, if the completions are as long as the earlier ones on average; otherwise `max_tokens`."""
    max_tokens: int
    """Sampled tokens, if each completion is as long as it may be."""
    dollars: float | None
    """Cost with `num_tokens`; none where the price is not known."""
    max_dollars: float | None
    """Cost with `max_tokens`."""


def estimate(conversations: Sequence[Sequence[Message]], max_tokens: int, used: Usage, price: Price | None) -> Estimate:
    """Foresee the use of these conversations.

    Args:
        conversations: those that are still to be answered.
        max_tokens: longest completion.
        used: by the answers so far.
        price: of the tokens, where it is known.
    """
    number = len(conversations)
    prompt = sum(map(prompt_tokens, conversations))
    mean = used.num_tokens / used.num_answers if used.num_answers else max_tokens
    expected, most = round(number * min(mean, max_tokens)), number * max_tokens
    return Estimate(
        num_requests=number,
        num_prompt_tokens=prompt,
        num_tokens=expected,
        max_tokens=most,
        dollars=price.cost(prompt, expected) if price is not None else None,
        max_dollars=price.cost(prompt, most) if price is not None else None,
    )


def text_tokens(text: str) -> int:
    """Tokens of a text, estimated from its length."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a conversation, estimated from its length."""
    return sum(text_tokens(message["content"]) + TOKENS_PER_TURN for message in messages)
