"""Properties that hold for any model and any data: shapes and counts are drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from influence_models import Tokens, collate, make_model, slow_losses
from torch import Tensor, nn

from montessori_pl.influence import (
    SGD,
    AdamW,
    ExactInfluence,
    FirstOrderInfluence,
    Influence,
    ReferenceSet,
    ResponseLosses,
    UpdateRule,
    agreement,
    one_by_one,
    per_example_gradients,
    trainable_parameters,
)
from montessori_pl.stats.correlation import spearman_bound

quickly = settings(max_examples=15, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class World:
    """A model, the optimizer of its training, and data."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    update: UpdateRule
    probes: list[Tokens]
    references: list[Tokens]
    batch_tokens: int


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any small architecture, size, adapter, optimizer, and examples of any lengths."""
    vocabulary, heads = draw(st.integers(8, 60)), draw(st.integers(1, 3))
    rank = draw(st.integers(0, 4))
    model = make_model(
        draw(st.sampled_from(["llama", "gpt_neox"])),
        "lora" if rank else "all",
        torch.float64,
        {"r": rank} if rank else {},
        vocab_size=vocabulary,
        hidden_size=heads * 2 * draw(st.integers(2, 4)),
        intermediate_size=draw(st.integers(3, 30)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
    )
    params = [param for param in model.parameters() if param.requires_grad]
    name, lr = draw(st.sampled_from(["sgd", "fresh", "warm"])), draw(st.sampled_from([1e-3, 1e-2]))
    update: UpdateRule
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(params, lr=10 * lr)
        update = SGD(lr=10 * lr)
    else:
        optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=0.1)
        update = AdamW(lr=lr, weight_decay=0.1)
    if name == "warm":
        for seed in range(2):
            optimizer.zero_grad()
            slow_losses(model, [example_of(seed, 7, 2, vocabulary)]).sum().backward()
            optimizer.step()
        optimizer.zero_grad()
        update = AdamW.from_optimizer_state(optimizer.state_dict(), list(trainable_parameters(model)))
    lengths = st.tuples(st.integers(0, 2**20), st.integers(2, 12), st.integers(1, 11))
    probes, references = (
        [example_of(seed, length, min(prompt, length - 1), vocabulary) for seed, length, prompt in draw(shapes)]
        for shapes in (st.lists(lengths, min_size=1, max_size=4), st.lists(lengths, min_size=1, max_size=9))
    )
    return World(model, optimizer, update, probes, references, draw(st.integers(1, 80)))


def example_of(seed: int, length: int, num_prompt: int, vocabulary: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randint(vocabulary, (length,), generator=generator).tolist(), num_prompt)


def exact(world: World, probes: Sequence[Tokens], references: Sequence[Tokens], batch_tokens: int) -> list[Influence]:
    loss = ResponseLosses(world.model)
    held = ReferenceSet(loss, [collate(references)], batch_tokens=batch_tokens)
    return ExactInfluence(loss, trainable_parameters(world.model), world.update, held)(collate(probes))


def brute_force(world: World) -> Tensor:
    """Snapshot, a real step, all references one by one, restore; centred differences (B, R)."""
    params = [param for param in world.model.parameters() if param.requires_grad]
    snapshot = [param.detach().clone() for param in params]
    # Fresh copies each time: `load_state_dict` keeps the step counter's memory.
    state = world.optimizer.state_dict()

    def losses_after(example: Tokens | None) -> Tensor:
        optimizer = type(world.optimizer)(params)
        optimizer.load_state_dict({**state, "state": {k: _cloned(v) for k, v in state["state"].items()}})
        for param in params:
            param.grad = torch.zeros_like(param)
        if example is not None:
            slow_losses(world.model, [example]).sum().backward()
        optimizer.step()
        with torch.no_grad():
            found = slow_losses(world.model, world.references)
            for param, kept in zip(params, snapshot, strict=True):
                param.copy_(kept)
                param.grad = None
        return found

    null = losses_after(None)
    return torch.stack([null - losses_after(probe) for probe in world.probes])


def _cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def stack(influences: Sequence[Influence]) -> Tensor:
    return torch.stack([one.differences for one in influences if one.differences is not None])


@pytest.mark.slow
@quickly
@given(worlds())
def test_exact_equals_snapshot_and_restore(world: World) -> None:
    found = exact(world, world.probes, world.references, world.batch_tokens)
    expected = brute_force(world)
    largest = expected.abs().max().item()

    assert largest > 1e-9
    torch.testing.assert_close(stack(found), expected, rtol=0, atol=1e-5 * largest)
    means = torch.tensor([one.centred for one in found], dtype=torch.float64)
    torch.testing.assert_close(means, expected.mean(dim=1), rtol=0, atol=1e-5 * largest)


@pytest.mark.slow
@quickly
@given(worlds(), st.integers(1, 200), st.randoms(use_true_random=False))
def test_order_and_batching_change_nothing(world: World, batch_tokens: int, rng: object) -> None:
    probes = rng.sample(range(len(world.probes)), len(world.probes))  # type: ignore[attr-defined]
    references = rng.sample(range(len(world.references)), len(world.references))  # type: ignore[attr-defined]
    expected = stack(exact(world, world.probes, world.references, world.batch_tokens))
    found = stack(
        exact(world, [world.probes[i] for i in probes], [world.references[i] for i in references], batch_tokens)
    )

    largest = expected.abs().max().item()
    torch.testing.assert_close(found, expected[probes][:, references], rtol=0, atol=1e-9 * largest + 1e-13)


@pytest.mark.slow
@quickly
@given(worlds())
def test_one_backward_pass_equals_one_by_one(world: World) -> None:
    loss, params = ResponseLosses(world.model), trainable_parameters(world.model)
    batch = collate(world.probes)
    found = per_example_gradients(loss, params)(params, batch)
    for name, expected in one_by_one(loss)(params, batch).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6 * max(1e-3, expected.abs().max().item()))


@pytest.mark.slow
@quickly
@given(worlds())
def test_first_order_on_references_is_the_mean_of_its_terms(world: World) -> None:
    """Linear: the influence on the set is the average of those on its examples."""
    loss, params = ResponseLosses(world.model), trainable_parameters(world.model)
    held = ReferenceSet(loss, [collate(world.references)], "tokens", world.batch_tokens)
    gradients = per_example_gradients(loss, params)
    first = FirstOrderInfluence(gradients, params, world.update, held, range(len(held)))
    steps = first.steps(first.move(collate(world.probes)))
    terms = first.terms(steps)
    expected = (terms * held.weights).sum(dim=1)
    values = torch.tensor([one.centred for one in first.of(steps)], dtype=torch.float64)

    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6 * terms.abs().max().item() + 1e-12)


@quickly
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 4)), min_size=2, max_size=30))
def test_agreement_lies_within_its_bounds(rows: list[tuple[int, int, int]]) -> None:
    """Symmetric correlations; perfect agreement with oneself; never a bound above the estimate."""
    a, b, groups = zip(*rows, strict=True)
    found, other = agreement(a, b, groups), agreement(b, a, groups)
    assert found.sign == other.sign
    bound = spearman_bound(found.spearman, found.count)
    assert -1 <= bound < 1
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert found.spearman == pytest.approx(other.spearman, abs=1e-12)
        assert abs(found.spearman) <= 1 + 1e-12
        assert found.spearman < -0.5 or bound < found.spearman
    if len(set(a)) > 1:
        itself = agreement(a, a, groups)
        assert (itself.spearman, itself.pearson) == pytest.approx((1, 1))
        assert itself.sign == 1
        assert itself.best == 1 or len(set(groups)) == len(groups)
