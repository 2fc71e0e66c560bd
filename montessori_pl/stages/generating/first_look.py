"""What the first batches of a stage say of its teacher: most mistakes in how it is asked show there."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Self, TypeVar

from montessori_pl.data.records import Example, Rejection, read_lines
from montessori_pl.stages.base import EXAMPLES, REJECTIONS
from montessori_pl.synthesis.base import UNFINISHED

R = TypeVar("R", Example, Rejection)

FEWEST = 64
"""Completions that are looked at, at least: of fewer, a teacher that writes well may fail most by chance."""
NOT_SAID = ("no instruction tag", "empty instruction", UNFINISHED, "unfinished reasoning")
"""Reasons of rejections that speak of how the teacher is asked, and not of what it writes."""
SURPLUS = "surplus"
"""The reason of what passed and was one too many."""


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """How much of the first completions was accepted, and why not more."""

    batches: int
    """Batches that they fill."""
    candidates: int
    """How many they are."""
    reasons: Counter[str]
    """How often each reason was given for a rejection."""
    example: str
    """The instruction of one that was accepted, or else a text that was not."""

    @classmethod
    def of(cls, commits: Sequence[Mapping[str, int]], directory: Path) -> Self | None:
        """The look at what lies in a stage's directory; none as long as there are too few completions."""
        counts = list(accumulate(commit["candidates"] for commit in commits))
        batches = next((number for number, count in enumerate(counts, start=1) if count >= FEWEST), None)
        if batches is None:
            return None
        rejections = list(_first(batches, directory / REJECTIONS, Rejection))
        examples = list(_first(batches, directory / EXAMPLES, Example))
        return cls(
            batches=batches,
            candidates=counts[batches - 1],
            reasons=Counter(one.reason for one in rejections if one.reason != SURPLUS),
            example=examples[0].instruction if examples else rejections[0].text,
        )

    @property
    def acceptance(self) -> float:
        """The part that was accepted."""
        return 1 - self.reasons.total() / self.candidates

    def sentence(self) -> str:
        """In a line: the yield, the two commonest reasons, and a text."""
        accepted = self.candidates - self.reasons.total()
        common = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common(2))
        text = self.example if len(self.example) <= 120 else f"{self.example[:120]}..."
        return (
            f"of the first {self.candidates} completions {accepted} were accepted ({self.acceptance:.0%})"
            f"{f', most others rejected: {common}' if common else ''}; for example {text!r}"
        )

    def advice(self) -> str:
        """What to try where too little was accepted."""
        if self.reasons.most_common(1)[0][0] in NOT_SAID:
            change = (
                "try another way of asking: SelfInstruct with answer_format prefilled_tags or whole_completion for a "
                "weak teacher, numbered_list for a base model, or Magpie"
            )
        else:
            change = "mend the request, the sampling or the filters"
        return f"{change}; --preview 8 shows what comes of it, and another --run begins anew"


def _first(batches: int, path: Path, kind: type[R]) -> Iterator[R]:
    """The records of the first batches; the rest of the file, which may be long, is not read."""
    return takewhile(lambda one: one.batch < batches, map(kind.from_dict, read_lines(path)))
