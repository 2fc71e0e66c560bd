"""First order with a correction: unbiased over subsets, exact with all references, and honest about its error."""

import copy
import itertools
from collections.abc import Sequence

import pytest
import torch
from influence_models import collate, make_examples, make_model, reference_set, warm_adamw

from montessori_pl.influence import (
    ControlVariateInfluence,
    ExactInfluence,
    FirstOrderInfluence,
    Influence,
    ReferenceSet,
    ResponseLosses,
    per_example_gradients,
    trainable_parameters,
)
from montessori_pl.influence.control_variate import correct

PROBES = collate(make_examples(4, seed=1))
REFERENCES = make_examples(6, seed=2)
LARGE = 0.1
"""A step so large that first order is visibly wrong."""


class World:
    """One model, a large step and a reference set, and the methods that look at them."""

    def __init__(self, references: ReferenceSet, loss: ResponseLosses) -> None:
        self.params = trainable_parameters(loss.model)
        self.update = warm_adamw(self.params, LARGE)
        self.gradients = per_example_gradients(loss, self.params)
        self.references = references
        self.exact = ExactInfluence(loss, self.params, self.update, references)(PROBES)

    def first_order(self, sample: Sequence[int]) -> FirstOrderInfluence:
        return FirstOrderInfluence(self.gradients, self.params, self.update, self.references, sample)

    def corrected(self, subset: Sequence[int]) -> list[Influence]:
        return ControlVariateInfluence(self.first_order(subset), len(subset))(PROBES)


def make_world(num_references: int = len(REFERENCES), reduction: str = "examples") -> World:
    model = make_model("llama", "lora", torch.float64)
    examples = REFERENCES if num_references == len(REFERENCES) else make_examples(num_references, seed=9)
    return World(reference_set(model, examples, reduction=reduction), ResponseLosses(model))


def centred(influences: Sequence[Influence]) -> torch.Tensor:
    return torch.tensor([one.centred for one in influences], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["examples", "tokens"])
def test_it_is_unbiased_over_all_subsets(reduction: str) -> None:
    """The mean over all 15 subsets of two of six references is exact, for plain and centred influence."""
    world = make_world(reduction=reduction)
    runs = [world.corrected(subset) for subset in itertools.combinations(range(6), 2)]
    values = torch.stack([centred(run) for run in runs])

    assert len(runs) == 15
    assert (centred(world.first_order([0])(PROBES)) - centred(world.exact)).abs().max() > 1e-3, "to be corrected"
    assert values.std(dim=0).max() > 1e-4, "a subset is a matter of chance"
    torch.testing.assert_close(values.mean(dim=0), centred(world.exact), rtol=0, atol=1e-11)
    plain = torch.tensor([[one.plain for one in run] for run in runs], dtype=torch.float64).mean(dim=0)
    expected = torch.tensor([one.plain for one in world.exact], dtype=torch.float64)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("reduction", ["examples", "tokens", "batches_of_8"])
def test_all_references_make_it_exact(reduction: str) -> None:
    """In any order; and the correction's error vanishes, so that the reference set's own is left."""
    world = make_world(num_references=11, reduction=reduction)
    order = [3, 0, 10, 5, 9, 4, 2, 8, 1, 7, 6]
    found = world.corrected(order)

    torch.testing.assert_close(centred(found), centred(world.exact), rtol=0, atol=1e-11)
    bulk = world.first_order(order)(PROBES)
    for one, other in zip(found, bulk, strict=True):
        assert one.centred_standard_error == pytest.approx(other.centred_standard_error, rel=1e-12)
        assert one.method == "first order, corrected on 11 references"


def test_correction_by_hand() -> None:
    """Tokens as weights w: the mean of R * w * (exact - first order) on references 4 and 1, added to first order."""
    world = make_world(reduction="tokens")
    first = world.first_order([4, 1])
    terms = first.terms(first.steps(first.move(PROBES)))
    weights = world.references.weights
    for i, (one, truth) in enumerate(zip(world.corrected([4, 1]), world.exact, strict=True)):
        assert truth.differences is not None
        residuals = [6 * weights[r].item() * (truth.differences[r] - terms[i, k]).item() for k, r in enumerate([4, 1])]
        assert one.centred == pytest.approx(first(PROBES)[i].centred + sum(residuals) / 2, abs=1e-12)
        # Two residuals a and b: standard deviation |a - b|/sqrt(2), over sqrt(2), times sqrt(1 - 2/6).
        error = abs(residuals[0] - residuals[1]) / 2 * (2 / 3) ** 0.5
        bulk = first(PROBES)[i].centred_standard_error
        assert one.centred_standard_error == pytest.approx((bulk**2 + error**2) ** 0.5, rel=1e-9)


@pytest.mark.slow
def test_a_larger_subset_is_closer_and_says_so() -> None:
    """300 draws of 2, 6 and 18 of 24 references: the error falls, and the claimed one is the true one within 15%."""
    world = make_world(num_references=24)
    first = world.first_order(range(24))
    steps, bulk = first.steps(first.move(PROBES)), first(PROBES)
    exact = torch.stack([one.differences for one in world.exact if one.differences is not None])
    own = torch.tensor([one.centred_standard_error for one in bulk], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    true, claimed = [], []
    for size in (2, 6, 18):
        runs = []
        for _ in range(300):
            drawn = copy.copy(first)
            order = torch.randperm(24, generator=generator)
            drawn.sample, drawn.sample_gradients = order.tolist(), first.sample_gradients[order]
            runs.append(correct(drawn, bulk, steps, exact[:, order[:size]]))
        errors = torch.stack([centred(run) - centred(world.exact) for run in runs])
        total = torch.tensor([[one.centred_standard_error for one in run] for run in runs], dtype=torch.float64)
        true.append(errors.square().mean().sqrt().item())
        claimed.append((total**2 - own**2).mean().sqrt().item())

    assert true[0] > 1.5 * true[1] > 1.5**2 * true[2] > 0
    assert true == pytest.approx(claimed, rel=0.15)
    assert (centred(bulk) - centred(world.exact)).square().mean().sqrt() > true[2], "a correction that helps"


def test_one_reference_does_not_know_its_error() -> None:
    (one, *_) = make_world().corrected([2])

    assert one.centred_standard_error != one.centred_standard_error  # nan
    assert one.centred == one.centred
