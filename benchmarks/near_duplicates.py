"""The near-duplicate filter, compared: does it decide as `rouge_score` does, and in how much of the time?

    python benchmarks/near_duplicates.py                                        # minutes on two cores
    python benchmarks/near_duplicates.py --source FILE.jsonl OTHER.jsonl        # and the instructions of these files

New texts are looked up among kept ones at a ROUGE-L F1 of 0.7, in one process and one run, by

    pool        what the original does: a new pool of four processes for each new text, and `rouge_score` on all kept
    loop        a simple loop done well: texts tokenized once, and `rapidfuzz` on all kept
    index       `NearDuplicateIndex`, one process
    as it goes  the index, to which each text is added that repeats none, as in synthesis

Time is wall time, because the pool's is spent in four processes, and that of the index holds its building. In each
round the methods come in random order; a *ratio* is the median over rounds of the ratios within a round. The pool looks
up a random sample, of which each round takes a part, and the loop twenty times as many.

Decisions are compared, and a different one is an error: the pool's with those of the index, and where the index finds a
text, both F1 to the last bit; all others with a reference's, which knows `rouge_score`'s tokens and compares everything
with everything.

Half of a source's texts are kept, the others are looked up. Texts that are not ASCII are left out: `rouge_score` drops
their letters, and the index does not.
"""

import argparse
import itertools
import multiprocessing
import operator
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist, extract_iter
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.data.formats import read_examples
from montessori_pl.synthesis.near_duplicates import NearDuplicateIndex

THRESHOLD = 0.7
METHODS = ("pool", "loop", "index", "as it goes")
PROCESSES = 4
"""Of the original's pool."""
SHARE_OF_EDITS = 0.25
"""Among the new texts, those that are made from a kept one."""
OPENINGS = (
    *("Write a short story about", "Explain why", "Explain to a child how", "List three", "What's the best way to"),
    *("Give me an example of", "Summarize the following paragraph:", "Translate into French:", "Compare", "Suggest"),
    *("Write a function that", "Is it true that", "Rewrite this sentence:", "Who", "How many", "Describe in detail"),
)
VOCABULARY = 20_000
"""Made-up words; the frequency of each falls with its rank."""


@dataclass(frozen=True)
class Texts:
    """Kept texts, and new ones that are looked up among them."""

    name: str
    """What they are."""
    kept: list[str]
    """Texts in the index."""
    new: list[str]
    """Texts that may repeat one."""


def written(rng: random.Random, num_kept: int, num_new: int) -> Texts:
    """Made-up instructions: frequent openings and, behind them, about 15 words with the frequencies of Zipf's law."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(VOCABULARY)]
    weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(VOCABULARY)))

    def instruction() -> str:
        length = max(3, round(rng.lognormvariate(2.7, 0.6)))
        chosen = rng.choices(words, cum_weights=weights, k=length)
        return f"{rng.choice(OPENINGS)} {', '.join((' '.join(chosen[:9]), *chosen[9:10]))} {' '.join(chosen[10:])}."

    return with_edits(rng, "written", [instruction() for _ in range(num_kept + num_new)], num_kept)


def classroom(rng: random.Random, num_kept: int, num_new: int) -> Texts:
    """Tasks of the classroom, no two of them equal: three to eight words of a small vocabulary."""
    drawn: dict[str, None] = {}
    while len(drawn) < num_kept + num_new:
        drawn[sample_task(rng, rng.choice(FAMILIES))[0]] = None
    texts = list(drawn)
    return Texts("classroom", texts[:num_kept], texts[num_kept:])


def of_files(rng: random.Random, sources: Sequence[str], num_kept: int, num_new: int) -> Texts:
    """The different instructions of these files, shuffled: half are kept, the others are looked up."""
    found = list(dict.fromkeys(example.instruction for source in sources for example in read_examples(source)))
    texts = [text for text in found if text.isascii()]
    print(f"source: {len(found)} different instructions, {len(found) - len(texts)} of them left out (not ASCII)")
    rng.shuffle(texts)
    num_kept = min(num_kept, len(texts) // 2)
    return with_edits(rng, "source", texts[: num_kept + num_new], num_kept)


def with_edits(rng: random.Random, name: str, texts: list[str], num_kept: int) -> Texts:
    """Keep the first texts; some of the others give way to a kept one in which words were changed."""
    kept, new = texts[:num_kept], texts[num_kept:]
    return Texts(name, kept, [edited(rng, kept) if rng.random() < SHARE_OF_EDITS else text for text in new])


def edited(rng: random.Random, texts: Sequence[str]) -> str:
    """One of the texts, a share of its words changed; the shares are such that many similarities are close to 0.7."""
    share = rng.uniform(0, 0.5)

    def change(word: str) -> tuple[str, ...]:
        if rng.random() >= share:
            return (word,)
        other = rng.choice(rng.choice(texts).split())
        return rng.choice(((), (other,), (word, other)))

    text = rng.choice(texts)
    return " ".join(word for old in text.split() for word in change(old)) or text


def f1(precision: float, recall: float) -> float:
    """As `rouge_score` computes it: other orders differ in the last digit, and decide otherwise at the threshold."""
    return 2 * precision * recall / (precision + recall)


class Pool:
    """The original's way (`src/gen_instructions.py`): a new pool for each text, and every kept text tokenized again."""

    def __init__(self, kept: Sequence[str]) -> None:
        self.kept = kept
        self.scorer = RougeScorer(["rougeL"], use_stemmer=False)

    def __call__(self, text: str) -> float:
        """The largest F1 with a kept text."""
        with multiprocessing.Pool(PROCESSES) as pool:
            scores = pool.map(partial(self.scorer.score, text), self.kept)
        return max(score["rougeL"].fmeasure for score in scores)


