"""From scored examples to preference pairs: which of a prompt's completions should the teacher prefer?

Knows records; nothing about signals, models or files.

    rule -> pairs clear of noise -> the largest margins -> (control) the same number, drawn at random
         -> weights by margin -> no kind of request above its share
"""

import dataclasses
import itertools
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from montessori_pl.data.records import Example, PreferencePair, Score, stable_id, stable_seed
from montessori_pl.stats.spread import ROUNDING, spread

Rule = Literal["best_worst", "signed"]
Weights = Literal["equal", "margin"]

LARGEST_WEIGHED = 0.95
"""Margins above this quantile weigh as much as it does: influence has heavy tails, and few pairs would decide."""


@dataclass(frozen=True)
class Sample:
    """An example with its score."""

    example: Example
    """What the teacher wrote."""
    score: Score
    """What it is worth to the student."""


Pair = tuple[Sample, Sample]
"""The preferred sample, and the other."""


def pair_examples(
    examples: Sequence[Example],
    scores: Mapping[str, Score],
    *,
    rule: Rule,
    max_pairs_per_prompt: int | None = None,
    noise_margin: float = 0.0,
    differences: Mapping[str, Sequence[float]] | None = None,
    weights: Weights = "equal",
    max_first_word_rate: float | None = None,
    shuffle_seed: int | None = None,
) -> list[PreferencePair]:
    """Pair the completions of each prompt, a better one with a worse one.

    Examples without a score and examples that no prompt asked for (empty `prompt_id`) are skipped. Two completions with
    the same text never make a pair.

    Args:
        examples: the scored examples; prompts keep the order of their first appearance.
        scores: the scores by example id.
        rule: `signed` pairs every positive score with every negative one (the paper's rule); `best_worst` takes the
            highest against the lowest: of all pairs with different scores and texts the one with the largest margin.
        max_pairs_per_prompt: keep only so many of each prompt's pairs, those with the largest margins; None keeps all.
        noise_margin: keep a pair only if its margin is larger than so many of its standard errors; 0 keeps all.
        differences: each example's influence on every reference example, by example id. With them the standard error
            of a margin is paired over reference examples, without them it is sqrt(se_chosen^2 + se_rejected^2), and no
            pair is made of an example whose score has none.
        weights: how much each pair counts: all the same, or in proportion to the size of its margin, with a mean of 1.
        max_first_word_rate: the largest part of the total weight for pairs whose chosen instructions begin with the
            same word; the weights of larger groups are scaled down until none has more. Where there are too few groups
            for that, all weigh alike. None leaves all as they are.
        shuffle_seed: the random control: as many pairs for each prompt, but each drawn at random among the prompt's
            pairs of different texts, in a random direction, so that margins may be negative.

    Returns:
        The pairs, prompt by prompt, the largest margin first (in the control: as drawn).

    Raises:
        ValueError: no score has a standard error, or an example's differences are missing, where they are needed.
    """
    if noise_margin > 0 and differences is None:
        scores = with_standard_errors(scores)
    pairs: list[PreferencePair] = []
    for prompt_id, samples in _by_prompt(examples, scores).items():
        chosen = _by_margin(_candidates(samples, rule))
        if noise_margin > 0:
            chosen = [pair for pair in chosen if _margin(pair) > noise_margin * _standard_error(pair, differences)]
        chosen = chosen[:max_pairs_per_prompt]
        if shuffle_seed is not None:
            chosen = _draw(samples, len(chosen), random.Random(stable_seed(shuffle_seed, prompt_id)))
        pairs.extend(map(_record, chosen))
    if weights == "margin":
        pairs = _weighted(pairs)
    if max_first_word_rate is not None:
        pairs = _spread(pairs, {example.id: example for example in examples}, max_first_word_rate)
    return pairs


