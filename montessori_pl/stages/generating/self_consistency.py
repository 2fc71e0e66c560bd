"""Self-consistency: what a teacher answers differently each time it is asked teaches a student nothing."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from montessori_pl.bounds import PositiveInt, PositiveShare, checked
from montessori_pl.evaluation.answers import answer_key
from montessori_pl.generation.base import Completion, Sampling
from montessori_pl.synthesis.filters import Rejected

INCONSISTENT = "inconsistent answers"
"""The reason of a rejection: too few of the answers agree."""


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfConsistency:
    """Keeps an instruction whose answers agree, with an answer that most of them share.

    The vote is self-consistency (Wang et al., arXiv 2203.11171); CoT-Self-Instruct (arXiv 2507.23751) filters synthetic
    instructions by such votes. It looks neither at the student nor at a reference set: it drops instructions that are
    garbled, that have no answer, or that the teacher cannot answer. An answer that is wrong each time passes. Answers
    to open requests (a letter, a story) never agree: leave it off there.
    """

    samples: PositiveInt = 5
    """Answers to each instruction, the one of `response_sampling` included."""
    min_agreement: PositiveShare = 0.5
    """Smallest part of them that must agree."""
    sampling: Sampling | None = None
    """How the others are drawn; null draws them like the first. A higher temperature asks for more certainty."""
    answers: Literal["final", "text"] = "final"
    """What is compared: the `final` answer, which stands behind `####`, in a `\\boxed{}`, or last of all, and is
    compared as a number where it is one; or the whole `text`, without regard to case and blanks."""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples: one answer agrees with itself, found {self.samples}; ask for 2 or more")

    def others(self, response_sampling: Sampling) -> Sampling:
        """How all answers but the first are drawn.

        Raises:
            ValueError: at temperature 0, where they are the same whatever the teacher knows.
        """
        drawn = self.sampling or response_sampling
        if drawn.temperature == 0:
            raise ValueError(
                "self_consistency: answers that are drawn at temperature 0 are all the same; set a temperature above 0 "
                f"in {'its sampling' if self.sampling is not None else 'response_sampling, or a sampling of its own'}"
            )
        return drawn

    def vote(self, answers: Sequence[Completion]) -> Completion:
        """The first of the answers that most others agree with.

        An answer that was cut, or that is nothing but blanks or reasoning, agrees with none.

        Args:
            answers: all answers to an instruction, as many as `samples`.

        Raises:
            Rejected: too few agree.
        """
        keys = [answer_key(one.text, self.answers == "final") if one.finished else "" for one in answers]
        counts = Counter(key for key in keys if key)
        if not counts:
            raise Rejected(INCONSISTENT, f"none of {len(answers)} answers is finished and more than blanks")
        key, number = counts.most_common(1)[0]
        if number / len(answers) < self.min_agreement:
            different = ", ".join(repr(text[:40]) for text, _ in counts.most_common(3))
            raise Rejected(
                INCONSISTENT,
                f"{number} of {len(answers)} agree, and min_agreement is {self.min_agreement:g}: {different}",
            )
        return answers[keys.index(key)]
