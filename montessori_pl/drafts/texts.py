"""A look at the files that a recipe is to be written for: rows, lengths in tokens, and which filters they pass."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Example
from montessori_pl.estimates.estimate import evenly
from montessori_pl.synthesis.filters import InstructionFilter, Rejected

MAX_REFERENCES = 256
"""Rows of the reference set that influence is measured on at most; the paper's code takes as many."""
MIN_TO_SPLIT = 64
"""Rows of the reference set from which a part is held out as a test set, where none is given."""
MEASURED = 1000
"""So many texts are measured in place of all, where there are more."""
FEW = 0.02
"""Share of the seed tasks that a filter may reject before it is changed."""
SHORT_ANSWER = 12
"""Tokens of an answer that can be compared word for word."""


@dataclass(frozen=True)
class Lengths:
    """Of some texts."""

    median: int
    """Half of them are at most as long."""
    long: int
    """95 of 100 are at most as long, or more."""

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Lengths":
        """Of these lengths, of which there is one at least."""
        ordered = sorted(numbers)
        return cls(round(statistics.median(ordered)), ordered[-(-len(ordered) * 95 // 100) - 1])


@dataclass(frozen=True)
class Texts:
    """The files, as a recipe is to read them."""

    seed_tasks: str
    """The source of the seed tasks."""
    reference: str
    """That of the reference set, cut where it is long."""
    test: str | None
    """That of the test set; none where there are too few rows to hold any out."""
    split: bool
    """Whether the test set is a part of the file of the reference set."""
    num_seed_tasks: int
    """Rows that can be read."""
    num_references: int
    """The same."""
    examples: Sequence[Example]
    """The reference set."""
    seeds: Sequence[Example]
    """The seed tasks."""

    def instructions(self, tokens: Callable[[str], int]) -> Lengths:
        """Lengths of the seed tasks' instructions."""
        return Lengths.of([tokens(one.instruction) for one in evenly(self.seeds, min(MEASURED, len(self.seeds)))])

    def responses(self, tokens: Callable[[str], int]) -> Lengths:
        """Lengths of the reference set's responses."""
        return Lengths.of([tokens(one.response) for one in self.examples])

    def filter_settings(self) -> dict[str, object]:
        """Settings of the instruction filter without which too many seed tasks would be rejected."""
        reasons = Counter(reason for one in self.seeds if (reason := _rejected(one.instruction)) is not None)
        lengths = [len(one.instruction.strip()) for one in self.seeds]
        changes: dict[str, dict[str, object]] = {
            "keyword": {"keywords": []},
            "too short": {"min_characters": min(lengths)},
            "too long": {"max_characters": 2 * max(lengths)},
            "starts with punctuation": {"allow_leading_punctuation": True},
        }
        many = [reason for reason in changes if reasons[reason] > FEW * len(self.seeds)]
        return {name: value for reason in many for name, value in changes[reason].items()}

    def words(self) -> int:
        """Median words of a seed task."""
        return round(statistics.median(len(one.instruction.split()) for one in self.seeds))


def look_at_texts(seed_tasks: str, reference: str, test: str | None) -> Texts:
    """Read the files.

    Raises:
        ValueError: one of them cannot be read, or reference and test set share an instruction.
    """
    data = DataSources(seed_tasks=seed_tasks, reference=reference, test=test)
    seeds, references = data.read("seed_tasks"), data.read("reference")
    count, whole, split = len(references), "[" not in reference, False
    kept = min(count, MAX_REFERENCES)
    if test is None and whole and count >= MIN_TO_SPLIT:
        kept, split = min(count // 2, MAX_REFERENCES), True
        test = f"{reference}[{kept}:]"
    if whole and kept < count:
        reference = f"{reference}[:{kept}]"
    found = DataSources(seed_tasks=seed_tasks, reference=reference, test=test)
    found.check_disjoint()
    references = found.read("reference")
    return Texts(seed_tasks, reference, test, split, len(seeds), len(references), references, seeds)


def _rejected(instruction: str) -> str | None:
    try:
        InstructionFilter().check(instruction)
    except Rejected as rejected:
        return rejected.reason
    return None
