"""Local data influence as a signal: how much one optimizer step on an example lowers the reference loss."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from montessori_pl.bounds import Bounds, NonNegativeFloat, PositiveFloat, PositiveInt, Share
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Score
from montessori_pl.estimates.estimate import StageEstimate, mean, passes
from montessori_pl.influence import (
    SGD,
    AdamW,
    ClippedGradient,
    Influence,
    InfluenceScorer,
    Method,
    Reduction,
    UpdateRule,
)
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.base import SignalCallback
from montessori_pl.signals.scoring_data import ScoringData


class InfluenceProbeCallback(SignalCallback):
    """One-step influence on the parameters that the student trains.

    Nothing is copied and nothing is reloaded: steps are functional, and all probes share the frozen base. An
    approximate method is compared with the exact one on a sample of the same examples, and the report of that stands
    beside the scores.

    The step is the optimizer's on the example alone. Three things make a training step another one: there the gradient
    is the mean over a batch, it is clipped (`gradient_clip_val`), and the learning rate follows a schedule.

    Args:
        lr: learning rate of the step; null takes the peak learning rate with which the student was trained on examples.
        optimizer: the update rule of the step.
        moments: `warm` are those of AdamW at the end of the student's training on examples, as in the paper, and zero
            where its last training was none, or on preferences; `fresh` are zero.
        gradient_clip_val: largest norm of an example's gradient, as `gradient_clip_val` of a training; null does not
            clip, as in the paper's code. Training clips the mean gradient of a batch, which is shorter than those
            of its examples.
        centred: whether the value is measured from a step with zero gradient, so that warm moments do not shift it;
            otherwise from no step at all, as in the paper. Both are kept in the score's details.
        method: `auto` takes the cheapest method whose agreement with exact is good enough, and exact where there are no
            more examples than choosing takes; `control_variate` is first order with a correction on `num_references`
            references.
        min_agreement: with `auto`, the rank correlation with exact influence that is asked for, beyond the sample.
        calibration_examples: examples of that sample; with `auto`, they keep their exact scores.
        num_references: references that the correction of `control_variate` looks at.
        refine: with an approximate method, examples that may be the best or the worst of their prompt within so many
            standard deviations of the method's error are scored exactly; 0 never does.
        reduction: how the losses of the references are averaged; `batches_of_8` is the original code's way, and with
            `losses` each counts by how large it is, so that what the student still lacks counts most.
        reference_batch_tokens: tokens of one pass over references or examples, padding included.
        memory_budget: bytes that gradients may take; null takes half of what is free on the device when scoring begins,
            or, on a CPU, of what the container may still take.
            What does not fit is computed in blocks. Where there is no room for the gradients of 32 references, fewer
            are kept, and standard errors and corrections are taken from these; the report says how many.
    """

    fingerprint_excludes = ("reference_batch_tokens", "memory_budget")
    needs_gradients = True

    def __init__(
        self,
        lr: Annotated[float, Bounds(gt=0, le=1000)] | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        moments: Literal["warm", "fresh"] = "warm",
        gradient_clip_val: PositiveFloat | None = None,
        centred: bool = True,
        method: Method = "auto",
        min_agreement: Share = 0.99,
        calibration_examples: PositiveInt = 48,
        num_references: PositiveInt = 8,
        refine: NonNegativeFloat = 2.0,
        reduction: Reduction = "examples",
        reference_batch_tokens: PositiveInt = 8192,
        memory_budget: PositiveInt | None = None,
    ) -> None:
        self.lr, self.optimizer, self.moments, self.centred = lr, optimizer, moments, centred
        self.method, self.min_agreement, self.calibration_examples = method, min_agreement, calibration_examples
        self.num_references, self.refine, self.reduction = num_references, refine, reduction
        self.reference_batch_tokens, self.gradient_clip_val = reference_batch_tokens, gradient_clip_val
        self.memory_budget = memory_budget

    def estimate(self, count: int, upper_bound: int, data: ScoringData, chat_template: ChatTemplate) -> StageEstimate:
        """A pass and a step for each example, and from one pass over the reference set to one for each example.

        How many there are depends on the method that is chosen, and on how many examples are scored exactly.
        """
        own = 2 * mean([len(rendered.input_ids) for _, rendered in data.items])
        references = sum(len(rendered.input_ids) for rendered in data.reference)
        only_exact = self.method == "exact" or (self.method == "auto" and count <= self.calibration_examples)
        some = count if only_exact else min(count, self.calibration_examples)
        one_by_one = self.method in ("auto", "exact") or self.refine > 0
        least = own * count + references * some
        highest = own * upper_bound + references * (upper_bound if one_by_one else some)
        longest = max((len(one.input_ids) for one in (*(own for _, own in data.items), *data.reference)), default=0)
        return StageEstimate(work=[passes("scoring", round(least), round(highest), longest)])

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Look at the references, and choose the method.

        Raises:
            ValueError: trained parameters are in half precision, there is no learning rate, or the method does not fit
                into the memory.
        """
        few = self.method == "auto" and len(data.items) <= self.calibration_examples
        self._scorer = InfluenceScorer(
            student.network,
            self._update(student),
            [_on(student.device, data.reference_batch())],
            method="exact" if few else self.method,
            min_agreement=self.min_agreement,
            num_references=self.num_references,
            refine=self.refine,
            reduction=self.reduction,
            batch_tokens=self.reference_batch_tokens,
            memory_budget=self.memory_budget or self.free_memory(student.device),
        )
        sample = data.sample(self.calibration_examples, seed=0)
        self._scorer.calibrate(
            [_on(student.device, data.collate(rows)) for rows in sample],
            [group for rows in sample for group in data.groups(rows)],
        )
        sampled = [data.items[row][0].id for rows in sample for row in rows]
        self._known = dict(zip(sampled, self._scorer.calibrated, strict=False))

    def report(self) -> dict[str, Any]:
        """The method that was chosen and why, with the agreement of all that were compared; rounding, and memory."""
        scorer = self._scorer
        return {
            **(scorer.choice.to_dict() if scorer.choice is not None else {}),
            **({"rounding": scorer.noise.to_dict()} if scorer.noise is not None else {}),
            "memory": scorer.memory.to_dict(),
            **({"warnings": warnings} if (warnings := scorer.warnings()) else {}),
        }

    def score_batch(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> list[Score]:
        """The influence of each example, in nats per response token of the reference set."""
        left = [row for row, example in enumerate(examples) if example.id not in self._known]
        found = dict(self._known)
        if left:
            rest = {name: rows[left] for name, rows in batch.items()} if len(left) < len(examples) else batch
            groups = [examples[row].prompt_id or examples[row].id for row in left]
            found |= zip([examples[row].id for row in left], self._scorer(rest, groups), strict=True)
        return [
            self._score(example, found[example.id], loss)
            for example, loss in zip(examples, losses.tolist(), strict=True)
        ]

    def _score(self, example: Example, influence: Influence, loss: float) -> Score:
        error = influence.centred_standard_error if self.centred else influence.plain_standard_error
        value = influence.centred if self.centred else influence.plain
        terms = influence.differences
        if terms is not None and not self.centred:
            terms = terms + (self._scorer.exact.base_losses - self._scorer.exact.null_losses)
        if terms is not None:  # whatever each reference weighs: their plain mean, and its error, are those of the value
            terms = value + self._scorer.references.weights * len(terms) * (terms.cpu().double() - value)
        return Score(
            id=example.id,
            value=value,
            standard_error=error if math.isfinite(error) else None,
            method=f"{influence.method} influence, {self.optimizer}, {'centred' if self.centred else 'plain'}",
            details={"centred": influence.centred, "plain": influence.plain, "loss": loss},
            terms=tuple(float(f"{term:.7g}") for term in terms.tolist()) if terms is not None else (),
        )

    def _update(self, student: StudentModule) -> UpdateRule:
        rule = self._rule(student)
        return rule if self.gradient_clip_val is None else ClippedGradient(rule, self.gradient_clip_val)

    def _rule(self, student: StudentModule) -> UpdateRule:
        if self.lr is None and student.optimizer_state is None:
            raise ValueError(
                f"the influence probe needs a learning rate: {student.why_no_state}, so that there is none to take "
                "over; set `lr` of InfluenceProbeCallback"
            )
        state = student.optimizer_state
        group = state["param_groups"][0] if state is not None else {}
        lr = float(self.lr if self.lr is not None else group["initial_lr"])
        if self.optimizer == "sgd":
            return SGD(lr=lr)
        if self.moments == "fresh" or state is None:
            return AdamW(lr=lr)
        return AdamW.from_optimizer_state(state, student.optimizer_names, lr=lr, device=student.device)


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
