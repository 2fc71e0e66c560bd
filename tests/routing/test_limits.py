"""Routing within limits, against all tasks that there are."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from montessori_pl.routing import ConstantRouter
from montessori_pl.routing.limits import RouteLimits, assign, choose, win_probabilities
from montessori_pl.routing.responses import Array

TEACHERS = ["a", "b", "c"]


@dataclasses.dataclass
class Problem:
    """A small problem drawn at random."""

    utilities: Array
    allowed: NDArray[np.bool_]
    capacities: Array
    costs: Array | None
    budget: float | None

    @classmethod
    def draw(cls, seed: int, with_budget: bool) -> "Problem":
        generator = np.random.default_rng(seed)
        num_prompts, num_teachers = int(generator.integers(1, 7)), int(generator.integers(1, 4))
        utilities = generator.normal(size=(num_prompts, num_teachers))
        allowed = generator.random(utilities.shape) < 0.8
        allowed[:, 0] |= ~allowed.any(axis=1)
        capacities = generator.integers(0, num_prompts + 2, size=num_teachers).astype(np.float64)
        costs = generator.integers(0, 5, size=num_teachers).astype(np.float64) if with_budget else None
        budget = float(generator.integers(num_prompts, 4 * num_prompts + 1)) if with_budget else None
        return cls(utilities, allowed, capacities, costs, budget)

    def worth(self, way: Sequence[int] | NDArray[np.intp]) -> float | None:
        """The sum of utilities of one task; none where it does not keep the limits."""
        chosen, rows = np.asarray(way), np.arange(len(self.utilities))
        counts = np.bincount(chosen, minlength=len(self.capacities))
        kept = self.allowed[rows, chosen].all() and (counts <= self.capacities).all()
        if self.costs is not None and self.budget is not None:
            kept &= self.costs[chosen].sum() <= self.budget
        return float(self.utilities[rows, chosen].sum()) if kept else None

    def best(self) -> float | None:
        """The largest sum of all tasks that keep the limits."""
        num_prompts, num_teachers = self.utilities.shape
        ways = map(self.worth, itertools.product(range(num_teachers), repeat=num_prompts))
        return max((way for way in ways if way is not None), default=None)


@pytest.mark.parametrize("with_budget", [False, True])
def test_against_brute_force(with_budget: bool) -> None:
    """Shares alone are kept in the best of all ways; with a budget that is not promised, but nearly always so."""
    as_good = []
    for seed in range(100):
        problem = Problem.draw(seed, with_budget)
        best = problem.best()
        found = assign(*dataclasses.astuple(problem))
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            value = problem.worth(found)
            assert value is not None, "a limit is not kept"
            as_good.append(value >= best - 1e-9)
    assert 30 < len(as_good) < 100, "some problems must have a way, and some must not"
    assert np.mean(as_good) == 1 if not with_budget else np.mean(as_good) > 0.9


def test_a_budget_is_used_almost_as_well_as_it_can_be() -> None:
    """The best sum is known: all answers of one teacher win by so much, each its own, and 60 of 100 can be paid."""
    generator = np.random.default_rng(1)
    gains = generator.random(100)
    utilities = np.stack([np.zeros(100), gains], axis=1)
    chosen = assign(utilities, np.ones((100, 2), dtype=bool), np.full(2, 100.0), np.array([1.0, 3.0]), budget=220.5)
    assert chosen is not None
    assert set(np.flatnonzero(chosen)) == set(np.argsort(-gains)[:60])


def test_without_limits_the_highest_coefficient_wins() -> None:
    coefficients = np.array([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    assert choose(coefficients, TEACHERS).tolist() == [1, 0]
    allowed = np.array([[True, False, True], [True, True, True]])
    assert choose(coefficients, TEACHERS, allowed=allowed).tolist() == [2, 0]
    assert choose(np.empty((0, 3)), TEACHERS, RouteLimits(max_share=0.5)).tolist() == []


def test_win_probabilities() -> None:
    """Two teachers: sigmoid of the difference. Three: the mean over the other two."""
    np.testing.assert_allclose(win_probabilities(np.array([[1.0, 0.0]])), [[0.7310586, 0.2689414]], atol=1e-7)
    found = win_probabilities(np.array([[np.log(2), 0.0, 0.0]]))
    np.testing.assert_allclose(found, [[2 / 3, (1 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 2) / 2]])


def test_shares_are_rounded_up_so_that_thirds_of_ten_are_enough() -> None:
    router = ConstantRouter(TEACHERS, [3.0, 2.0, 1.0])
    chosen = router.route(["q"] * 10, limits=RouteLimits(max_share=1 / 3))
    assert sorted(chosen) == ["a"] * 4 + ["b"] * 4 + ["c"] * 2
    chosen = router.route(["q"] * 10, limits=RouteLimits(max_share={"a": 0.2}))
    assert sorted(chosen) == ["a"] * 2 + ["b"] * 8
    assert router.route(["q", "p"]) == ["a", "a"]


def test_the_dear_teacher_is_asked_where_it_is_worth_most() -> None:
    coefficients = np.array([[0.1, 0.0], [3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    limits = RouteLimits(prices={"dear": 5.0, "cheap": 1.0}, budget=13.0)
    assert choose(coefficients, ["dear", "cheap"], limits).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (RouteLimits(max_share=0.25), r"no task of 4 prompts .* \(a, b, c\) take at most 1, 1, 1 of them; allow"),
        (
            RouteLimits(prices={"a": 3.0, "b": 2.0, "c": 9.0}, budget=7.0),
            r"take at most 4, 4, 4 of them, and the cheapest teachers cost 8 where the budget is 7; allow more",
        ),
        (RouteLimits(max_share={"d": 0.5}), r"max_share names d; the teachers are a, b, c"),
        (RouteLimits(prices={"a": 1.0, "b": 1.0}, budget=9.0), r"prices lack c; give every teacher one, 0 if it is f"),
    ],
)
def test_limits_that_cannot_be_kept(limits: RouteLimits, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConstantRouter(TEACHERS, [1.0, 2.0, 3.0]).route(["q"] * 4, limits=limits)


def test_limits_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match=r"max_share: expected float > 0 and <= 1, found 1\.5"):
        RouteLimits(max_share=1.5)
    with pytest.raises(ValueError, match=r"prices and budget belong together, found prices None and budget 3"):
        RouteLimits(budget=3.0)
