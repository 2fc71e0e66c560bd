"""The coefficient head: a linear map from what an encoder knows of a prompt to one coefficient for each teacher.

On a frozen encoder it is a convex problem, solved to its optimum in float64 without a step size or a seed.

Legend: N prompts, H features, K teachers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from montessori_pl.routing.preferences import bradley_terry_loss

FOLDS = 5
"""Parts into which the prompts are cut to choose the penalty."""
FLOOR = 1e-8
"""Smallest standard deviation of a feature that is divided by; a feature that never changes says nothing."""


@dataclass(frozen=True)
class Head:
    """Coefficients are linear in the features."""

    weight: Tensor
    """Shape (K, H), float64."""
    bias: Tensor
    """Shape (K,), float64."""

    def __call__(self, features: Tensor) -> Tensor:
        """Coefficients of the teachers, shape (N, K), for features of shape (N, H)."""
        return features @ self.weight.T + self.bias


def fit_head(features: Tensor, labels: Tensor, penalty: float) -> Head:
    """The head with the least Bradley-Terry loss plus penalty / 2 times the squared norm of its weights.

    The penalty is on weights for standardised features, so that their units do not matter; the bias is free.

    Args:
        features: shape (N, H), float64.
        labels: from `pair_labels`, shape (N, K, K).
        penalty: above 0, so that there is one optimum even where prompts can be told apart without error.
    """
    center, spread = features.mean(dim=0), features.std(dim=0, correction=0)
    standardized = torch.where(spread > FLOOR, (features - center) / spread.clamp_min(FLOOR), 0.0)
    weight = features.new_zeros(labels.shape[1], features.shape[1], requires_grad=True)
    bias = features.new_zeros(labels.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = bradley_terry_loss(standardized @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    raw = torch.where(spread > FLOOR, weight.detach() / spread.clamp_min(FLOOR), 0.0)
    return Head(raw, bias.detach() - raw @ center)


def penalty_losses(features: Tensor, labels: Tensor, penalties: Sequence[float]) -> dict[float, float]:
    """The cross-validated Bradley-Terry loss of each penalty: each prompt is judged by a head that has not seen it.

    Args:
        features: shape (N, H), float64; the prompts in random order.
        labels: from `pair_labels`, shape (N, K, K).
        penalties: to be compared.
    """
    num_prompts = len(features)
    part = torch.arange(num_prompts) % min(FOLDS, num_prompts)
    losses = {}
    for penalty in penalties:
        coefficients = features.new_empty(num_prompts, labels.shape[1])
        for fold in part.unique():
            head = fit_head(features[part != fold], labels[part != fold], penalty)
            coefficients[part == fold] = head(features[part == fold])
        losses[penalty] = bradley_terry_loss(coefficients, labels).item()
    return losses


def constant_coefficients(labels: Tensor) -> Tensor:
    """The coefficients with the least Bradley-Terry loss that are the same for all prompts, shape (K,), float64.

    Args:
        labels: from `pair_labels`, shape (N, K, K).
    """
    return fit_head(_no_features(labels), labels, penalty=1.0).bias


def constant_loss(labels: Tensor) -> float:
    """The loss of `constant_coefficients`, cross-validated as that of a penalty; a router has to fall below it.

    Args:
        labels: from `pair_labels`, shape (N, K, K); the prompts in random order.
    """
    (loss,) = penalty_losses(_no_features(labels), labels, [1.0]).values()
    return loss


def _no_features(labels: Tensor) -> Tensor:
    """One that never changes, and so says nothing."""
    return labels.new_zeros(len(labels), 1)
