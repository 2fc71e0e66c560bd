"""Histograms of several samples over the same bins, so that their shapes can be compared whatever their sizes."""

import bisect
from collections.abc import Mapping, Sequence

from montessori_pl.report.page.figures import Point, Series

NUM_BINS = 40
TAIL = 0.02
"""Part of all values on each side that lies beyond the bins: one outlier would press all others into one bin."""


def histograms(samples: Mapping[str, Sequence[float]], whole: bool = False) -> list[Series]:
    """For each sample the share of its values in each bin; the outer bins hold what lies beyond them, too.

    Args:
        samples: values by name; empty samples are left out.
        whole: whether values are whole numbers, so that bins are as wide as some of these.
    """
    values = sorted(value for sample in samples.values() for value in sample)
    if not values:
        return []
    cut = int(len(values) * TAIL)
    low, high = values[cut], values[-1 - cut]
    if whole:
        width: float = max(1, -int(-(high - low + 1) // NUM_BINS))
        count = int((high - low) // width) + 1
    else:
        width, count = (high - low) / NUM_BINS or 1.0, NUM_BINS if high > low else 1
    edges = [low + number * width for number in range(count + 1)]
    return [Series(name, _points(sample, edges)) for name, sample in samples.items() if sample]


def _points(sample: Sequence[float], edges: Sequence[float]) -> list[Point]:
    counts = [0] * (len(edges) - 1)
    for value in sample:
        counts[min(max(bisect.bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    shares = [count / len(sample) for count in counts]
    return [Point(edge, share) for edge, share in zip(edges, [*shares, 0.0], strict=True)]
