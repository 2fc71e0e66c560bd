"""How varied a set of texts is, in a few numbers for summaries."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from montessori_pl.data.records import Example
from montessori_pl.synthesis.near_duplicates import token_f1, tokenize

# 200 texts are 19,900 comparisons: well under a second for instructions.
SAMPLE = 200
# Responses are long: those of 300 words take ten times as much time.
RESPONSE_SAMPLE = 60


def diversity(texts: Sequence[str], sample: int = SAMPLE) -> dict[str, float]:
    """Measure how varied the texts are; all zeros when there is none.

    Args:
        texts: what is measured.
        sample: so many texts are compared with each other.

    Returns:
        `distinct_rate`: different texts per text, from 0 to 1.
        `distinct_2`: different pairs of neighbouring words per such pair, from 0 to 1; falls with the amount of text.
        `token_entropy`: entropy of the words, in nats.
        `first_word_entropy`: entropy of the texts' first words, in nats: how many kinds of requests there are.
        `mean_characters`: mean length.
        `mean_max_rouge_l`: mean similarity of a text to its most similar neighbour among `sample` texts spread evenly
        over the sequence; 0 when nothing repeats, 1 when all do.
    """
    tokenized = [tokenize(text) for text in texts]
    words = Counter(token for tokens in tokenized for token in tokens)
    openings = Counter(tokens[0] for tokens in tokenized if tokens)
    ids = {word: number for number, word in enumerate(words)}
    pairs = Counter(pair for tokens in tokenized for pair in pairwise(tokens))
    return {
        "distinct_rate": _share(len(set(texts)), len(texts)),
        "distinct_2": _share(len(pairs), pairs.total()),
        "token_entropy": _entropy(words),
        "first_word_entropy": _entropy(openings),
        "mean_characters": _share(sum(map(len, texts)), len(texts)),
        "mean_max_rouge_l": _mean_max_rouge_l([[ids[token] for token in tokens] for tokens in tokenized], sample),
    }


def diversity_metrics(examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """How varied examples are, for the metrics of the stage that leaves them behind.

    Returns:
        `diversity`: of the instructions; `response_diversity`: of the responses, where there are any.
    """
    responses = [example.response for example in examples if example.response]
    return {
        "diversity": diversity([example.instruction for example in examples]),
        **({"response_diversity": diversity(responses, RESPONSE_SAMPLE)} if responses else {}),
    }


def _mean_max_rouge_l(texts: Sequence[Sequence[int]], sample_size: int) -> float:
    size = min(len(texts), sample_size)
    sample = [texts[number * len(texts) // size] for number in range(size)]
    nearest = [0.0] * size
    for i in range(size):
        for j in range(i):
            similarity = token_f1(sample[i], sample[j])
            nearest[i], nearest[j] = max(nearest[i], similarity), max(nearest[j], similarity)
    return _share(sum(nearest), size)


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return sum(-count / total * math.log(count / total) for count in counts.values())


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0
