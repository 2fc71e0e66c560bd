"""Routing within limits: no teacher gets more than its share, and all answers together cost no more than a budget.

Legend: N prompts, K teachers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from montessori_pl.bounds import NonNegativeFloat, NotEmpty, PositiveShare, Share, checked
from montessori_pl.routing.responses import Array

ROUNDING = 1e-9
"""What floating point may add to a whole number of prompts, or, as a share of it, to a sum of prices."""

SPLIT = 1e-6
"""A prompt of which no teacher has more than the rest of this is split between teachers."""


@checked
@dataclass(frozen=True, kw_only=True)
class RouteLimits:
    """How prompts may be dealt out to teachers."""

    max_share: PositiveShare | Annotated[dict[str, Share], NotEmpty()] | None = None
    """Largest share of the prompts that a teacher gets, for all teachers or by name; rounded up to whole prompts."""
    prices: Annotated[dict[str, NonNegativeFloat], NotEmpty()] | None = None
    """What one answer of each teacher costs, in any currency."""
    budget: NonNegativeFloat | None = None
    """Largest sum of prices, for all prompts that are routed together."""

    def __post_init__(self) -> None:
        if (self.prices is None) != (self.budget is None):
            raise ValueError(
                f"prices and budget belong together, found prices {self.prices} and budget {self.budget}; set both, or "
                "neither"
            )

    def capacities(self, teachers: Sequence[str], num_prompts: int) -> Array:
        """The largest number of prompts of each teacher, shape (K,).

        Raises:
            ValueError: a share is for a teacher that does not exist.
        """
        shares = self.max_share if isinstance(self.max_share, dict) else dict.fromkeys(teachers, self.max_share)
        _check_names("max_share", shares, teachers)
        allowed = [1.0 if (share := shares.get(teacher)) is None else share for teacher in teachers]
        return np.ceil(np.asarray(allowed) * num_prompts - ROUNDING)

    def costs(self, teachers: Sequence[str]) -> Array:
        """The price of one answer of each teacher, shape (K,).

        Raises:
            ValueError: a teacher has no price, or a price is for a teacher that does not exist.
        """
        assert self.prices is not None
        _check_names("prices", self.prices, teachers)
        if missing := [teacher for teacher in teachers if teacher not in self.prices]:
            raise ValueError(f"prices lack {', '.join(missing)}; give every teacher one, 0 if it is free")
        return np.asarray([self.prices[teacher] for teacher in teachers], dtype=np.float64)


def choose(
    coefficients: Array,
    teachers: Sequence[str],
    limits: RouteLimits | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.intp]:
    """The teacher of each prompt, as its place in `teachers`, shape (N,).

    Without limits each prompt goes to the teacher with the highest coefficient. Within limits the sum of
    `win_probabilities` is as large as it can be: as sums of coefficients would, it tells teachers apart by differences
    within a prompt alone, but a prompt with extreme coefficients does not outvote all others.

    Args:
        coefficients: shape (N, K).
        teachers: their names.
        limits: what must be kept to.
        allowed: which teachers can answer which prompts, shape (N, K), at least one each; None: all of them.

    Raises:
        ValueError: the limits name unknown teachers, or no task keeps them.
    """
    allowed = np.ones(coefficients.shape, dtype=bool) if allowed is None else allowed
    if limits is None or not len(coefficients):
        return np.where(allowed, coefficients, -np.inf).argmax(axis=1)
    capacities = limits.capacities(teachers, len(coefficients))
    costs = None if limits.budget is None else limits.costs(teachers)
    chosen = assign(win_probabilities(coefficients), allowed, capacities, costs, limits.budget)
    if chosen is None:
        prices = (
            [] if costs is None else [f"the cheapest teachers cost {np.where(allowed, costs, np.inf).min(1).sum():g}"]
        )
        raise ValueError(
            f"no task of {len(coefficients)} prompts keeps the limits: by max_share the teachers "
            f"({', '.join(teachers)}) take at most {', '.join(f'{one:g}' for one in capacities)} of them"
            f"{''.join(f', and {one} where the budget is {limits.budget:g}' for one in prices)}; allow more"
        )
    return chosen


def win_probabilities(coefficients: Array) -> Array:
    """The mean chance of each teacher's response against those of the others, by Bradley-Terry, shape (N, K)."""
    num_teachers = coefficients.shape[1]
    chances = 1 / (1 + np.exp(coefficients[:, None, :] - coefficients[:, :, None]))
    return (chances.sum(axis=2) - 0.5) / max(num_teachers - 1, 1)


