"""Which instructions and responses are kept: cheap rules that look at one text; only reasoning is taken out of it."""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from montessori_pl.bounds import NonNegativeInt, PositiveInt, Text, checked
from montessori_pl.data.reasoning import REASONING_TAGS, without_reasoning
from montessori_pl.data.text import is_blank

SELF_INSTRUCT_KEYWORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files"),
    *("map", "maps", "draw", "plot", "go to"),
)
"""Words of tasks that a language model cannot do by text alone, as Self-Instruct lists them."""


class Rejected(ValueError):
    """A text does not pass; `reason` is a short phrase that summaries count, `detail` says what exactly."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@checked
@dataclass(frozen=True)
class InstructionFilter:
    """The rules of Self-Instruct, made fit for long, multi-line and non-English instructions."""

    min_characters: NonNegativeInt = 6
    """Shortest instruction that is kept, in characters without the blanks at both ends."""
    max_characters: PositiveInt = 4000
    """Longest instruction that is kept, in characters without the blanks at both ends."""
    keywords: tuple[Text, ...] = SELF_INSTRUCT_KEYWORDS
    """Words or phrases that an instruction must not contain, in any case and only as whole words."""
    allow_leading_punctuation: bool = False
    """Whether an instruction may begin with a bullet, a colon or another mark that opens no sentence; quotation marks,
    brackets, the Spanish opening marks and currency signs are always allowed."""

    def __post_init__(self) -> None:
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters={self.min_characters} and max_characters={self.max_characters} keep nothing; "
                "give min_characters <= max_characters"
            )

    def check(self, instruction: str) -> None:
        """Pass silently, or say why the instruction is dropped.

        Raises:
            Rejected: `too short`, `too long`, `keyword` or `starts with punctuation`.
        """
        text = instruction.strip()
        length = 0 if is_blank(text) else len(text)
        if length < self.min_characters:
            raise Rejected("too short", f"{length} characters, at least {self.min_characters} are asked for")
        if len(text) > self.max_characters:
            raise Rejected("too long", f"{len(text)} characters, at most {self.max_characters} are allowed")
        if self._keyword and (found := self._keyword.search(text)):
            raise Rejected("keyword", found.group())
        if text and not self.allow_leading_punctuation and not _opens_a_sentence(text[0]):
            raise Rejected("starts with punctuation", text[0])

    @cached_property
    def _keyword(self) -> re.Pattern[str] | None:
        # A phrase may be broken over lines; and \b would never match beside a sign, as in "c++".
        phrases = [r"\s+".join(map(re.escape, keyword.split())) for keyword in self.keywords]
        return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE) if phrases else None


@checked
@dataclass(frozen=True)
class ResponseFilter:
    """Drops responses from which a student could learn nothing, or to stop too early."""

    min_characters: NonNegativeInt = 1
    """Shortest response that is kept, in characters without the blanks at both ends."""
    allow_unfinished: bool = True
    """Whether a response that was cut at the token limit is kept, as the original code does."""
    reasoning: Literal["remove", "refuse", "keep"] = "remove"
    """What is done with the reasoning of a teacher that thinks, `<think>...</think>`: `remove` keeps the answer behind
    it, `refuse` drops the response, `keep` lets a student learn the reasoning. The teacher's completion keeps it."""

    def kept(self, response: str, finished: bool) -> str:
        """The response as a student sees it.

        Args:
            response: what the teacher answered.
            finished: whether the teacher ended the answer itself (False: cut at the token limit).

        Raises:
            Rejected: `empty response`, `too short`, `unfinished response`, `reasoning` or `unfinished reasoning`.
        """
        if self.reasoning != "keep" and any(tag in response for tag in REASONING_TAGS):
            answer = without_reasoning(response)
            if self.reasoning == "refuse":
                raise Rejected("reasoning", f"{len(response) - len(answer or '')} of {len(response)} characters")
            if answer is None:
                raise Rejected("unfinished reasoning", f"no {REASONING_TAGS[1]} in {len(response)} characters")
            response = answer
        length = 0 if is_blank(response) else len(response.strip())
        if length < self.min_characters:
            reason = "too short" if length else "empty response"
            raise Rejected(reason, f"{length} characters, at least {self.min_characters} are asked for")
        if not (finished or self.allow_unfinished):
            raise Rejected("unfinished response", f"cut after {len(response)} characters")
        return response


def _opens_a_sentence(character: str) -> bool:
    # Letters and digits of every script, brackets (Ps), quotation marks (Pi, and Pf: »so« is German), currencies (Sc).
    category = unicodedata.category(character)
    return category[0] not in "PS" or category in ("Ps", "Pi", "Pf", "Sc") or character in "\"'`¿¡"