class Speller:
    """Texts as strings with a character for each of `rouge_score`'s tokens, so that `rapidfuzz` compares them fast."""

    def __init__(self) -> None:
        self._tokenizer = DefaultTokenizer(use_stemmer=False)
        self._characters: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """The text, spelled."""
        tokens = self._tokenizer.tokenize(text)
        return "".join(self._characters.setdefault(token, chr(len(self._characters))) for token in tokens)


class Loop:
    """All kept texts, tokenized once; what can have no F1 above the threshold is not looked at to the end."""

    def __init__(self, kept: Sequence[str]) -> None:
        self.spell = Speller()
        self.kept = [self.spell(text) for text in kept]

    def __call__(self, text: str) -> bool:
        """Whether the text repeats a kept one."""
        spelled = self.spell(text)
        # With fewer tokens in common, not even a text that consists of them alone has an F1 above the threshold.
        least = max(1, int(THRESHOLD / (2 - THRESHOLD) * len(spelled)))
        found = extract_iter(spelled, self.kept, scorer=LCSseq.similarity, score_cutoff=least)
        return any(f1(common / len(spelled), common / len(other)) > THRESHOLD for other, common, _ in found)


def above_threshold(texts: Texts) -> Iterator[set[int]]:
    """For each new text the positions, among the kept and then the new texts, of all that have an F1 above 0.7 with it.

    The numbers of `rouge_score`, from every pair, by another algorithm for the same longest common subsequence.
    """
    spell = Speller()
    spelled = [spell(text) for text in texts.kept + texts.new]
    lengths = np.array([len(text) for text in spelled], dtype=float)
    first = len(texts.kept)
    for start in range(first, len(spelled), 200):
        rows = slice(start, start + 200)
        common = cdist(spelled[rows], spelled, scorer=LCSseq.similarity, dtype=np.int32)
        precision, recall = common / lengths[rows, None], common / lengths
        total = np.where(common > 0, precision + recall, 1)
        for row in 2 * precision * recall / total > THRESHOLD:
            yield set(row.nonzero()[0].tolist())


def reference_decisions(texts: Texts) -> tuple[list[bool], list[bool]]:
    """For each new text, whether it repeats a kept one, and whether it does when texts are added as they pass."""
    fixed, growing = [], []
    passed = set(range(len(texts.kept)))
    for number, repeated in enumerate(above_threshold(texts)):
        fixed.append(any(position < len(texts.kept) for position in repeated))
        growing.append(not passed.isdisjoint(repeated))
        if not growing[-1]:
            passed.add(len(texts.kept) + number)
    return fixed, growing


def look_up(texts: Texts) -> list[bool]:
    """The decisions of an index of the kept texts."""
    index = index_of(texts)
    return [index.find(text) is not None for text in texts.new]


def index_of(texts: Texts) -> NearDuplicateIndex:
    """An index of the kept texts."""
    index = NearDuplicateIndex(THRESHOLD)
    for number, text in enumerate(texts.kept):
        index.add(str(number), text)
    return index


def add_as_they_pass(texts: Texts) -> list[bool]:
    """The decisions of an index that starts with the kept texts."""
    index, decisions = index_of(texts), []
    for number, text in enumerate(texts.new):
        decisions.append(index.find(text) is not None)
        if not decisions[-1]:
            index.add(f"new-{number}", text)
    return decisions


