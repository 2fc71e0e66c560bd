"""From scored examples to advantages: how much better than the other completions of its prompt is each one?

Knows records; nothing about signals, models or files.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from montessori_pl.data.records import Example, Score
from montessori_pl.stats.spread import spread

Scale = Literal["group", "none"]

SMALLEST_SPREAD = 1e-4
"""Added to the standard deviation of a group, as in TRL: scores that hardly differ are no reason for large steps."""


def group_advantages(examples: Iterable[Example], scores: Mapping[str, Score], scale: Scale) -> dict[str, float]:
    """The score of each completion minus the mean of its prompt's, by example id (arXiv 2402.03300, section 4.1.2).

    All differences are first divided by their root mean square over all prompts: neither the unit of a score nor its
    zero matters. Examples without a score or a prompt are left out, and so are those of a prompt of which only one was
    scored.

    Args:
        examples: the scored examples.
        scores: the scores by example id.
        scale: `group` divides by the standard deviation of the prompt's scores; `none` does not (arXiv 2503.20783).
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        if example.prompt_id and example.id in scores:
            groups[example.prompt_id].append(example.id)
    found: dict[str, float] = {}
    several = [ids for ids in groups.values() if len(ids) > 1]
    for ids in several:
        values = [scores[id_].value for id_ in ids]
        mean = statistics.fmean(values)
        differ = spread(values) > 0  # or the last digits of their mean would be all that is left
        found |= {id_: value - mean if differ else 0.0 for id_, value in zip(ids, values, strict=True)}
    size = statistics.fmean([value**2 for value in found.values()] or [0.0]) ** 0.5 or 1.0
    for ids in several:
        values = [found[id_] / size for id_ in ids]
        unit = statistics.stdev(values) + SMALLEST_SPREAD if scale == "group" else 1.0
        found |= {id_: value / unit for id_, value in zip(ids, values, strict=True)}
    return found
