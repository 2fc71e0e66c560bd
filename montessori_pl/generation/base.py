"""What every generation engine offers: load a model, sample completions of conversations, give the memory back."""

import bisect
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from lightning.pytorch.utilities import rank_zero_only

from montessori_pl.bounds import Bounds, Checked, Count, NonNegativeFloat, PositiveShare, checked
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message, SampledTokens
from montessori_pl.models.loading import ModelSource


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

    temperature: Annotated[float, Bounds(ge=0, le=100)] = 1.0
    """Divides the logits; 0 takes the most likely token each time."""
    top_p: PositiveShare = 0.9
    """Keeps the smallest set of tokens whose probabilities reach this sum."""
    presence_penalty: Annotated[float, Bounds(ge=-2, le=2)] = 0.0
    """Subtracted from the logits of every token that the completion already holds; the paper samples with 1."""
    max_tokens: Count = 1024
    """Longest completion, in tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to be sampled."""

    messages: Sequence[Message]
    """The conversation up to the assistant's turn; other turns may be open too: see `ChatTemplate.open_turn`."""
    seed: int
    """All of the completion's randomness: the same seed draws the same completion, whatever stands beside it."""
    stop: str = ""
    """The completion ends with the token that completes this text, which belongs to it; empty for no such text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """What was sampled."""

    text: str
    """The completion without its end token."""
    finished: bool
    """Whether the model ended it (False: cut at the token limit, or at the request's `stop`)."""
    num_tokens: int
    """Sampled tokens, the end token included."""
    num_prompt_tokens: int = 0
    """Tokens of the conversation that was answered; 0 where the engine does not count them."""
    tokens: SampledTokens | None = None
    """The tokens themselves; none where the tokenizer finds them in the text, or where the engine has only text."""

    def tokens_of(self, text: str) -> SampledTokens | None:
        """The tokens, for what was made of the completion: they stand for its text and for no other."""
        return self.tokens if text == self.text else None


def decoded(chat_template: ChatTemplate, ids: Sequence[int], num_prompt_tokens: int, request: Request) -> Completion:
    """The completion that these sampled tokens are, up to its end token or to where the request stops.

    Args:
        chat_template: of the model.
        ids: what was sampled; what follows the end is left out.
        num_prompt_tokens: tokens of the prompt.
        request: what was asked.
    """
    turn = chat_template.open_turn(request.messages)
    text, finished = chat_template.decode(ids, turn)
    if request.stop and request.stop in text:
        lengths = range(1, len(ids) + 1)
        stops = bisect.bisect_left(lengths, True, key=lambda n: request.stop in chat_template.decode(ids[:n], turn)[0])
        ids = ids[: lengths[stops]]
        text, finished = chat_template.decode(ids, turn)
    num_tokens = ids.index(turn.end_id) + 1 if finished else len(ids)
    return Completion(
        text=text,
        finished=finished,
        num_tokens=num_tokens,
        num_prompt_tokens=num_prompt_tokens,
        tokens=chat_template.sampled_tokens(ids[:num_tokens], turn),
    )


@checked
@dataclasses.dataclass(frozen=True)
class Price:
    """What an engine's tokens cost."""

    input: NonNegativeFloat
    """US dollars for a million prompt tokens; discounts for cached prompts are not counted."""
    output: NonNegativeFloat
    """US dollars for a million sampled tokens."""

    def cost(self, num_prompt_tokens: int, num_tokens: int) -> float:
        """US dollars for so many prompt tokens and sampled tokens."""
        return (num_prompt_tokens * self.input + num_tokens * self.output) / 1_000_000


class GenerationBackend(Checked, ABC):
    """An engine that samples completions from a causal language model.

    Implement `load`, `fits`, `generate` and `close`. Completions must come back in the order of the requests, and must
    depend on their request alone: a resumed run samples in other batches than an uninterrupted one.
    """

    fingerprint_excludes: ClassVar[tuple[str, ...]] = ()
    """Settings that change the speed and not the text; they may be changed in the middle of a run."""
    loads_weights: ClassVar[bool] = True
    """Whether the engine can run what a stage has trained; an endpoint answers with what it has."""
    continues_turns: ClassVar[bool] = False
    """Whether the engine takes requests in which another turn is open than the assistant's, or that stop at a text."""
    one_per_run: ClassVar[bool] = True
    """Whether one process asks for all where a run has several: what they would share, as a journal of paid answers, a
    budget or the first GPU, has room for one. False where each may have an engine of its own on its own device."""
    price: Price | None = None
    """What tokens cost, where the engine's settings say so."""

    def check(self, source: ModelSource) -> None:
        """Look, before anything runs, at whether this model could be loaded; by default nothing is looked at.

        Raises:
            ValueError: it could not.
        """
        return

    def check_environment(self, source: ModelSource) -> None:
        """Look, before a run begins, for what this model takes here: packages, keys, devices; by default nothing.

        A dry run, which may be made elsewhere, does without.

        Raises:
            ValueError: something is missing.
        """
        return

    def set_cache_dir(self, directory: Path) -> None:
        """Where the engine may keep answers that must not be paid for twice; called before `load`, or not at all.

        The directory belongs to the whole run. By default nothing is kept.
        """
        return

    def budget_left(self, directory: Path) -> float | None:
        """US dollars that may still be spent, beside answers that are kept in this directory; by default no limit.

        Nothing is written.
        """
        return None

    def context(self, chat_template: ChatTemplate | None) -> int | None:
        """How many tokens a prompt and its completion may have, as far as it is known before the model is loaded.

        Args:
            chat_template: of the model, where it can be read here.

        Returns:
            by default the model's positions; none where there is no limit, or none that is known.
        """
        return chat_template.context if chat_template is not None else None

    @abstractmethod
    def load(self, source: ModelSource) -> None:
        """Make this model the one that `generate` samples from, in the place of an earlier one."""

    @abstractmethod
    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        """Whether the conversation and a completion of full length fit the model's context."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in order."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back; `load` may follow."""

    def refuse_other_processes(self) -> None:
        """Let the first process of a run alone go on, for engines of which there is one.

        Raises:
            ValueError: this is another one.
        """
        if getattr(rank_zero_only, "rank", 0) != 0:
            raise ValueError(
                f"{type(self).__name__} is asked by the first of several processes alone; a signal that asks it must "
                "have distributed = False"
            )
