"""Update rules against the optimizers that they repeat."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from montessori_pl.influence import SGD, AdamW, ClippedGradient, Params, UpdateRule

NAMES = ["weight", "bias", "scale"]
SHAPES = [(4, 3), (4,), ()]

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def random_params(seed: int, dtype: torch.dtype = torch.float32) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in zip(NAMES, SHAPES, strict=True)
    }


def take_step(optimizer: torch.optim.Optimizer, leaves: list[Tensor], grads: Params) -> None:
    for leaf, grad in zip(leaves, grads.values(), strict=True):
        leaf.grad = grad.clone()
    optimizer.step()


def leaves_of(params: Params) -> list[Tensor]:
    return [param.clone().requires_grad_() for param in params.values()]


def trained_adamw(leaves: list[Tensor], groups: Any = None, **options: Any) -> torch.optim.AdamW:
    """An AdamW that has taken three steps; `leaves` are where these led."""
    optimizer = torch.optim.AdamW(groups or leaves, foreach=False, **options)
    for seed in range(3):
        take_step(optimizer, leaves, random_params(100 + seed, leaves[0].dtype))
    return optimizer


def assert_same(moved: Params, leaves: list[Tensor]) -> None:
    for param, leaf in zip(moved.values(), leaves, strict=True):
        assert torch.equal(param, leaf.detach())


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_equals_torch_bit_by_bit(weight_decay: float) -> None:
    params, grads = random_params(0), random_params(1)
    leaves = leaves_of(params)
    take_step(torch.optim.SGD(leaves, lr=0.1, weight_decay=weight_decay, foreach=False), leaves, grads)

    assert_same(SGD(lr=0.1, weight_decay=weight_decay)(params, grads), leaves)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fresh_adamw_equals_torch_bit_by_bit(weight_decay: float) -> None:
    params, grads = random_params(0), random_params(1)
    leaves = leaves_of(params)
    optimizer = torch.optim.AdamW(leaves, 0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay, foreach=False)
    take_step(optimizer, leaves, grads)

    update = AdamW(lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    assert_same(update(params, grads), leaves)


def test_default_settings_are_those_of_torch_but_for_the_weight_decay() -> None:
    params, grads = random_params(0), random_params(1)
    leaves = leaves_of(params)
    take_step(torch.optim.AdamW(leaves, lr=0.1, weight_decay=0.0, foreach=False), leaves, grads)

    assert_same(AdamW(lr=0.1)(params, grads), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_from_an_optimizer_state_takes_the_optimizers_next_step(weight_decay: float, dtype: torch.dtype) -> None:
    leaves = leaves_of(random_params(0, dtype))
    optimizer = trained_adamw(leaves, lr=0.01, betas=(0.8, 0.95), weight_decay=weight_decay)
    params = {name: leaf.detach().clone() for name, leaf in zip(NAMES, leaves, strict=True)}
    update = AdamW.from_optimizer_state(copy.deepcopy(optimizer.state_dict()), NAMES)
    grads = random_params(1, dtype)
    take_step(optimizer, leaves, grads)

    assert update.moments is not None
    assert (update.lr, update.moments.step) == (0.01, 3)
    assert_same(update(params, grads), leaves)


def test_parameters_may_be_spread_over_several_groups() -> None:
    leaves = leaves_of(random_params(0))
    groups = [{"params": []}, {"params": leaves[:1]}, {"params": leaves[1:]}]
    optimizer = trained_adamw(leaves, groups, lr=0.01)
    params = {name: leaf.detach().clone() for name, leaf in zip(NAMES, leaves, strict=True)}
    update = AdamW.from_optimizer_state(copy.deepcopy(optimizer.state_dict()), NAMES)
    grads = random_params(1)
    take_step(optimizer, leaves, grads)

    assert_same(update(params, grads), leaves)


def test_a_given_learning_rate_replaces_the_one_in_the_state() -> None:
    leaves = leaves_of(random_params(0))
    groups = [{"params": leaves[:1], "lr": 0.5}, {"params": leaves[1:]}]
    state = trained_adamw(leaves, groups, lr=0.01).state_dict()

    assert AdamW.from_optimizer_state(state, NAMES, lr=0.25).lr == 0.25


def test_groups_that_differ_are_refused() -> None:
    leaves = leaves_of(random_params(0))
    groups = [{"params": leaves[:1], "lr": 0.5}, {"params": leaves[1:]}]
    state = trained_adamw(leaves, groups, lr=0.01).state_dict()

    with pytest.raises(ValueError, match=r"one lr for all parameters, but the optimizer state has \[0.5, 0.01\]"):
        AdamW.from_optimizer_state(state, NAMES)


def test_a_parameter_without_moments_is_named() -> None:
    leaves = leaves_of(random_params(0))
    optimizer = torch.optim.AdamW(leaves)
    leaves[0].grad = torch.ones_like(leaves[0])
    optimizer.step()

    with pytest.raises(ValueError, match=r"no moments for 2 of 3 parameters \(first: bias\)"):
        AdamW.from_optimizer_state(optimizer.state_dict(), NAMES)


def test_a_wrong_number_of_names_is_refused() -> None:
    state = trained_adamw(leaves_of(random_params(0))).state_dict()

    with pytest.raises(ValueError, match="has 3 parameters, but 2 names were given"):
        AdamW.from_optimizer_state(state, NAMES[:2])


@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_variants_of_adamw_are_refused(option: str) -> None:
    state = trained_adamw(leaves_of(random_params(0)), **{option: True}).state_dict()

    with pytest.raises(ValueError, match="amsgrad or maximize"):
        AdamW.from_optimizer_state(state, NAMES)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rule", [SGD, AdamW])
def test_a_learning_rate_of_zero_moves_nothing(rule: type[SGD] | type[AdamW], weight_decay: float) -> None:
    params = random_params(0)
    update: UpdateRule = rule(lr=0.0, weight_decay=weight_decay)
    moved = update(params, random_params(1))

    assert all(torch.equal(moved[name], params[name]) for name in NAMES)


def test_no_argument_and_no_moment_is_changed() -> None:
    state = trained_adamw(leaves_of(random_params(0)), lr=0.01).state_dict()
    params, grads = random_params(0), random_params(1)
    before = copy.deepcopy((state, params, grads))
    AdamW.from_optimizer_state(state, NAMES)(params, grads)
    SGD(lr=0.1, weight_decay=0.1)(params, grads)

    torch.testing.assert_close((state, params, grads), before, rtol=0, atol=0)


def test_clipping_is_that_of_torch() -> None:
    """Of the norm over all parameters, each example alone; short gradients stay as they are, to the last digit."""
    params = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(())}
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(5, *param.shape, generator=generator) for name, param in params.items()}
    for row, factor in enumerate((1e-3, 1.0, 1.0, 10.0, 0.0)):
        for grad in grads.values():
            grad[row] *= factor
    update = ClippedGradient(SGD(lr=1.0), max_norm=0.5)
    together = update(params, grads)

    for row in range(5):
        leaves = [torch.zeros_like(param).requires_grad_() for param in params.values()]
        for leaf, grad in zip(leaves, grads.values(), strict=True):
            leaf.grad = grad[row].clone()
        norm = torch.nn.utils.clip_grad_norm_(leaves, 0.5)
        assert (norm > 0.5) == (row in (1, 2, 3))
        alone = update(params, {name: grad[row] for name, grad in grads.items()})
        for (name, moved), leaf in zip(alone.items(), leaves, strict=True):
            assert leaf.grad is not None
            torch.testing.assert_close(moved, -leaf.grad, rtol=1e-6, atol=0)
            torch.testing.assert_close(together[name][row], moved, rtol=1e-6, atol=0)
    short = {name: grad[0] for name, grad in grads.items()}
    assert all(torch.equal(-moved, short[name]) for name, moved in update(params, short).items())
