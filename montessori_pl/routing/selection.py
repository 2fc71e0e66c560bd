"""One teacher for all prompts: the compatibility-adjusted reward (CAR, arXiv 2411.07133) and what it has to beat.

    CAR(teacher) = r / (1 + beta * L)

with r the mean quality of the teacher's responses and L the student's mean loss on them, before it is trained. A
teacher whose responses are good but far from what the student can say is discounted; beta = 0 ranks by quality alone,
and an infinite beta by r / L.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from montessori_pl.routing.responses import Array

Rule = Literal["car", "grace", "quality", "loss", "length", "ifd"]
"""What puts a teacher first: CAR, low GRACE, quality, low loss, long responses, or instruction-following difficulty."""

NEEDED: Mapping[Rule, tuple[str, ...]] = {
    "car": ("quality", "loss"),
    "grace": ("grace",),
    "quality": ("quality",),
    "loss": ("loss",),
    "length": ("length",),
    "ifd": ("ifd",),
}
"""The columns that each rule looks at."""

SMALLEST = 0.01
"""What the lowest of shifted rewards becomes, as a share of their range."""


def merit(rule: Rule, means: Mapping[str, Array], beta: float) -> Array:
    """How good each teacher is by a rule; higher is better.

    Args:
        rule: what counts.
        means: by column, the mean of each teacher; shape (..., K), the last axis over teachers.
        beta: how much CAR discounts losses.

    Returns:
        Shape (..., K).
    """
    if rule == "car":
        return adjusted_reward(means["quality"], means["loss"], beta)
    return -means[rule] if rule in ("loss", "grace") else means[rule]


def adjusted_reward(rewards: Array, losses: Array, beta: float) -> Array:
    """CAR, or for an infinite beta what beta * CAR tends to, r / L; both shapes (..., K)."""
    rewards = positive(rewards)
    return rewards / losses if np.isinf(beta) else rewards / (1 + beta * losses)


def positive(rewards: Array) -> Array:
    """Rewards (..., K) as they are where all K are positive, else shifted so that the lowest is 1% of their range.

    A negative reward would turn the discount into a bonus: the larger the loss, the higher the CAR. Only the order of
    shifted rewards means something; it stays the same if all rewards are multiplied or shifted together.
    """
    low = rewards.min(axis=-1, keepdims=True)
    spread = rewards.max(axis=-1, keepdims=True) - low
    smallest = np.where(spread > 0, SMALLEST * spread, 1.0)
    return np.where(low > 0, rewards, rewards - low + smallest)


def ranking(teachers: Sequence[str], merits: Array) -> list[str]:
    """The teachers from the best to the worst; equals in the order of their names."""
    return [teachers[index] for index in np.lexsort((np.arange(len(teachers)), -merits))]
