"""Local data influence as a signal: how much one optimizer step on an example lowers the reference loss."""

from typing import Literal

import torch
from torch import Tensor

from montessori_pl.influence import SGD, AdamW, ExactInfluence, UpdateRule, response_losses, trainable_parameters
from montessori_pl.records import Example, Score
from montessori_pl.signals import ScoringData, SignalCallback
from montessori_pl.student import StudentModule


class InfluenceProbeCallback(SignalCallback):
    """Exact one-step influence on the parameters that the student trains.

    Nothing is copied and nothing is reloaded: the step is functional, and all probes share the frozen base.

    Args:
        lr: learning rate of the step; null takes the peak learning rate with which the student was trained.
        optimizer: the update rule of the step.
        moments: `warm` are those of AdamW at the end of the student's training, as in the paper; `fresh` are zero.
        centred: whether the value is measured from a step with zero gradient, so that warm moments do not shift it;
            otherwise from no step at all, as in the paper. Both are kept in the score's details.
        reference_batch_tokens: tokens of one batch of the reference pass, padding included.
    """

    unpinned = ("reference_batch_tokens",)

    def __init__(
        self,
        lr: float | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        moments: Literal["warm", "fresh"] = "warm",
        centred: bool = True,
        reference_batch_tokens: int = 8192,
    ) -> None:
        self.lr, self.optimizer, self.moments, self.centred = lr, optimizer, moments, centred
        self.reference_batch_tokens = reference_batch_tokens

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Measure the reference losses before any step and after a step with zero gradient.

        Raises:
            ValueError: the student is in half precision, or there is no learning rate.
        """
        _refuse_half_precision(student)
        batches, rows = data.reference_batches(self.reference_batch_tokens)
        on_device = [{name: tensor.to(student.device) for name, tensor in batch.items()} for batch in batches]
        # Terms are written in the order of the reference set, not of the batches.
        self._order = sorted(range(len(rows)), key=rows.__getitem__)
        parameters = trainable_parameters(student.network)
        self._influence = ExactInfluence(response_losses(student.network), parameters, self._update(student), on_device)

    def score(self, student: StudentModule, example: Example, batch: dict[str, Tensor], loss: Tensor) -> Score:
        """The influence of one example, in nats per response token of the reference set."""
        influence = self._influence(batch)
        base = self._influence.base_losses if not self.centred else self._influence.null_losses
        shift = base - self._influence.null_losses
        terms = (influence.differences + shift)[self._order].tolist()
        return Score(
            id=example.id,
            value=influence.centred if self.centred else influence.plain,
            standard_error=influence.centred_standard_error if self.centred else influence.plain_standard_error,
            method=f"exact influence, {self.optimizer}, {'centred' if self.centred else 'plain'}",
            details={
                "centred": influence.centred,
                "centred_standard_error": influence.centred_standard_error,
                "plain": influence.plain,
                "plain_standard_error": influence.plain_standard_error,
                "loss": loss.item(),
            },
            terms=tuple(float(f"{term:.7g}") for term in terms),
        )

    def _update(self, student: StudentModule) -> UpdateRule:
        if self.lr is None and student.optimizer_state is None:
            raise ValueError(
                "the influence probe needs a learning rate: the student was not trained, so that there is none to take "
                "over; set `lr` of InfluenceProbeCallback"
            )
        state = student.optimizer_state
        group = state["param_groups"][0] if state is not None else {}
        lr = float(self.lr if self.lr is not None else group["initial_lr"])
        if self.optimizer == "sgd":
            return SGD(lr=lr)
        if self.moments == "fresh" or state is None:
            return AdamW(lr=lr)
        return AdamW.from_optimizer_state(state, student.optimizer_names, lr=lr)


def _refuse_half_precision(student: StudentModule) -> None:
    # Also the frozen ones: an adapter in float32 on a base in bfloat16 moves losses that have two or three digits.
    for name, parameter in student.network.named_parameters():
        if parameter.is_floating_point() and torch.finfo(parameter.dtype).bits < 32:
            raise ValueError(
                f"the influence probe needs a student in float32, but {name} is in {parameter.dtype}; its loss "
                "differences would be noise: set trainer.precision to 32-true or to a mixed precision"
            )
