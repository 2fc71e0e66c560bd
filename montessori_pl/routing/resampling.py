"""How far a mean over prompts can be trusted: the bootstrap over prompts."""

from dataclasses import dataclass

import numpy as np

from montessori_pl.routing.responses import Array

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A number with the percentile interval of its bootstrap."""

    mean: float
    """The number on the prompts as they are."""
    low: float
    """Lower end of the 95% interval."""
    high: float
    """Its upper end."""


def resampled_means(values: Array, seed: int) -> Array:
    """Means over prompts that are drawn with replacement, as many as there are.

    Args:
        values: shape (N, C): C numbers of each prompt, drawn together.
        seed: of the draws.

    Returns:
        Shape (NUM_RESAMPLES, C).
    """
    generator, num_prompts = np.random.default_rng(seed), len(values)
    draws = (generator.integers(num_prompts, size=num_prompts) for _ in range(NUM_RESAMPLES))
    return np.stack([np.bincount(draw, minlength=num_prompts) @ values / num_prompts for draw in draws])


def interval(mean: float, resampled: Array) -> Interval:
    """The interval of one number.

    Args:
        mean: the number itself.
        resampled: the same of each resample, shape (NUM_RESAMPLES,).
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(mean), float(low), float(high))
