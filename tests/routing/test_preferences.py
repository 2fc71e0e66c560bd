"""Rewards, pairs, the Bradley-Terry loss and the head on a frozen encoder, against slow loops and known optima."""

import math

import numpy as np
import pytest
import torch

from montessori_pl.routing.head import Head, fit_head, penalty_losses
from montessori_pl.routing.preferences import bradley_terry_loss, combined_rewards, normalized, pair_labels
from montessori_pl.routing.responses import Array

NAN = math.nan


def test_rewards_by_hand() -> None:
    """Quality 1, 3, 5 has mean 3 and standard deviation sqrt(8/3); learnability -4, -2, -3 has -3 and sqrt(2/3)."""
    quality, learnability = np.array([[1.0, 3.0, 5.0]]), np.array([[-4.0, -2.0, -3.0]])
    q, s = math.sqrt(3 / 2), math.sqrt(3 / 2)
    expected = [[0.6 * -q + 0.4 * -s, 0.6 * 0 + 0.4 * s, 0.6 * q + 0.4 * 0]]
    np.testing.assert_allclose(combined_rewards(quality, learnability, 0.4, "zscore"), expected, atol=1e-12)
    expected = [[0.0, 0.6 * 0.5 + 0.4 * 1, 0.6 * 1 + 0.4 * 0.5]]
    np.testing.assert_allclose(combined_rewards(quality, learnability, 0.4, "minmax"), expected, atol=1e-12)
    expected = [[0.6 * 1 - 0.4 * 4, 0.6 * 3 - 0.4 * 2, 0.6 * 5 - 0.4 * 3]]
    np.testing.assert_allclose(combined_rewards(quality, learnability, 0.4, "none"), expected, atol=1e-12)


@pytest.mark.parametrize("normalization", ["zscore", "minmax"])
def test_what_is_missing_does_not_count_and_what_is_equal_is_zero(normalization: str) -> None:
    table = np.array([[1.0, NAN, 3.0], [2.0, 2.0, 2.0], [NAN, NAN, NAN], [NAN, 5.0, NAN]])
    found = normalized(table, normalization)  # type: ignore[arg-type]
    low, high = (-1, 1) if normalization == "zscore" else (0, 1)
    np.testing.assert_allclose(found, [[low, NAN, high], [0, 0, 0], [NAN] * 3, [NAN, 0, NAN]], atol=1e-12)
    # Where one of both numbers is missing, the other one does not enter the mean either.
    learnability = np.array([[0.0, 9.0, NAN]])
    found = combined_rewards(np.array([[1.0, 3.0, 100.0]]), learnability, 0.0, normalization)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [[low, high, NAN]])


def slow_pairs(rewards: Array, tie_margin: float) -> list[tuple[int, int, int, float]]:
    pairs = []
    for n, row in enumerate(rewards):
        for i in range(len(row)):
            for j in range(i + 1, len(row)):
                if not math.isnan(row[i]) and not math.isnan(row[j]):
                    difference = row[i] - row[j]
                    label = 0.5 if abs(difference) <= tie_margin else float(difference > 0)
                    pairs.append((n, i, j, label))
    return pairs


def test_loss_and_gradient_against_a_slow_loop() -> None:
    """d loss / d c_i of one pair is sigmoid(c_i - c_j) - label, and its negative for c_j."""
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=(7, 4))
    rewards[generator.random(size=rewards.shape) < 0.2] = NAN
    coefficients = torch.tensor(generator.normal(size=(7, 4)), requires_grad=True)
    pairs = slow_pairs(rewards, tie_margin=0.4)
    assert {label for *_, label in pairs} == {0.0, 0.5, 1.0}
    expected, gradient = 0.0, np.zeros((7, 4))
    for n, i, j, label in pairs:
        chance = 1 / (1 + math.exp(-(coefficients[n, i] - coefficients[n, j]).item()))
        expected -= (label * math.log(chance) + (1 - label) * math.log(1 - chance)) / len(pairs)
        gradient[n, i] += (chance - label) / len(pairs)
        gradient[n, j] -= (chance - label) / len(pairs)
    loss = bradley_terry_loss(coefficients, pair_labels(rewards, tie_margin=0.4))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss.backward()
    assert coefficients.grad is not None
    np.testing.assert_allclose(coefficients.grad.numpy(), gradient, atol=1e-12)


def test_two_teachers_differ_by_the_log_odds() -> None:
    """Of 10 prompts one wins 6, loses 2 and ties 2: 7 of 10 in all, and nothing else is known of the prompts."""
    rewards = np.array([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 2 + [[0.5, 0.5]] * 2)
    head = fit_head(torch.zeros(10, 3, dtype=torch.float64), pair_labels(rewards, 0.0), penalty=0.1)
    difference, total = head.bias[0] - head.bias[1], head.bias.sum()
    assert difference.item() == pytest.approx(math.log(7 / 3), abs=1e-6)
    assert total.item() == pytest.approx(0, abs=1e-9)
    assert not head.weight.any()


def test_only_ties_leave_all_teachers_alike() -> None:
    features = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = fit_head(features, pair_labels(np.zeros((12, 3)), 0.0), penalty=0.01)
    assert not head.weight.any()
    assert not head.bias.any()


def objective(head: Head, features: torch.Tensor, labels: torch.Tensor, penalty: float) -> float:
    weight = head.weight * features.std(dim=0, correction=0)
    return (bradley_terry_loss(head(features), labels) + penalty / 2 * weight.square().sum()).item()


def test_the_head_is_at_the_optimum_whatever_the_units() -> None:
    generator = np.random.default_rng(1)
    features = torch.tensor(generator.normal(size=(40, 5)))
    labels = pair_labels(features.numpy()[:, :3] + generator.normal(size=(40, 3)), 0.0)
    head = fit_head(features, labels, penalty=0.05)
    best = objective(head, features, labels, 0.05)
    for _ in range(50):
        step = torch.tensor(generator.normal(size=(3, 5))) * 1e-3
        nudged = Head(head.weight + step, head.bias + step[:, 0] * 0.1)
        assert objective(nudged, features, labels, 0.05) > best
    scaled = fit_head(features * torch.tensor([1e3, 1.0, 1e-3, 5.0, 1.0]) + 7, labels, penalty=0.05)
    expected = head(features)
    found = scaled(features * torch.tensor([1e3, 1.0, 1e-3, 5.0, 1.0]) + 7)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("useful", [True, False])
def test_cross_validation_trusts_features_that_say_something(useful: bool) -> None:
    generator = np.random.default_rng(2)
    features = torch.tensor(generator.normal(size=(60, 30)))
    rewards = features.numpy()[:, :3] * (5 if useful else 0) + generator.normal(size=(60, 3))
    losses = penalty_losses(features, pair_labels(rewards, 0.0), [1e-3, 10.0])
    assert (losses[1e-3] < losses[10.0]) == useful
    if not useful:
        assert losses[1e-3] > math.log(2), "memorised, and wrong about prompts that it has not seen"
