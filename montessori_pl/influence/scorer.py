"""The engine as a whole: from a model, an update rule and references to the influence of examples.

Five lines of Python score a data set:

    references = [batch, ...]                                      # input_ids, attention_mask, labels
    scorer = InfluenceScorer(model, AdamW(lr=1e-4), references)    # a Transformers model, with or without PEFT
    scorer.calibrate(batches[:16])                                 # chooses the cheapest method that can be trusted
    print(scorer.choice.reason)
    influences = [influence for batch in batches for influence in scorer(batch)]
"""

import math
import random
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import nn

from montessori_pl.bounds import checked
from montessori_pl.influence.control_variate import ControlVariateInfluence
from montessori_pl.influence.exact import ExactInfluence
from montessori_pl.influence.first_order import FirstOrderInfluence
from montessori_pl.influence.frozen import FrozenLayers, computing_in_float32
from montessori_pl.influence.functional import Batch, ResponseLosses, trainable_parameters
from montessori_pl.influence.memory import (
    activation_budget,
    default_budget,
    gradient_tokens,
    plan_memory,
    row_blocks,
)
from montessori_pl.influence.noise import EXAMPLES, Noise, measure_noise
from montessori_pl.influence.per_example import per_example_gradients
from montessori_pl.influence.references import Reduction, ReferenceSet
from montessori_pl.influence.results import Influence
from montessori_pl.influence.selection import (
    EXACT,
    Choice,
    choose,
    compare_above_rounding,
    compare_methods,
    subset_sizes,
)
from montessori_pl.influence.updates import UpdateRule
from montessori_pl.losses import evaluating

Method = Literal["auto", "exact", "first_order", "control_variate"]


