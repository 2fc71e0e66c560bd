"""Local data influence by its definition: take one step on an example, look at all references again.

    influence(z) = L_R(theta) - L_R(theta - U(grad loss(z; theta)))          nats per token; positive helps

Warm moments move the parameters even where the gradient is zero. This common displacement shifts the influence of every
example by the same constant, and the centred influence measures from there:

    centred(z) = L_R(theta - U(0)) - L_R(theta - U(grad loss(z; theta)))

Knows parameters, losses and update rules as functions; nothing about models.

Shapes: T tokens, R reference examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from montessori_pl.influence.functional import Batch, LossFn
from montessori_pl.influence.updates import Params, UpdateRule


@dataclass(frozen=True)
class Influence:
    """How much one step on an example lowers the reference loss, in nats per token; positive helps."""

    plain: float
    """Reference loss before the step minus the one after it."""
    centred: float
    """Reference loss after a step with zero gradient minus the one after the step on the example."""
    plain_standard_error: float
    """Of `plain`, paired over reference examples; nan for a single one."""
    centred_standard_error: float
    """Of `centred`, paired over reference examples; nan for a single one."""
    differences: Tensor
    """The terms whose mean is `centred`, one per reference example, shape (R,)."""


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
    return update(params, grad(lambda moving: loss(moving, example).squeeze(0))(params))


class ExactInfluence:
    """The influence of examples by one functional step and a pass over the whole reference set each.

    What all examples share is computed once, here: the reference losses before any step and after a step with zero
    gradient. The parameters are never changed. Autocast is switched off throughout.

    Attributes:
        base_losses: loss of each reference example before any step, shape (R,).
        null_losses: loss of each reference example after a step with zero gradient, shape (R,).

    Raises:
        ValueError: there are no references, or the parameters are in half precision.
    """

    def __init__(self, loss: LossFn, params: Params, update: UpdateRule, references: Sequence[Batch]) -> None:
        """Measure the zero points.

        Args:
            loss: mean next-token loss of each example in nats.
            params: the trainable parameters, by name, in float32 or better.
            update: the optimizer's rule, with its learning rate and moments.
            references: the reference set, in batches of any sizes.
        """
        if not references:
            raise ValueError("the reference set is empty, so that there is no loss to lower")
        if halves := [name for name, param in params.items() if torch.finfo(param.dtype).bits < 32]:
            raise ValueError(
                f"exact influence needs parameters in float32, but {halves[0]} is in {params[halves[0]].dtype}: at "
                "a learning rate of 5e-6 its loss differences are noise (Spearman .23 with float64 in bfloat16)"
            )
        self._loss = loss
        self._params = params
        self._update = update
        self._references = references
        self._device_type = next(iter(params.values())).device.type
        self.base_losses = self._reference_losses(params)
        no_gradient = {name: torch.zeros_like(param) for name, param in params.items()}
        self.null_losses = self._reference_losses(update(params, no_gradient))

    def __call__(self, example: Batch) -> Influence:
        """Measure the influence of one example, shape (1, T)."""
        with torch.autocast(self._device_type, enabled=False):
            moved = one_step(self._loss, self._params, example, self._update)
        losses = self._reference_losses(moved)
        # Subtract reference by reference before summing: nearby floats subtract exactly, sums of them do not.
        plain, centred = self.base_losses - losses, self.null_losses - losses
        return Influence(
            plain=plain.double().mean().item(),
            centred=centred.double().mean().item(),
            plain_standard_error=_standard_error(plain),
            centred_standard_error=_standard_error(centred),
            differences=centred,
        )

    @torch.no_grad()
    def _reference_losses(self, params: Params) -> Tensor:
        """The loss of each reference example under these parameters, shape (R,)."""
        with torch.autocast(self._device_type, enabled=False):
            return torch.cat([self._loss(params, batch) for batch in self._references])


def _standard_error(differences: Tensor) -> float:
    """Standard error of the mean of (R,) differences, in float64; nan for a single one."""
    if len(differences) == 1:
        return float("nan")  # what `std` gives too, but with a warning
    return (differences.double().std() / len(differences) ** 0.5).item()
