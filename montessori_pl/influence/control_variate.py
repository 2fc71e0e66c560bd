"""First-order influence, corrected by exact differences on a few references: a control variate.

    influence(z) = first_order(z) + mean over a random subset S of (exact_r(z) - first_order_r(z))

On its own a subset of the reference set is worthless. As a correction it only has to carry the difference between exact
and first order, which is small and much the same for all references. Unbiased over random subsets.

Shapes: B examples, S references of the subset.
"""

import torch
from torch import Tensor

from montessori_pl.influence.first_order import FirstOrderInfluence
from montessori_pl.influence.functional import Batch
from montessori_pl.influence.results import Influence


class ControlVariateInfluence:
    """The influence of examples at the cost of first order and a pass over a few references each.

    Args:
        first_order: gives the bulk; its sample of references, in its order, holds the subset.
        num_references: how many of them the correction looks at.
    """

    def __init__(self, first_order: FirstOrderInfluence, num_references: int) -> None:
        self.first_order = first_order
        self.subset = first_order.sample[:num_references]
        self.null_losses = first_order.references.losses(first_order.null, self.subset)

    def __call__(self, batch: Batch) -> list[Influence]:
        """The influence of each example of a batch."""
        moved = self.first_order.move(batch)
        steps = self.first_order.steps(moved)
        bulk = self.first_order.of(steps)
        exact = torch.stack(
            [
                self.null_losses - self.first_order.references.losses({n: p[i] for n, p in moved.items()}, self.subset)
                for i in range(len(steps))
            ]
        )
        return correct(self.first_order, bulk, steps, exact)


def correct(first_order: FirstOrderInfluence, bulk: list[Influence], steps: Tensor, exact: Tensor) -> list[Influence]:
    """Add the mean difference between exact and first order on a subset of the references.

    Args:
        first_order: what `bulk` comes from.
        bulk: first-order influence of each example.
        steps: their steps, shape (B, P).
        exact: exact differences on the first references of the sample, shape (B, S).
    """
    num_references, references = exact.shape[1], first_order.references
    weights = references.weights[first_order.sample[:num_references]].to(exact) * len(references)
    residuals = (exact - first_order.terms(steps)[:, :num_references]) * weights
    left = (1 - num_references / len(references)) ** 0.5  # nothing is left to chance when the subset is everything
    means = residuals.mean(dim=1)
    errors = (
        residuals.std(dim=1) / num_references**0.5 * left
        if num_references > 1
        else torch.full_like(means, float("nan"))
    )
    return [
        Influence(
            one.plain + mean,
            one.centred + mean,
            float("nan"),
            # The correction's own error adds to that of the reference set.
            float((one.centred_standard_error**2 + error**2) ** 0.5),
            f"first order, corrected on {num_references} references",
        )
        for one, mean, error in zip(bulk, means.tolist(), errors.tolist(), strict=True)
    ]
