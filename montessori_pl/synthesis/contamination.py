"""Whether a text repeats what is held out: a reference or test item, as a whole or in a long enough run of words.

A student that was trained on the exam says nothing by passing it. Two rules:

    the same instruction    but for case and blanks, however short it is
    common n-grams          runs of 13 words, in instructions and responses alike; of scripts that write no blanks
                            between words, of 26 letters

GPT-3 (arXiv 2005.14165) looked for overlap with its benchmarks by 13-grams. A text of fewer words has none, so that
short tasks, which share words by nature, are compared as a whole only.

How much of a text is common counts relative to the shorter of both: a test question within a long response is common as
a whole, and so is an excerpt from a long test item. N-grams of more than ten held-out texts are their template, as an
answer format that all items spell out, and do not count.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from montessori_pl.bounds import PositiveInt, Share, checked
from montessori_pl.data.records import Example
from montessori_pl.synthesis.filters import Rejected
from montessori_pl.synthesis.near_duplicates import tokenize, width

NGRAM = 13
"""Words of an n-gram; two letters of a script without blanks count as a word."""
TEMPLATE = 10
"""N-grams that stand in more held-out texts than this are no content of any of them."""


@dataclass(frozen=True)
class Overlap:
    """A held-out text that has n-grams in common with another text."""

    name: str
    """Name under which the text is held out."""
    share: float
    """Common n-grams, as a share of the shorter text's, above 0 and at most 1."""
    passage: str
    """The first common n-gram."""


class ContaminationIndex:
    """Held-out texts, searchable for the one that has most in common with a text.

    Words are those of near duplicates, without case and punctuation; each different n-gram counts once.

    Args:
        texts: the held-out texts, each under a name.
        ngram: words of an n-gram.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], ngram: int = NGRAM) -> None:
        self.ngram = ngram
        self._names: list[str] = []
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for number, (name, text) in enumerate(texts):
            self._names.append(name)
            for passage in self._passages(text):
                holders[passage].append(number)
        self._templates = {passage for passage, numbers in holders.items() if len(numbers) > TEMPLATE}
        self._holders = {passage: numbers for passage, numbers in holders.items() if len(numbers) <= TEMPLATE}
        self._sizes = Counter(number for numbers in self._holders.values() for number in numbers)

    def find(self, text: str) -> Overlap | None:
        """The held-out text with the largest share in common, the first among equals; None when none has any."""
        passages = [passage for passage in self._passages(text) if passage not in self._templates]
        common = Counter(number for passage in passages for number in self._holders.get(passage, ()))
        if not common:
            return None
        shares = {number: count / min(len(passages), self._sizes[number]) for number, count in common.items()}
        best = min(shares, key=lambda number: (-shares[number], number))
        passage = next(passage for passage in passages if best in self._holders.get(passage, ()))
        return Overlap(self._names[best], shares[best], passage)

    def _passages(self, text: str) -> list[str]:
        """The different n-grams, in order."""
        words = tokenize(text)
        widths = [2] * len(words) if text.isascii() else [width(word) for word in words]
        return list(dict.fromkeys(" ".join(words[start:end]) for start, end in self._runs(widths)))

    def _runs(self, widths: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Where n-grams begin and end: from each word on as soon as enough is said, in halves of a word."""
        end = said = 0
        for start, own in enumerate(widths):
            while said < 2 * self.ngram:
                if end == len(widths):
                    return
                said += widths[end]
                end += 1
            yield start, end
            said -= own


@checked
@dataclass(frozen=True)
class Decontamination:
    """What a synthetic example may have in common with held-out ones."""

    ngram: PositiveInt = NGRAM
    """Words of an n-gram, or twice as many letters of a script without blanks; texts with fewer are compared as a whole
    only. Smaller numbers also find passages that are rephrased here and there, and more that is common by accident."""
    max_overlap: Share = 0.0
    """Largest share of the shorter text's n-grams that may stand in the other. 0 allows none; with 1 only the same
    instructions are dropped."""


class HeldOut:
    """Held-out examples, and the rules by which synthetic ones that repeat them are dropped.

    Args:
        sets: the examples that must not be trained on, by the name of their set.
        settings: how much may be common.
    """

    def __init__(self, sets: Mapping[str, Sequence[Example]], settings: Decontamination) -> None:
        self.settings = settings
        named = [(f"{name} example {example.id}", example) for name, examples in sets.items() for example in examples]
        # Of several turns the first is a request by itself; the later ones ("shorter, please") are nobody's own.
        self._instructions = {normalized(example.user_turns()[0]): name for name, example in reversed(named)}
        parts = ((f"the {part} of {name}", text) for name, example in named for part, text in _texts(example))
        self._index = ContaminationIndex(parts, settings.ngram)

    def check_instruction(self, instruction: str) -> None:
        """Pass silently, or say which held-out example the instruction repeats.

        Raises:
            Rejected: `held out`.
        """
        name = self._instructions.get(normalized(instruction))
        if name is not None:
            raise Rejected("held out", f"the same instruction as {name}")
        self._check_overlap(instruction)

    def check_response(self, response: str) -> None:
        """Pass silently, or say which held-out example the response repeats.

        That two instructions have the same response is no repetition, as long as it is short.

        Raises:
            Rejected: `held out`.
        """
        self._check_overlap(response)

    def _check_overlap(self, text: str) -> None:
        found = self._index.find(text)
        if found is not None and found.share > self.settings.max_overlap:
            raise Rejected(
                "held out",
                f"{found.share:.0%} of the {self.settings.ngram}-grams in common with {found.name}: {found.passage}",
            )


def _texts(example: Example) -> list[tuple[str, str]]:
    """All that is said in an example, with what it is."""
    history = [(f"turn {number}", turn.content) for number, turn in enumerate(example.history, start=1)]
    return [*history, ("instruction", example.instruction), ("response", example.response)]


def normalized(text: str) -> str:
    """Text as it is compared for equality: without case and with single blanks."""
    return " ".join(text.casefold().split())