def assign(
    utilities: Array,
    allowed: NDArray[np.bool_],
    capacities: Array,
    costs: Array | None = None,
    budget: NonNegativeFloat | None = None,
) -> NDArray[np.intp] | None:
    """One teacher for each prompt, with the largest sum of utilities within the limits; none if they leave no way.

    Shares alone make a transportation problem, of which the linear program has a whole-numbered optimum. A budget
    splits a few prompts between teachers, at most one for each limit that is reached; only these are then decided as a
    whole-numbered problem, so that the sum falls short of the best one by no more than they are worth.

    Args:
        utilities: shape (N, K).
        allowed: which teachers can answer which prompts, shape (N, K).
        capacities: largest number of prompts of each teacher, shape (K,).
        costs: price of one answer of each teacher, shape (K,).
        budget: largest sum of prices.
    """
    program = _Program.of(utilities, allowed, capacities, costs, budget)
    relaxed = program.relaxed()
    if relaxed is None:
        return None
    chosen, settled = relaxed.argmax(axis=1), relaxed.max(axis=1) > 1 - SPLIT
    if settled.all():
        return chosen
    left = capacities - np.bincount(chosen[settled], minlength=len(capacities))
    rest = None if costs is None or budget is None else budget - costs[chosen[settled]].sum()
    few = _Program.of(utilities[~settled], allowed[~settled], left, costs, rest).whole()
    if few is None:  # the few cannot keep both limits among themselves: others must make room
        everything = program.whole()
        return None if everything is None else everything.argmax(axis=1)
    chosen[~settled] = few.argmax(axis=1)
    return chosen


@dataclass(frozen=True)
class _Program:
    """The linear program over all allowed pairs of a prompt and a teacher."""

    utilities: Array
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
    one_each: csr_array
    limits: csr_array
    bounds: Array

    @classmethod
    def of(
        cls,
        utilities: Array,
        allowed: NDArray[np.bool_],
        capacities: Array,
        costs: Array | None,
        budget: NonNegativeFloat | None,
    ) -> "_Program":
        rows, columns = np.nonzero(allowed)
        places, ones = np.arange(len(rows)), np.ones(len(rows))
        one_each = csr_array((ones, (rows, places)), shape=(len(utilities), len(rows)))
        limits = csr_array((ones, (columns, places)), shape=(len(capacities), len(rows)))
        if costs is not None and budget is not None:
            limits = vstack([limits, csr_array(costs[columns][None])], format="csr")
            capacities = np.append(capacities, budget * (1 + ROUNDING))
        return cls(utilities, (rows, columns), one_each, limits, capacities)

    def relaxed(self) -> Array | None:
        """The shares of teachers in prompts at the optimum, shape (N, K); none if there is no way."""
        # Interior point, ended at a corner: many times faster here than the simplex method.
        solution = linprog(
            -self.utilities[self.pairs],
            A_ub=self.limits,
            b_ub=self.bounds,
            A_eq=self.one_each,
            b_eq=np.ones(len(self.utilities)),
            bounds=(0, 1),
            method="highs-ipm",
        )
        return self._table(solution.x)

    def whole(self) -> Array | None:
        """The same, with each prompt's share in one teacher alone."""
        solution = milp(
            -self.utilities[self.pairs],
            integrality=np.ones(len(self.pairs[0])),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(self.one_each, 1, 1), LinearConstraint(self.limits, -np.inf, self.bounds)],
        )
        return self._table(solution.x)

    def _table(self, solution: Array | None) -> Array | None:
        if solution is None:
            return None
        table = np.zeros(self.utilities.shape)
        table[self.pairs] = solution
        return table


def _check_names(setting: str, named: dict[str, float] | dict[str, float | None], teachers: Sequence[str]) -> None:
    if unknown := sorted(named.keys() - set(teachers)):
        raise ValueError(f"{setting} names {', '.join(unknown)}; the teachers are {', '.join(teachers)}")
