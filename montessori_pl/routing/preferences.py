"""What a router learns from: the reward of each response, and for each two teachers whose response is preferred.

PerSyn (arXiv 2510.10925) routes each prompt to the teacher whose response is good and can be learned:

    r = (1 - alpha) * quality + alpha * learnability

each made comparable within its prompt first. Learnability is the student's mean log-probability of the response, before
any tuning; any other score will do, for example local influence.

Legend: N prompts, K teachers.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from montessori_pl.routing.responses import Array

Normalization = Literal["zscore", "minmax", "none"]
FLOOR = 1e-6
"""Smallest spread that is divided by: what does not differ over teachers counts as equal."""


def combined_rewards(quality: Array, learnability: Array, alpha: float, normalization: Normalization) -> Array:
    """The reward of each teacher's response to each prompt, shape (N, K); NaN unless both numbers are known.

    Args:
        quality: shape (N, K), NaN where it is not known.
        learnability: shape (N, K), NaN where it is not known.
        alpha: the weight of learnability, from 0 to 1.
        normalization: within each prompt, over the teachers of whom both are known: `zscore` subtracts the mean and
            divides by the standard deviation, `minmax` maps the lowest to 0 and the highest to 1.
    """
    known = ~np.isnan(quality + learnability)
    parts = (normalized(np.where(known, table, np.nan), normalization) for table in (quality, learnability))
    return sum(weight * part for weight, part in zip((1 - alpha, alpha), parts, strict=True))  # type: ignore[return-value]


def normalized(table: Array, normalization: Normalization) -> Array:
    """The table with each row made comparable to the others; NaN stays."""
    if normalization == "none":
        return table
    count = (~np.isnan(table)).sum(axis=1, keepdims=True).clip(min=1)
    if normalization == "zscore":
        center = np.nansum(table, axis=1, keepdims=True) / count
        spread = np.sqrt(np.nansum((table - center) ** 2, axis=1, keepdims=True) / count)
    else:
        center = np.where(np.isnan(table), np.inf, table).min(axis=1, keepdims=True)
        spread = np.where(np.isnan(table), -np.inf, table).max(axis=1, keepdims=True) - center
    return (table - center) / spread.clip(min=FLOOR)


def pair_labels(rewards: Array, tie_margin: float) -> Tensor:
    """For each prompt and each two teachers, whether the first one's response is preferred.

    Args:
        rewards: shape (N, K), NaN where there is no response.
        tie_margin: rewards that differ by no more than this are tied.

    Returns:
        Shape (N, K, K), float64: 1 if the first one's is preferred, 0 if the second one's, 0.5 for a tie, and NaN for
        teachers that cannot be compared, and for each with itself.
    """
    differences = rewards[:, :, None] - rewards[:, None, :]
    labels = np.where(np.abs(differences) <= tie_margin, 0.5, (differences > 0).astype(np.float64))
    alone = np.eye(rewards.shape[1], dtype=bool)
    return torch.from_numpy(np.where(np.isnan(differences) | alone, np.nan, labels))


def bradley_terry_loss(coefficients: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of all pairs under P(i before j) = sigmoid(c_i - c_j), in nats.

    Args:
        coefficients: the teachers' coefficients for each prompt, shape (N, K).
        labels: from `pair_labels`, shape (N, K, K). Every pair stands there twice, which does not change the mean.
    """
    differences = coefficients[:, :, None] - coefficients[:, None, :]
    compared = ~labels.isnan()
    return binary_cross_entropy_with_logits(differences[compared], labels[compared])
