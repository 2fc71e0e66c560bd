"""First-order influence: one reference gradient for all examples, and a dot product for each.

    centred(z) = L_R(theta_0) - L_R(theta_z) = <grad L_R(theta_0), theta_0 - theta_z> + O(|theta_0 - theta_z|^2)

where theta_0 is where a step with zero gradient leads and theta_z where the step on the example leads. The step is the
true update, with the optimizer's moments and the example's own gradient in both of them; only the reference loss is
taken to be linear between the two.

Shapes: B examples, S sampled references, P trained parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from montessori_pl.influence.functional import Batch
from montessori_pl.influence.per_example import GradientsFn
from montessori_pl.influence.references import ReferenceSet, without_autocast
from montessori_pl.influence.results import Influence
from montessori_pl.influence.updates import Params, UpdateRule


class FirstOrderInfluence:
    """The influence of whole batches of examples at the cost of one backward pass.

    Args:
        gradients: the gradient of each example of a batch.
        params: the trainable parameters, by name.
        update: the optimizer's rule, with its learning rate and moments.
        references: the reference set.
        sample: references whose own gradients are kept: standard errors and corrections are estimated on them.
        null_gain: what a step with zero gradient gains, where it is known; two passes over the references tell it.
    """

    def __init__(
        self,
        gradients: GradientsFn,
        params: Params,
        update: UpdateRule,
        references: ReferenceSet,
        sample: Sequence[int],
        null_gain: float | None = None,
    ) -> None:
        self.gradients, self.params, self.update, self.references = gradients, params, update, references
        self.null = update(params, {name: torch.zeros_like(param) for name, param in params.items()})
        self.gradient = _flat(references.gradient(self.null), 0)  # (P,)
        self.sample = list(sample)
        self.sample_gradients = self.gradient.new_empty(len(self.sample), len(self.gradient))
        """Gradients of the sampled references, shape (S, P)."""
        for place, index in enumerate(self.sample):  # row by row: memory may have room for one set of them only
            self.sample_gradients[place] = _flat(gradients(self.null, references.row(index)), 1)[0]
        if null_gain is None:
            null_gain, _ = references.average(references.losses(params) - references.losses(self.null))
        self.shift = null_gain
        """What a step with zero gradient gains: plain minus centred influence."""

    def __call__(self, batch: Batch) -> list[Influence]:
        """The influence of each example of a batch."""
        moved = self.move(batch)
        return self.of(self.steps(moved))

    def move(self, batch: Batch) -> Params:
        """Where the step on each example leads: parameters with a leading dimension B."""
        return self.update(self.params, self.gradients(self.params, batch))

    def steps(self, moved: Params) -> Tensor:
        """The way from each of these places back to the null step, shape (B, P)."""
        return _flat({name: self.null[name] - place for name, place in moved.items()}, 1)

    def of(self, steps: Tensor) -> list[Influence]:
        """The influence of steps (B, P)."""
        with without_autocast(self.params):
            values = steps @ self.gradient
        errors = self._errors(self.terms(steps))
        return [
            Influence(value + self.shift, value, float("nan"), error, "first order")
            for value, error in zip(values.tolist(), errors.tolist(), strict=True)
        ]

    def terms(self, steps: Tensor) -> Tensor:
        """First-order influence on each sampled reference, shape (B, S)."""
        with without_autocast(self.params):
            return steps @ self.sample_gradients.T

    def _errors(self, terms: Tensor) -> Tensor:
        """Standard error over the whole reference set, as the sample shows it, shape (B,)."""
        if terms.shape[1] < 2:
            return torch.full(terms.shape[:1], float("nan"))
        weights = self.references.weights[self.sample].to(terms)
        means = (terms * weights).sum(dim=1, keepdim=True) / weights.sum()
        spread = (weights**2 * (terms - means) ** 2).sum(dim=1)
        return (spread * len(self.references) / (len(self.sample) - 1)).sqrt()


def _flat(params: Params, batch_dims: int) -> Tensor:
    """All parameters in one row, behind their leading dimensions."""
    return torch.cat([tensor.flatten(batch_dims) for tensor in params.values()], dim=-1)
