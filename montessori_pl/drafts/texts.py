"""A look at the files that a recipe is to be written for: rows, lengths in tokens, and which filters they pass."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.files import is_cut
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
    """That of the test set, if there is one."""
    split: bool
    """Whether the test set is a part of the file of the reference set."""
    why_no_test: str
    """Why no part of that file is one, where there is none."""
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
        ValueError: one of them cannot be read, or a reference and a test set that are given share an instruction.
    """
    data = DataSources(seed_tasks=seed_tasks, reference=reference, test=test)
    seeds, references = data.read("seed_tasks"), data.read("reference")
    count, whole, split, why_not = len(references), not is_cut(reference), False, ""
    kept, half = min(count, MAX_REFERENCES), min(count // 2, MAX_REFERENCES)
    if test is not None:
        data.check_disjoint()
    elif not whole or count < MIN_TO_SPLIT:
        why_not = "too few rows to hold out"
    elif _disjoint(seed_tasks, reference, half):
        split, kept, test = True, half, f"{reference}[{half}:]"
    else:
        why_not = "rows of the reference set are alike, so that none is held out; give one with --test"
    if whole and kept < count:
        reference, references = f"{reference}[:{kept}]", references[:kept]
    return Texts(seed_tasks, reference, test, split, why_not, len(seeds), len(references), references, seeds)


def _disjoint(seed_tasks: str, reference: str, kept: int) -> bool:
    """Whether the first rows of a file share no instruction with the others."""
    halves = DataSources(seed_tasks=seed_tasks, reference=f"{reference}[:{kept}]", test=f"{reference}[{kept}:]")
    try:
        halves.check_disjoint()
    except ValueError:
        return False
    return True


def _rejected(instruction: str) -> str | None:
    try:
        InstructionFilter().check(instruction)
    except Rejected as rejected:
        return rejected.reason
    return None
