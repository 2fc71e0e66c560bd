"""Local data influence by its definition: take one step on an example, look at all references again.

    influence(z) = L_R(theta) - L_R(theta - U(grad loss(z; theta)))          nats per token; positive helps

Warm moments move the parameters even where the gradient is zero. This common displacement shifts the influence of every
example by the same constant, and the centred influence measures from there:

    centred(z) = L_R(theta - U(0)) - L_R(theta - U(grad loss(z; theta)))

Knows parameters, losses and update rules as functions; nothing about models.

Shapes: B examples, T tokens, R reference examples.
"""

import torch

from montessori_pl.influence.functional import Batch, LossFn, gradient, unpadded
from montessori_pl.influence.references import ReferenceSet, without_autocast
from montessori_pl.influence.results import Influence
from montessori_pl.influence.updates import Params, UpdateRule


def one_step(loss: LossFn, params: Params, example: Batch, update: UpdateRule) -> Params:
    """Move the parameters by one update on one example.

    ``loss(params, example)`` is differentiated once; neither argument is changed.

    Args:
        loss: mean next-token loss of each example in nats.
        params: the trainable parameters, by name.
        example: one example, shape (1, T).
        update: the optimizer's rule, with its learning rate and moments.

    Returns:
        The moved parameters, same names, shapes and dtypes.
    """
    with without_autocast(params):
        return update(params, gradient(loss, params, example))


class ExactInfluence:
    """The influence of examples by one functional step and a pass over the whole reference set each.

    What all examples share is computed once, here: the reference losses before any step and after a step with zero
    gradient. The parameters are never changed. Autocast is switched off throughout.

    Args:
        loss: mean next-token loss of each example in nats.
        params: the trainable parameters, by name, in float32 or better.
        update: the optimizer's rule, with its learning rate and moments.
        references: the reference set.

    Attributes:
        base_losses: loss of each reference example before any step, shape (R,).
        null_losses: loss of each reference example after a step with zero gradient, shape (R,).
        null_gain: what a step with zero gradient gains: plain minus centred influence.

    Raises:
        ValueError: the parameters are in half precision.
    """

    def __init__(self, loss: LossFn, params: Params, update: UpdateRule, references: ReferenceSet) -> None:
        if halves := [name for name, param in params.items() if torch.finfo(param.dtype).bits < 32]:
            raise ValueError(
                f"exact influence needs parameters in float32, but {halves[0]} is in {params[halves[0]].dtype}: "
                "at that precision steps are lost and loss differences are noise (benchmarks/influence.py shows how "
                "much); keep the trained parameters in float32"
            )
        self.loss, self.params, self.update, self.references = loss, params, update, references
        self.null = update(params, {name: torch.zeros_like(param) for name, param in params.items()})
        self.base_losses = references.losses(params)
        references.weigh(self.base_losses)
        self.null_losses = references.losses(self.null)
        self.null_gain, _ = references.average(self.base_losses - self.null_losses)

    def __call__(self, batch: Batch) -> list[Influence]:
        """The influence of each example of a batch."""
        return [self.after(one_step(self.loss, self.params, example, self.update)) for example in unpadded(batch)]

    def after(self, moved: Params) -> Influence:
        """The influence of a step that has led to these parameters."""
        losses = self.references.losses(moved)
        # Subtract reference by reference before summing: nearby floats subtract exactly, sums of them do not.
        plain, plain_error = self.references.average(self.base_losses - losses)
        centred, centred_error = self.references.average(self.null_losses - losses)
        return Influence(plain, centred, plain_error, centred_error, "exact", self.null_losses - losses)