def with_standard_errors(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Those of the scores that have one: an example that was judged once has none.

    Raises:
        ValueError: none of them has one.
    """
    found = {id_: score for id_, score in scores.items() if score.standard_error is not None}
    if scores and not found:
        first = next(iter(scores.values()))
        raise ValueError(
            f"a noise margin needs standard errors, and none of {len(scores)} scores has one "
            f"({first.method or 'unnamed method'}); set the noise margin to 0, or use a signal that estimates them"
        )
    return found


def mean_scores(several: Sequence[Mapping[str, Score]], weights: Sequence[float] | None = None) -> dict[str, Score]:
    """One score for each example from several, as from students that were warmed up apart.

    One student's influence is a noisy judge: it says as much about where its short training happened to end as about
    the example. The scores of each judge are divided by their standard deviation, so that none outvotes the others,
    wherever its zero lies, and signs stay; and averaged. Standard errors are averaged too, as if they were fully
    correlated: the students share the reference set.

    Args:
        several: the scores of each judge by example id; examples that a judge has not scored are left out.
        weights: how much each judge counts; none counts all alike.

    Raises:
        ValueError: a judge has no scores, or scores all alike.
    """
    sizes = [_spread_of([score.value for score in scores.values()]) for scores in several]
    found = {}
    for id_ in several[0]:
        scores = [one[id_] for one in several if id_ in one]
        if len(scores) == len(several):
            found[id_] = _mean_score(scores, sizes, weights)
    return found


def _spread_of(values: Sequence[float]) -> float:
    if not values:
        raise ValueError("there is none that could be averaged with others")
    if not (found := spread(values)):
        raise ValueError(f"scores cannot be averaged with others when all of them are alike, found {values[0]:g}")
    return found


def _mean_score(scores: Sequence[Score], sizes: Sequence[float], weights: Sequence[float] | None) -> Score:
    scaled = list(zip(scores, sizes, strict=True))
    errors = [score.standard_error / size for score, size in scaled if score.standard_error is not None]
    terms = [[term / size for term in score.terms] for score, size in scaled]
    alike = all(terms) and len({len(one) for one in terms}) == 1
    return Score(
        id=scores[0].id,
        value=statistics.fmean([score.value / size for score, size in scaled], weights),
        standard_error=statistics.fmean(errors, weights) if len(errors) == len(scores) else None,
        method=f"mean of {len(scores)}: {', '.join(dict.fromkeys(score.method for score in scores))}",
        terms=tuple(statistics.fmean(column, weights) for column in zip(*terms, strict=True)) if alike else (),
    )


def _by_prompt(examples: Sequence[Example], scores: Mapping[str, Score]) -> dict[str, list[Sample]]:
    """The scored samples of each prompt."""
    groups: dict[str, list[Sample]] = {}
    for example in examples:
        if example.prompt_id and example.id in scores:
            groups.setdefault(example.prompt_id, []).append(Sample(example, scores[example.id]))
    return groups


def _candidates(samples: Sequence[Sample], rule: Rule) -> list[Pair]:
    """All pairs that the rule makes of one prompt's samples."""
    if rule == "signed":
        positive = [sample for sample in samples if sample.score.value > 0]
        negative = [sample for sample in samples if sample.score.value < 0]
        return [pair for pair in itertools.product(positive, negative) if _texts_differ(pair)]
    ordered = itertools.permutations(samples, 2)
    return _by_margin(pair for pair in ordered if _is_better(pair) and _texts_differ(pair))[:1]


def _by_margin(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs with the largest margin first; ids decide between equal ones."""
    return sorted(pairs, key=lambda pair: (-_margin(pair), pair[0].example.id, pair[1].example.id))


def _margin(pair: Pair) -> float:
    return pair[0].score.value - pair[1].score.value


def _is_better(pair: Pair) -> bool:
    """Whether the first sample has a higher score, by more than rounding."""
    return _margin(pair) > ROUNDING * max(abs(sample.score.value) for sample in pair)


def _texts_differ(pair: Pair) -> bool:
    return pair[0].example.completion != pair[1].example.completion


def _standard_error(pair: Pair, differences: Mapping[str, Sequence[float]] | None) -> float:
    """Standard error of a pair's margin."""
    if differences is None:
        # Scores that have none were left out.
        return math.hypot(*(error for sample in pair if (error := sample.score.standard_error) is not None))
    chosen, rejected = (_own_differences(sample.example.id, differences) for sample in pair)
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    if len(margins) < 2:
        raise ValueError("a noise margin needs two reference examples or more, found 1; set the noise margin to 0")
    return statistics.stdev(margins) / math.sqrt(len(margins))


def _own_differences(example_id: str, differences: Mapping[str, Sequence[float]]) -> Sequence[float]:
    if example_id not in differences:
        raise ValueError(f"example {example_id} has no difference per reference example ({len(differences)} others do)")
    return differences[example_id]


def _weighted(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs with weights in proportion to their margins, up to the largest that is weighed."""
    sizes = [abs(pair.margin) for pair in pairs]
    if not any(sizes):
        return list(pairs)
    largest = float(np.quantile(sizes, LARGEST_WEIGHED, method="inverted_cdf")) or max(sizes)
    clipped = [min(abs(pair.margin), largest) for pair in pairs]
    mean = statistics.fmean(clipped)
    return [dataclasses.replace(pair, weight=size / mean) for pair, size in zip(pairs, clipped, strict=True)]


def _spread(
    pairs: Sequence[PreferencePair], examples: Mapping[str, Example], largest_rate: float
) -> list[PreferencePair]:
    """The pairs with smaller weights where too many prefer the same kind of request; the mean stays what it was.

    Influence is local: the tenth example of a kind still scores high on a student that has seen none of them. What one
    kind may count in all is therefore bounded.
    """
    openings = [next(iter(examples[pair.chosen_id].instruction.lower().split()), "") for pair in pairs]
    groups: dict[str, float] = {}
    for opening, pair in zip(openings, pairs, strict=True):
        groups[opening] = groups.get(opening, 0.0) + pair.weight
    total = sum(groups.values())
    cap = _cap(list(groups.values()), largest_rate)
    scales = {opening: min(1.0, cap / weight) for opening, weight in groups.items() if weight}
    weights = [pair.weight * scales.get(opening, 1.0) for opening, pair in zip(openings, pairs, strict=True)]
    mean = sum(weights) / total if total else 1.0
    return [dataclasses.replace(pair, weight=weight / mean) for pair, weight in zip(pairs, weights, strict=True)]


def _cap(weights: Sequence[float], largest_rate: float) -> float:
    """The weight to which larger groups are cut, so that none has more than its share of what is left in all.

    With `capped` groups at the cap and a weight of `rest` in the others, the cap is the largest share of
    `capped * cap + rest`. Where there are too few groups for that all become equal.
    """
    largest_first = sorted((weight for weight in weights if weight), reverse=True)
    rest = sum(largest_first)
    for capped, weight in enumerate(largest_first):
        cap = largest_rate * rest / (1 - largest_rate * capped)
        if weight <= cap * (1 + ROUNDING):
            return max(cap, weight)
        rest -= weight
    return largest_first[-1] if largest_first else 0.0


def _draw(samples: Sequence[Sample], num_pairs: int, generator: random.Random) -> list[Pair]:
    """Draw different pairs at random, each in a random direction."""
    # Sorted, so that the order in which the examples were read does not matter.
    ordered = sorted(samples, key=lambda sample: sample.example.id)
    possible = [pair for pair in itertools.combinations(ordered, 2) if _texts_differ(pair)]
    return [pair if generator.random() < 0.5 else pair[::-1] for pair in generator.sample(possible, num_pairs)]


def _record(pair: Pair) -> PreferencePair:
    chosen, rejected = pair[0].example, pair[1].example
    return PreferencePair(
        id=stable_id(chosen.id, rejected.id),
        prompt=chosen.prompt,
        chosen=chosen.completion,
        rejected=rejected.completion,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        prompt_id=chosen.prompt_id,
        # They belong to the conversation with the student; a prompt that asks for an instruction has none.
        system=chosen.system if chosen.prompt == chosen.instruction else "",
        history=chosen.history if chosen.prompt == chosen.instruction else (),
        margin=_margin(pair),
        prompt_format=chosen.prompt_format,
        prefill=chosen.prefill,
        chosen_finished=chosen.completion_finished,
        rejected_finished=rejected.completion_finished,
        chosen_tokens=chosen.completion_tokens,
        rejected_tokens=rejected.completion_tokens,
    )
