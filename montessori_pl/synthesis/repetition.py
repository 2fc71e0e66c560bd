"""Do a teacher's responses depend on what it is asked? A degenerate teacher says one text, or a few, to everything.

Such a text can please a judge, and a student learns it easily. How varied responses should be depends on the prompts:
two different ones are right where the answer is yes or no. A teacher is therefore compared with the others that answer
the same prompts, in two ways: by how often it repeats itself, and by whether what it repeats goes with the prompt. What
a good classifier says of a prompt shares more words with the other teachers' responses to this prompt than with those
to other prompts; what a degenerate teacher says does not. Knows texts; nothing about models or files.
"""

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from montessori_pl.data.records import Example
from montessori_pl.synthesis.near_duplicates import NearDuplicateIndex, tokenize

SIMILARITY = 0.8
"""ROUGE-L F1 above which two responses count as one text: another number or name in its midst makes no other of it."""
FEWEST = 20
"""Fewest prompts by which a teacher is judged."""
MOST = 200
"""So many prompts are looked at, spread evenly over all."""
OPENING = 64
"""Words of a response by which it is told whether it repeats another: enough, and long ones take long to compare."""
EXCESS = 0.3
"""A teacher stands out that repeats itself, or its most common text, by so much more than the median of the others."""
NEARLY_ALL = 0.9
"""A text that is given to more than this share of the prompts is worth a warning, whatever others do."""
STANDARD_ERRORS = 2.0
"""How far above zero the dependence on the prompt must lie."""
UNNAMED = "a teacher without a name"
"""Who wrote responses of which this is not known."""
SHOWN = 60
"""Characters of a text that are shown."""


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """How often a teacher repeats itself; near duplicates count as one text."""

    prompts: int
    """Prompts that were looked at, with one response each."""
    distinct_rate: float
    """Different texts per response."""
    repeated_rate: float
    """Share of the responses whose text is given to another prompt too."""
    most_common_rate: float
    """Share of the most common text."""
    most_common: str
    """That text, where it occurs first."""

    def numbers(self) -> dict[str, float]:
        """The shares, for metrics."""
        return {name: getattr(self, name) for name in ("distinct_rate", "repeated_rate", "most_common_rate")}

    def shown(self) -> str:
        """The most common text in a sentence, its beginning where it is long."""
        text = " ".join(self.most_common.split())
        return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


