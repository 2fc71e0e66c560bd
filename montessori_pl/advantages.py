"""From scored examples to advantages: how much better than the other completions of its prompt is each one?

Knows records; nothing about signals, models or files.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from montessori_pl.data.records import Example, Score

Scale = Literal["group", "none"]

SMALLEST_SPREAD = 1e-4
"""Added to the standard deviation of a group, as in TRL: scores that hardly differ are no reason for large steps."""


def group_advantages(examples: Iterable[Example], scores: Mapping[str, Score], scale: Scale) -> dict[str, float]:
    """The score of each completion minus the mean of its prompt's, by example id (arXiv 2402.03300, section 4.1.2).

    All scores are first divided by their root mean square, so that `SMALLEST_SPREAD` means the same for all of them.
    Examples without a score or a prompt are left out, and so are those of a prompt of which only one was scored.

    Args:
        examples: the scored examples.
        scores: the scores by example id.
        scale: `group` divides by the standard deviation of the prompt's scores, `none` does not (arXiv 2503.20783): a
            prompt whose completions hardly differ then says little.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        if example.prompt_id and example.id in scores:
            groups[example.prompt_id].append(example.id)
    size = statistics.fmean([scores[id_].value ** 2 for ids in groups.values() for id_ in ids] or [0.0]) ** 0.5 or 1.0
    found: dict[str, float] = {}
    for ids in groups.values():
        values = [scores[id_].value / size for id_ in ids]
        if len(values) > 1:
            mean = statistics.fmean(values)
            spread = statistics.stdev(values) + SMALLEST_SPREAD if scale == "group" else 1.0
            found |= {id_: (value - mean) / spread for id_, value in zip(ids, values, strict=True)}
    return found
