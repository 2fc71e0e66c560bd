"""What a router is worth, by hand, and on responses of which no prompt says whose is best."""

import numpy as np
import pytest
import torch

from montessori_pl.routing.head import fit_head
from montessori_pl.routing.preferences import pair_labels
from montessori_pl.routing.regret import RouterComparison

NAN = np.nan
REWARD = np.array([[1.0, 0.0, 0.5], [0.0, 2.0, 2.0], [NAN, 1.0, 3.0], [4.0, 1.0, NAN]])
ROUTER = np.array([[0.9, 0.1, 0.0], [0.0, 0.1, 0.9], [9.0, 0.5, 0.4], [0.1, 0.2, 0.9]])


def test_by_hand() -> None:
    """The router takes a, c, b (a has not answered) and b (c has not); the constant a, a, c and a (then c, then b)."""
    tables = {"reward": REWARD, "quality": REWARD * 10}
    comparison = RouterComparison.of(["a", "b", "c"], tables, ROUTER, np.array([3.0, 1.0, 2.0]))
    assert comparison.summary("router") == {
        "reward": (1 + 2 + 1 + 1) / 4,
        "quality": 12.5,
        "regret": (0 + 0 + 2 + 3) / 4,
        "hit_at_1": 2 / 4,
        "hit_at_3": 1.0,
        "shares": {"a": 0.25, "b": 0.5, "c": 0.25},
    }
    constant = comparison.summary("constant")
    assert constant["reward"] == (1 + 0 + 3 + 4) / 4
    assert constant["hit_at_1"] == 3 / 4
    assert constant["shares"] == {"a": 0.75, "b": 0.0, "c": 0.25}
    oracle = comparison.summary("oracle")
    assert (oracle["reward"], oracle["regret"], oracle["hit_at_1"]) == ((1 + 2 + 3 + 4) / 4, 0.0, 1.0)
    gain = comparison.gains(seed=0)["reward"]
    assert gain["mean"] == (0 + 2 - 2 - 3) / 4
    assert gain["low"] < gain["mean"] < gain["high"]


def test_the_oracle_shares_ties_evenly() -> None:
    """Prompts: a and b tie; all three tie; c is the best alone. Qualities differ where rewards do not."""
    tables = {
        "reward": np.array([[1.0, 1.0, 0.0], [0.1, 0.1, 0.1], [0.0, NAN, 2.0]]),
        "quality": np.array([[4.0, 2.0, 9.0], [3.0, 6.0, 0.0], [7.0, NAN, 5.0]]),
    }
    comparison = RouterComparison.of(["a", "b", "c"], tables, tables["reward"], np.array([3.0, 1.0, 2.0]))
    oracle = comparison.summary("oracle")
    assert oracle["shares"] == pytest.approx({"a": 5 / 18, "b": 5 / 18, "c": 8 / 18})
    assert oracle["quality"] == pytest.approx((3 + 3 + 5) / 3)
    assert (oracle["reward"], oracle["regret"]) == (3.1 / 3, 0.0)
    assert comparison.summary("router")["shares"] == {"a": 2 / 3, "b": 0.0, "c": 1 / 3}, "a router asks one teacher"


def test_a_router_that_is_the_constant_gains_nothing() -> None:
    constant = np.array([3.0, 1.0, 2.0])
    comparison = RouterComparison.of(["a", "b", "c"], {"reward": REWARD}, np.tile(constant, (4, 1)) * 7, constant)
    assert comparison.gains(seed=0)["reward"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert comparison.summary("router") == comparison.summary("constant")


@pytest.mark.parametrize("told", [True, False])
def test_it_is_seen_whether_prompts_tell_whose_response_is_best(told: bool) -> None:
    """Twenty data sets: routing wins on nearly all of them, or, where rewards are drawn by lot, on next to none."""
    wins = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        features = generator.normal(size=(160, 6))
        rewards = generator.normal(size=(160, 3)) + (features[:, :3] if told else 0)
        labels = pair_labels(rewards[:100], 0.0)
        head = fit_head(torch.from_numpy(features[:100]), labels, penalty=0.01)
        coefficients = head(torch.from_numpy(features[100:])).numpy()
        constant = rewards[:100].mean(axis=0)
        comparison = RouterComparison.of(["a", "b", "c"], {"reward": rewards[100:]}, coefficients, constant)
        wins += comparison.gains(seed)["reward"]["low"] > 0
    assert wins >= 18 if told else wins <= 2
