"""First-order influence against its readable twin, forward-mode differentiation, and against the exact one."""

import itertools
from dataclasses import replace

import pytest
import torch
from influence_models import collate, make_examples, make_model, reference_set, warm_adamw
from torch import nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from montessori_pl.influence import (
    SGD,
    AdamW,
    ExactInfluence,
    FirstOrderInfluence,
    ReferenceSet,
    ResponseLosses,
    UpdateRule,
    one_step,
    per_example_gradients,
    trainable_parameters,
)
from montessori_pl.stats.correlation import spearman

PROBES = make_examples(5, seed=1)
REFERENCES = make_examples(9, seed=2)
RULES = ["warm adamw", "fresh adamw", "sgd"]


def rule(name: str, model: nn.Module, lr: float) -> UpdateRule:
    if name == "sgd":
        return SGD(lr=lr, weight_decay=0.1)
    if name == "fresh adamw":
        return AdamW(lr=lr, weight_decay=0.1)
    return warm_adamw(trainable_parameters(model), lr)


def engines(
    model: nn.Module, update: UpdateRule, references: ReferenceSet | None = None, sample: int = len(REFERENCES)
) -> tuple[FirstOrderInfluence, ExactInfluence]:
    loss, params = ResponseLosses(model), trainable_parameters(model)
    references = references or reference_set(model, REFERENCES)
    first = FirstOrderInfluence(per_example_gradients(loss, params), params, update, references, range(sample))
    return first, ExactInfluence(loss, params, update, references)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["examples", "tokens"])
@pytest.mark.parametrize("name", RULES)
def test_it_is_the_derivative_along_the_true_step(name: str, reduction: str) -> None:
    """d/dt of the reference loss from the null step towards the step on the example, by `torch.func.jvp`."""
    model = make_model("llama", "lora", torch.float64)
    update, loss, params = rule(name, model, 0.1), ResponseLosses(model), trainable_parameters(model)
    references = reference_set(model, REFERENCES, reduction=reduction)
    first, exact = engines(model, update, references)
    null = update(params, {n: torch.zeros_like(p) for n, p in params.items()})
    batch = collate(REFERENCES)

    for example, influence in zip(PROBES, first(collate(PROBES)), strict=True):
        moved = one_step(loss, params, collate([example]), update)
        towards = {n: moved[n] - null[n] for n in params}
        with sdpa_kernel(SDPBackend.MATH):  # which has a forward derivative
            _, slopes = jvp(lambda at: loss(at, batch), (null,), (towards,))
        assert influence.centred == pytest.approx(-(references.weights * slopes).sum().item(), rel=1e-9)
        shift = influence.plain - influence.centred
        assert shift == pytest.approx(references.average(exact.base_losses - exact.null_losses)[0], abs=1e-14)
        assert abs(shift) > 1e-5
        assert influence.method == "first order"
        assert influence.differences is None


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["lora", "all"])
@pytest.mark.parametrize("name", ["sgd", "warm adamw", "fresh adamw"])
def test_its_error_is_of_second_order(name: str, trained: str) -> None:
    """Half the step, a quarter of the error."""
    model = make_model("llama", trained, torch.float64)
    errors = []
    for lr in ({"sgd": 1e-3}.get(name, 1e-4) / 2**i for i in range(3)):
        first, exact = engines(model, rule(name, model, lr))
        pairs = zip(first(collate(PROBES)), exact(collate(PROBES)), strict=True)
        errors.append(torch.tensor([one.centred - other.centred for one, other in pairs]))
    for larger, smaller in itertools.pairwise(errors):
        assert larger.abs().max() > 1e-9
        ratio = (larger.norm() / smaller.norm()).item()
        assert 3.6 < ratio < 4.4


@pytest.mark.parametrize("name", RULES)
def test_a_learning_rate_of_zero_gives_exactly_zero(name: str) -> None:
    model = make_model("llama", "lora", torch.float32)
    for influence in engines(model, rule(name, model, 0.0))[0](collate(PROBES)):
        assert (influence.plain, influence.centred, influence.centred_standard_error) == (0.0, 0.0, 0.0)


def test_the_null_step_is_subtracted() -> None:
    """Warm moments move far even without a gradient; an example whose gradient adds nothing has no influence."""
    model = make_model("llama", "lora", torch.float64)
    update = warm_adamw(trainable_parameters(model), 1e-2)
    first, _ = engines(model, update)
    still = {n: torch.zeros(2, *p.shape, dtype=p.dtype) for n, p in first.params.items()}
    moved = update(first.params, still)

    assert max((place - first.params[n]).abs().max() for n, place in moved.items()) > 1e-3
    assert not first.steps(moved).any()
    assert [one.centred for one in first.of(first.steps(moved))] == [0.0, 0.0]
    assert first.of(first.steps(moved))[0].plain == first.shift != 0


def test_moments_see_the_examples_own_gradient() -> None:
    """The step of a batch is the step of each example by itself."""
    model = make_model("llama", "lora", torch.float64)
    update, loss = warm_adamw(trainable_parameters(model), 1e-2), ResponseLosses(model)
    first, _ = engines(model, update)
    moved = first.move(collate(PROBES))
    for i, example in enumerate(PROBES):
        expected = one_step(loss, first.params, collate([example]), update)
        for n, place in moved.items():
            torch.testing.assert_close(place[i], expected[n], rtol=0, atol=1e-13)


@pytest.mark.parametrize("reduction", ["examples", "tokens", "batches_of_8"])
def test_its_standard_error_is_that_of_exact(reduction: str) -> None:
    """At a small step, seen on all references."""
    model = make_model("llama", "lora", torch.float64)
    references = reference_set(model, REFERENCES, reduction=reduction)
    first, exact = engines(model, rule("fresh adamw", model, 1e-5), references)
    for one, other in zip(first(collate(PROBES)), exact(collate(PROBES)), strict=True):
        assert one.centred_standard_error == pytest.approx(other.centred_standard_error, rel=1e-2)
        assert one.plain_standard_error != one.plain_standard_error  # nan: not known


@pytest.mark.slow
def test_its_standard_error_on_a_sample() -> None:
    """Half of the references tell the spread of all, within what so few can; one tells nothing."""
    model = make_model("llama", "lora", torch.float64)
    references = reference_set(model, make_examples(40, seed=4))
    update = rule("fresh adamw", model, 1e-5)
    half, whole = (engines(model, update, references, sample)[0](collate(PROBES)) for sample in (20, 40))
    for one, other in zip(half, whole, strict=True):
        assert one.centred == other.centred
        assert one.centred_standard_error == pytest.approx(other.centred_standard_error, rel=0.4)
    alone = engines(model, update, references, 1)[0](collate(PROBES))[0].centred_standard_error
    assert alone != alone  # nan


def test_ranking_in_float32_is_that_of_float64() -> None:
    probes = collate(make_examples(24, seed=8))
    found = []
    for dtype in (torch.float32, torch.float64):
        model = make_model("llama", "lora", dtype)
        found.append([one.centred for one in engines(model, rule("warm adamw", model, 1e-3))[0](probes)])

    assert spearman(*found) >= 0.999


def test_autocast_has_no_say() -> None:
    model = make_model("llama", "lora", torch.float32)
    first, _ = engines(model, rule("fresh adamw", model, 1e-3))
    expected = [replace(one, plain_standard_error=0) for one in first(collate(PROBES))]
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = engines(model, rule("fresh adamw", model, 1e-3))
        for engine in (first, inside):
            assert [replace(one, plain_standard_error=0) for one in engine(collate(PROBES))] == expected