@checked
class InfluenceScorer:
    """Scores examples by one method, or by the cheapest that a calibration sample trusts.

    Args:
        model: a causal language model of Transformers, with or without PEFT adapters; its trainable parameters move.
        update: the optimizer's rule, with its learning rate and moments.
        references: the reference set, in batches of any sizes, padded on the right.
        method: `auto` is exact until `calibrate` has chosen; `control_variate` corrects first order on
            `num_references` references.
        min_agreement: with `auto`, the rank correlation with exact influence that is asked for.
        num_references: references that the correction of `control_variate` looks at.
        refine: with an approximate method that has been calibrated, examples that may be the best or the worst of
            their group within so many standard deviations of the method's error are scored exactly; 0 never does.
        reduction: how the losses of the references are averaged.
        batch_tokens: tokens of one pass, padding included: what bounds the memory of activations. Passes with
            gradients have fewer where a large model would keep too much of them (`gradient_tokens`).
        sample: references whose own gradients are kept, for standard errors and corrections, as far as there is room.
        seed: of that sample.
        memory_budget: bytes that gradients may take; none takes half of what is free on the model's device. It decides
            how many references' gradients are kept and how many examples are moved together; with `auto`, exact is
            taken where not one example fits.

    Attributes:
        choice: what `calibrate` has found; none before.
        calibrated: exact influence of the examples of `calibrate`, in their order, where `auto` may use it.
        memory: what fits into the budget.
        noise: how much of exact influence is rounding; none before `calibrate`.

    Raises:
        ValueError: there is no such method or reduction, a method other than `auto` was asked for that does not fit
            into the budget, or the loss of a reference is no number.
    """

    def __init__(
        self,
        model: nn.Module,
        update: UpdateRule,
        references: Sequence[Batch],
        *,
        method: Method = "auto",
        min_agreement: float = 0.99,
        num_references: int = 8,
        refine: float = 0.0,
        reduction: Reduction = "examples",
        batch_tokens: int = 8192,
        sample: int = 32,
        seed: int = 0,
        memory_budget: int | None = None,
    ) -> None:
        self.model, self.method, self.min_agreement, self.refine = model, method, min_agreement, refine
        self.choice: Choice | None = None
        self.calibrated: list[Influence] = []
        self.noise: Noise | None = None
        loss, params = ResponseLosses(model), trainable_parameters(model)
        device = next(iter(params.values())).device
        budget = memory_budget if memory_budget is not None else default_budget(device)
        with self._measuring():
            frozen, cache_bytes = FrozenLayers(model, params), min(2**30, budget // 8)
            most = gradient_tokens(model, device, batch_tokens)
            self.references = ReferenceSet(loss, references, reduction, batch_tokens, frozen, cache_bytes, most)
            wanted = min(max(sample, num_references) if method == "control_variate" else sample, len(self.references))
            self.memory = plan_memory(params, budget, wanted, activation_budget(device))
            self._check_memory(num_references)
            self.exact = ExactInfluence(loss, params, update, self.references)
            self._check_finite()
            self._engine: Engine = self.exact
            if self._only_exact:
                return
            order = random.Random(seed).sample(range(len(self.references)), wanted)[: self.memory.kept_gradients]
            gradients = per_example_gradients(loss, params, most)
            self.first_order = FirstOrderInfluence(
                gradients, params, update, self.references, order, self.exact.null_gain
            )
            if method == "auto":
                self._counts = subset_sizes(len(order), len(self.references))
            else:
                self._counts = [min(num_references, len(order))] if method == "control_variate" else []
                self._engine = self._engine_for(self._counts[0] if self._counts else None)

    def _check_finite(self) -> None:
        """Refuse references whose loss is no number, for nothing could be measured on them."""
        for losses, when in ((self.exact.base_losses, "under this model"), (self.exact.null_losses, "after a step")):
            lost = (~losses.isfinite()).nonzero().flatten().tolist()
            if lost:
                raise ValueError(
                    f"the loss of {len(lost)} of {len(losses)} references is no number {when} (the first is number "
                    f"{lost[0] + 1}: {losses[lost[0]].item()}); did the training diverge, or is lr far too high?"
                )

    def calibrate(self, batches: Sequence[Batch], groups: Sequence[Hashable] | None = None) -> Choice | None:
        """Compare methods with exact influence on a sample and, with `auto`, choose one of them.

        Args:
            batches: the sample; some 50 examples are enough to tell .99 from .98.
            groups: for each example its prompt; none where each stands for itself.

        Returns:
            the choice; none where only exact is possible, which has nothing to be compared with.
        """
        groups = list(groups if groups is not None else range(sum(len(batch["labels"]) for batch in batches)))
        with self._measuring():
            if self._only_exact:
                some = [block for batch in batches for block in row_blocks(batch, 1)][:EXAMPLES]
                found = [self.exact(one)[0] for one in some]
                some, known, _ = _finite(some, found, range(len(found)))
                self.noise = measure_noise(self.exact, some, [one.centred for one in known])
                return None
            blocks = [block for batch in batches for block in row_blocks(batch, self.memory.examples_at_once)]
            measured = [influence for block in blocks for influence in self.exact(block)]
            blocks, truth, groups = _finite(blocks, measured, groups)
            self.noise = measure_noise(self.exact, blocks, [one.centred for one in truth])
            if self.method == "auto" and self._lost_in_rounding:
                candidates, stretch = compare_above_rounding(
                    self.exact, self.first_order, blocks, truth, groups, self.noise
                )
                self.choice = choose(candidates, self.min_agreement, stretch)
            else:
                candidates = compare_methods(self.first_order, blocks, truth, groups, self._counts)
                wanted = self._counts[0] if self._counts else None
                self.choice = (
                    choose(candidates, self.min_agreement)
                    if self.method == "auto"
                    else Choice(
                        next(one for one in candidates if one.num_references == wanted),
                        f"{self.method} was asked for",
                        tuple(candidates),
                    )
                )
        if self.method == "auto":
            chosen = self.choice.chosen
            self._engine = self.exact if chosen.method == EXACT else self._engine_for(chosen.num_references)
            self.calibrated = measured if chosen.method == EXACT or not self._lost_in_rounding else []
        return self.choice

    def warnings(self) -> list[str]:
        """What the user of these scores must know."""
        exact_is_used = self._engine is self.exact or self.method == "control_variate"
        warning = self.noise.warning(self.min_agreement) if self.noise is not None and exact_is_used else None
        return [warning] if warning is not None else []

    @property
    def _only_exact(self) -> bool:
        """Whether no other method is asked for, or has room."""
        return self.method == "exact" or self.memory.examples_at_once == 0

    @property
    def _lost_in_rounding(self) -> bool:
        """Whether exact influence is no measure of others, because it is rounding for the most part."""
        return self.noise is not None and self.noise.reliability < self.min_agreement

    def _check_memory(self, num_references: int) -> None:
        """Refuse a method that was asked for and does not fit."""
        memory = self.memory
        wanted = min(num_references, len(self.references)) if self.method == "control_variate" else 0
        if self.method in ("auto", "exact") or (memory.examples_at_once > 0 and memory.kept_gradients >= wanted):
            return
        raise ValueError(
            f"the influence method {self.method} does not fit into memory_budget: one copy of the trained parameters "
            f"takes {memory.copy} bytes, and {memory.budget} have room for {memory.examples_at_once} examples "
            f"and the gradients of {memory.kept_gradients} references; raise memory_budget, lower num_references, "
            "train an adapter, or take the method exact"
        )

    def __call__(self, batch: Batch, groups: Sequence[Hashable] | None = None) -> list[Influence]:
        """The influence of each example of a batch.

        Args:
            batch: the examples; all of a prompt's belong into one batch where `refine` is used.
            groups: for each example its prompt.
        """
        with self._measuring():
            size = self.memory.examples_at_once or len(batch["labels"])
            influences = [influence for block in row_blocks(batch, size) for influence in self._engine(block)]
            if self._engine is self.exact or self.choice is None or not self.refine or groups is None:
                return influences
            if self._lost_in_rounding:
                return influences
            # The bias counts too: exact scores lack it, and must not lose to approximate ones because of it.
            margin = self.refine * self.choice.chosen.error + abs(self.choice.chosen.bias)
            for index in undecided([one.centred for one in influences], groups, margin):
                (influences[index],) = self.exact({name: rows[index : index + 1] for name, rows in batch.items()})
        return influences

    def _engine_for(self, num_references: int | None) -> "Engine":
        return self.first_order if num_references is None else ControlVariateInfluence(self.first_order, num_references)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Evaluation mode and float32 arithmetic; afterwards the model is as it was."""
        with evaluating(self.model), computing_in_float32(self.model):
            yield


Engine = ExactInfluence | FirstOrderInfluence | ControlVariateInfluence


def _finite(
    blocks: Sequence[Batch], influences: Sequence[Influence], groups: Sequence[Hashable]
) -> tuple[list[Batch], list[Influence], list[Hashable]]:
    """The examples whose influence is a number, with it and their groups; with others nothing can be compared.

    Raises:
        ValueError: there are none.
    """
    kept = [place for place, one in enumerate(influences) if math.isfinite(one.centred)]
    if influences and not kept:
        raise ValueError(
            f"the influence of all {len(influences)} examples of the sample is no number (the first is "
            f"{influences[0].centred}); is lr far too high?"
        )
    left, first = [], 0
    for block in blocks:
        last = first + len(block["labels"])
        rows = [place - first for place in kept if first <= place < last]
        if rows:
            left.append({name: values[rows] for name, values in block.items()} if len(rows) < last - first else block)
        first = last
    return left, [influences[place] for place in kept], [groups[place] for place in kept]


def undecided(values: Sequence[float], groups: Sequence[Hashable], margin: float) -> list[int]:
    """The examples that may be the best or the worst of their group within a margin, where several may.

    Args:
        values: one score for each example.
        groups: for each example its group.
        margin: how much two scores must differ to be told apart.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    found: set[int] = set()
    for indices in members.values():
        best, worst = max(values[i] for i in indices), min(values[i] for i in indices)
        for rivals in (
            [i for i in indices if values[i] >= best - margin],
            [i for i in indices if values[i] <= worst + margin],
        ):
            found |= set(rivals) if len(rivals) > 1 else set()
    return sorted(found)
