"""When has a teacher's writing collapsed? Numbers from before and after its alignment, and how far they may fall.

A teacher that learns too much of too few preferences writes less and less: a few kinds of requests, the same ones again
and again, or text that it would never have written before. The influence of what it writes can rise all the while,
because influence is measured on a student that has seen none of it. Knows numbers; nothing about models or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from montessori_pl.bounds import NonNegativeFloat, Share, checked

LOWER_IS_WORSE = {
    "parsed_rate": "share of usable completions",
    "token_entropy": "entropy of the words",
    "first_word_entropy": "entropy of the first words",
    "distinct_rate": "share of different texts",
}
HIGHER_IS_WORSE = {
    "divergence": "divergence from the teacher before alignment, in nats per token",
    "near_duplicate_rate": "share of near duplicates",
}


@checked
@dataclass(frozen=True, kw_only=True)
class CollapseLimits:
    """How far the aligned teacher's writing may move from that of the teacher before; null does not look."""

    parsed_rate: Share | None = 0.8
    """Share of completions that hold an instruction, or a response where responses are aligned, as a part of what it
    was."""
    token_entropy: Share | None = 0.8
    """Entropy of the words, as a part of what it was."""
    first_word_entropy: Share | None = 0.7
    """Entropy of the first words of what they hold, as a part of what it was."""
    distinct_rate: Share | None = 0.8
    """Share of different texts, as a part of what it was."""
    divergence: NonNegativeFloat | None = 0.3
    """By how much the divergence from the teacher before alignment may rise, in nats per token (KL, estimated on the
    writing). It rises when the writing narrows, and also when DPO makes both completions of its pairs unlikely and
    something malformed takes their place."""
    near_duplicate_rate: Share | None = 0.3
    """By how much the share of near duplicates among the completions may rise."""

    def crossed(self, before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
        """The limits that the writing has crossed, a clause each; what either side has not measured is not judged.

        Args:
            before: numbers of the teacher's writing before alignment, by the names of the limits.
            after: the same after it.
        """
        clauses = []
        for name, title in (LOWER_IS_WORSE | HIGHER_IS_WORSE).items():
            limit = getattr(self, name)
            if limit is None or name not in before or name not in after:
                continue
            falls = name in LOWER_IS_WORSE
            bound = before[name] * limit if falls else before[name] + limit
            within = after[name] >= bound if falls else after[name] <= bound
            if not within:  # neither is a number that is none
                clauses.append(f"{title} {after[name]:.2f}, before {before[name]:.2f}, limit {bound:.2f}")
        return clauses
