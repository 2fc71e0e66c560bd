"""What requests will take before any is sent: tokens by the model's own tokenizer, money by the engine's price."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.estimates.estimate import Work, mean
from montessori_pl.generation.base import GenerationBackend, Price
from montessori_pl.generation.usage import prompt_tokens, text_tokens
from montessori_pl.models.loading import ModelSource, load_chat_template

SHORT: Sequence[Message] = ({"role": "user", "content": "?"},)
"""A conversation that is hardly longer than what the chat template puts around it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestEstimator:
    """Estimates the tokens and the price of requests to one model; no weights are loaded."""

    chat_template: ChatTemplate | None
    """How it writes conversations; none for a model of which only the endpoint has the tokenizer, whose tokens are
    estimated from the length of the text."""
    context: int | None
    """How many tokens a prompt and its completion may have; none where there is no limit, or none that is known."""
    price: Price | None = None
    """What its tokens cost."""
    engine: str = ""
    """Name of its engine; empty for the recipe's own."""
    budget_left: float | None = None
    """US dollars that its engine may still cost in this run."""

    @classmethod
    def of(cls, source: ModelSource, engine: GenerationBackend, name: str = "", requests: Path | None = None) -> Self:
        """The estimator for this model.

        Args:
            source: the model.
            engine: who runs it.
            name: of the engine; empty for the recipe's own.
            requests: the run's directory of answers that were paid for.

        Raises:
            ValueError: the engine could not load it.
        """
        left = engine.budget_left(requests / name) if requests is not None else None
        chat_template = known_chat_template(source)
        if chat_template is None:
            engine.check(source)
        context = engine.context(chat_template)
        return cls(chat_template=chat_template, context=context, price=engine.price, engine=name, budget_left=left)

    @classmethod
    def of_template(cls, chat_template: ChatTemplate | None) -> Self:
        """The estimator for a model that runs here, by its chat template."""
        return cls(chat_template=chat_template, context=chat_template.context if chat_template is not None else None)

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a conversation up to where the answer begins."""
        return (
            len(self.chat_template.prompt_ids(messages)) if self.chat_template is not None else prompt_tokens(messages)
        )

    def completion_tokens(self, text: str) -> int:
        """Tokens of an answer, its end token included."""
        return len(self.chat_template.response_ids(text)) if self.chat_template is not None else text_tokens(text) + 1

    def fits(self, messages: Sequence[Message], max_tokens: int) -> bool:
        """Whether the conversation and a completion of full length fit the model's context, where it is known."""
        return self.context is None or self.prompt_tokens(messages) + max_tokens <= self.context

    def check_room(self, conversations: Sequence[Sequence[Message]], setting: str, max_tokens: int) -> None:
        """Refuse a length of completions beside which no conversation has room.

        Args:
            conversations: some that requests will be like.
            setting: what says how long a completion may be, for a sentence.
            max_tokens: longest completion.

        Raises:
            ValueError: none of them has room.
        """
        if conversations and not any(self.fits(messages, max_tokens) for messages in conversations):
            shortest = min(self.prompt_tokens(messages) for messages in conversations)
            raise ValueError(
                f"no prompt has room: the shortest of {len(conversations)} takes {shortest} tokens, {setting} is "
                f"{max_tokens}, and the model has {self.context} positions; lower {setting}, or take a "
                "model with a longer context"
            )

    def shown(self, messages: Sequence[Message]) -> str:
        """The conversation as the model sees it, template and all; its last text where only the endpoint knows."""
        if self.chat_template is None:
            return messages[-1]["content"]
        text = self.chat_template.tokenizer.decode(
            self.chat_template.prompt_ids(messages), clean_up_tokenization_spaces=False
        )
        return str(text)

    def work(
        self,
        what: str,
        requests: int,
        max_requests: int,
        conversations: Sequence[Sequence[Message]],
        answers: Sequence[str] | None,
        max_tokens: int,
    ) -> Work:
        """So many requests.

        Args:
            what: what they ask for.
            requests: how many there will be.
            max_requests: how many there may be.
            conversations: some that they will be like.
            answers: some that the answers will be like; none where this is not known, and each answer is then taken
                to be as long as it may be.
            max_tokens: longest completion.
        """
        lengths = [self.prompt_tokens(messages) for messages in conversations]
        asked = mean(lengths)
        given = [min(self.completion_tokens(text), max_tokens) for text in answers] if answers is not None else []
        prompts, completions = round(requests * asked), round(requests * (mean(given) if given else max_tokens))
        most, max_prompts = max_requests * max_tokens, round(max_requests * asked)
        return Work(
            what=what,
            requests=requests,
            max_requests=max_requests,
            prompt_tokens=prompts,
            completion_tokens=completions,
            max_completion_tokens=most,
            longest=max(lengths, default=0) + max_tokens,
            cost=self.price.cost(prompts, completions) if self.price is not None else None,
            max_cost=self.price.cost(max_prompts, most) if self.price is not None else None,
            engine=self.engine,
            budget_left=self.budget_left,
        )


def known_chat_template(source: ModelSource) -> ChatTemplate | None:
    """How this model writes conversations; none for a model of which only the endpoint has the tokenizer."""
    try:
        return load_chat_template(source)
    except ValueError:  # an endpoint may call its model as it likes
        return None