def pool_decides_the_same(texts: Texts, similarities: Mapping[int, float]) -> int:
    """Texts for which the index has the pool's decision and, where it finds a text, the pool's F1 to the last bit."""
    index = index_of(texts)
    found = {number: index.find(texts.new[number]) for number in similarities}
    return sum(
        match.similarity == similarities[number] if match else similarities[number] <= THRESHOLD
        for number, match in found.items()
    )


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and what it returned."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@dataclass
class Outcome:
    """What was seen of one method."""

    seconds: list[float]
    """Of one text, round by round."""
    same: int
    """Decisions that are the same."""
    of: int
    """Decisions that were compared."""


def measure(texts: Texts, num_pool: int, num_rounds: int, rng: random.Random) -> dict[str, Outcome]:
    """Time every method in every round, in random order, and then compare its decisions."""
    pool, loop = Pool(texts.kept), Loop(texts.kept)
    pooled = rng.sample(range(len(texts.new)), min(num_pool, len(texts.new)))
    looped = rng.sample(range(len(texts.new)), min(20 * num_pool, len(texts.new)))
    similarities: dict[int, float] = {}
    decisions: dict[str, list[bool]] = {}
    per_text: dict[str, list[float]] = {name: [] for name in METHODS}
    for number in range(num_rounds):
        part = pooled[number::num_rounds]
        for name in rng.sample(METHODS, len(METHODS)):
            if name == "pool":
                took, values = seconds(lambda part=part: [pool(texts.new[one]) for one in part])
                similarities.update(zip(part, values, strict=True))
                per_text[name].append(took / len(part))
            elif name == "loop":
                took, decisions[name] = seconds(lambda: [loop(texts.new[one]) for one in looped])
                per_text[name].append(took / len(looped))
            else:
                took, decisions[name] = seconds(partial(look_up if name == "index" else add_as_they_pass, texts))
                per_text[name].append(took / len(texts.new))
    fixed, growing = reference_decisions(texts)
    expected = {"loop": [fixed[one] for one in looped], "index": fixed, "as it goes": growing}
    outcomes = {"pool": Outcome(per_text["pool"], pool_decides_the_same(texts, similarities), len(pooled))}
    for name, truth in expected.items():
        outcomes[name] = Outcome(per_text[name], sum(map(operator.eq, truth, decisions[name])), len(truth))
    words = statistics.mean(len(text.split()) for text in texts.new)
    print(
        f"\n{texts.name}: {len(texts.new):,} new texts of {words:.0f} words on average, {sum(fixed) / len(fixed):.0%} "
        f"repeat one of {len(texts.kept):,} kept; {growing.count(False):,} pass when each that passes is added"
    )
    return outcomes


def report(outcomes: Mapping[str, Outcome]) -> None:
    """Print a line for each method."""
    print(f"{'':10}  {'ms per text':>11}  {'s per 10,000':>12}  {'x pool':>7}  {'x loop':>7}  same decisions")
    for name, outcome in outcomes.items():
        one = statistics.median(outcome.seconds)
        pool, loop = (
            statistics.median(map(operator.truediv, outcomes[baseline].seconds, outcome.seconds))
            for baseline in ("pool", "loop")
        )
        print(
            f"{name:10}  {1000 * one:11.3f}  {10_000 * one:12.1f}  {pool:7.4g}  {loop:7.3g}  "
            f"{outcome.same:,} of {outcome.of:,}",
            flush=True,
        )


def main() -> None:
    """Compare on all collections of texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=int, default=10_000, help="kept texts")
    parser.add_argument("--candidates", type=int, default=10_000, help="new texts")
    parser.add_argument("--baseline-candidates", type=int, default=30, help="new texts that the pool looks up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", nargs="+", default=[], help="files of instructions to compare, too")
    options = parser.parse_args()
    if not 1 <= options.rounds <= options.baseline_candidates <= options.candidates:
        parser.error("each round needs a text for the pool: give rounds <= baseline-candidates <= candidates")
    rng = random.Random(options.seed)
    print(
        f"Python {platform.python_version()}, rapidfuzz {version('rapidfuzz')}, rouge_score {version('rouge_score')}; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    collections = [
        written(rng, options.kept, options.candidates),
        classroom(rng, options.kept, options.candidates),
    ]
    if options.source:
        collections.append(of_files(rng, options.source, options.kept, options.candidates))
    different = 0
    for texts in collections:
        outcomes = measure(texts, options.baseline_candidates, options.rounds, rng)
        report(outcomes)
        different += sum(outcome.of - outcome.same for outcome in outcomes.values())
    if different:
        raise SystemExit(f"{different} decisions were different")


if __name__ == "__main__":
    main()