class TeacherRepetition:
    """The repetition of several teachers who answered the same prompts, all or some of them.

    Args:
        responses: by teacher and prompt, one response each.
    """

    def __init__(self, responses: Mapping[str, Mapping[Any, str]]) -> None:
        chosen = set(_evenly(list(dict.fromkeys(prompt for one in responses.values() for prompt in one))))
        self._texts: dict[str, dict[Hashable, str]] = {
            name: {prompt: text for prompt, text in one.items() if prompt in chosen} for name, one in responses.items()
        }
        self._classes = {name: _classes(list(one.values())) for name, one in self._texts.items()}
        self.teachers = {
            name: _repetition(list(one.values()), self._classes[name]) for name, one in self._texts.items() if one
        }
        """By name; without teachers who answered none of the prompts."""

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "TeacherRepetition":
        """Of examples by who wrote their responses; of several responses of a teacher to a prompt the first counts."""
        responses: dict[str, dict[tuple[str, str], str]] = {}
        for example in examples:
            if example.response:
                by_prompt = responses.setdefault(example.teacher or UNNAMED, {})
                by_prompt.setdefault((example.system, "\n".join(example.user_turns())), example.response)
        in_order = {name: dict(sorted(by_prompt.items())) for name, by_prompt in sorted(responses.items())}
        return cls(in_order)

    def metrics(self) -> dict[str, dict[str, float]]:
        """The shares of each teacher."""
        return {name: one.numbers() for name, one in self.teachers.items()}

    def warnings(self) -> list[str]:
        """A sentence for each teacher that gives one text to nearly all prompts."""
        return [
            f"{name} gives the same text to {one.most_common_rate:.0%} of {one.prompts} prompts ({one.shown()}); look "
            "at its responses, unless this is the right one"
            for name, one in self.teachers.items()
            if one.prompts >= FEWEST and one.most_common_rate > NEARLY_ALL
        ]

    def outliers(self) -> list[str]:
        """The teachers who repeat themselves far more than the others, and whose repeated texts ignore the prompt."""
        return [name for name in self.teachers if self._excessive(name) and not self._depends_on_prompt(name)]

    def clause(self, name: str) -> str:
        """What is to be said of an outlier."""
        one = self.teachers[name]
        return (
            f"{name} repeats itself: {one.repeated_rate:.0%} of its responses to {one.prompts} prompts are given to "
            f"other prompts too ({self._others(name, 'repeated_rate'):.0%} of those of the other teachers, in the "
            f"median), the most common one to {one.most_common_rate:.0%} ({one.shown()}), and they do not depend on "
            "the prompt"
        )

    def _others(self, name: str, number: str) -> float:
        """The median of a number over the other teachers."""
        return statistics.median(getattr(one, number) for other, one in self.teachers.items() if other != name)

    def _excessive(self, name: str) -> bool:
        one = self.teachers[name]
        if len(self.teachers) < 2 or one.prompts < FEWEST:
            return False
        return any(
            getattr(one, number) - self._others(name, number) > EXCESS
            for number in ("repeated_rate", "most_common_rate")
        )

    def _depends_on_prompt(self, name: str) -> bool:
        """Whether repeated responses share more words with others' responses to the same prompt than to other prompts.

        Only the prompts to which the teacher repeats itself count. For a single text the mean over these is exactly
        zero, whatever the others say.
        """
        counts = Counter(self._classes[name])
        repeated = {
            prompt: set(tokenize(text))
            for (prompt, text), number in zip(self._texts[name].items(), self._classes[name], strict=True)
            if counts[number] > 1
        }
        found: dict[Hashable, list[float]] = {}
        for other, texts in self._texts.items():
            if other != name:
                for prompt, more in _surplus(repeated, texts).items():
                    found.setdefault(prompt, []).append(more)
        values = [statistics.fmean(one) for one in found.values()]
        if len(values) < 2:
            return False
        standard_error = statistics.stdev(values) / math.sqrt(len(values))
        return statistics.fmean(values) > STANDARD_ERRORS * standard_error + 1e-9


def _repetition(texts: Sequence[str], classes: Sequence[int]) -> Repetition:
    counts = Counter(classes)
    number, most = counts.most_common(1)[0]
    return Repetition(
        prompts=len(texts),
        distinct_rate=len(counts) / len(texts),
        repeated_rate=sum(count for count in counts.values() if count > 1) / len(texts),
        most_common_rate=most / len(texts),
        most_common=texts[classes.index(number)],
    )


def _classes(texts: Sequence[str]) -> list[int]:
    """For each text the place of the first one that it repeats, or its own."""
    index = NearDuplicateIndex(SIMILARITY)
    classes = []
    for place, text in enumerate(" ".join(tokenize(text)[:OPENING]) or text for text in texts):
        match = index.find(text)
        if match is None:
            index.add(str(place), text)
        classes.append(place if match is None else int(match.id))
    return classes


def _surplus(words: Mapping[Hashable, Set[str]], texts: Mapping[Hashable, str]) -> dict[Hashable, float]:
    """By prompt, the share of the words found in another teacher's response, less its mean over that one's responses.

    Args:
        words: of a teacher's responses, by prompt.
        texts: another teacher's responses, by prompt.
    """
    others = {prompt: set(tokenize(texts[prompt])) for prompt in words if prompt in texts}
    holders = Counter(word for one in others.values() for word in one)
    return {
        prompt: sum((word in other) - holders[word] / len(others) for word in words[prompt])
        / max(1, len(words[prompt]))
        for prompt, other in others.items()
    }


def _evenly(prompts: Sequence[Hashable]) -> Iterable[Hashable]:
    size = min(len(prompts), MOST)
    return (prompts[number * len(prompts) // size] for number in range(size))
