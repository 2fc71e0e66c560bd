"""What a router is worth: beside an oracle that sees all responses, and beside always asking the best single teacher.

The second one is the bar: a router can look good by Hit@k only because a few teachers are good for everything.

Legend: N held-out prompts, K teachers; tables hold NaN where a teacher has not answered; it is not chosen there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from montessori_pl.routing.responses import Array
from montessori_pl.stats.bootstrap import bootstrap_rows, percentile_interval

HITS = (1, 3)
"""The k of Hit@k."""
ORACLE = "oracle"
"""Name of the router that sees all responses."""


@dataclasses.dataclass(frozen=True)
class RouterComparison:
    """A router beside the constant and the oracle, on prompts that it has not seen."""

    teachers: Sequence[str]
    """Their names."""
    tables: Mapping[str, Array]
    """Numbers of all responses by name, each (N, K): the `reward` that is routed for, and its parts in raw units."""
    coefficients: Mapping[str, Array]
    """By name of the router (`router`, `constant`, `oracle`), its coefficients, shape (N, K)."""

    @classmethod
    def of(
        cls, teachers: Sequence[str], tables: Mapping[str, Array], router: Array, constant: Array
    ) -> "RouterComparison":
        """Compare a router's coefficients (N, K) with the same ones (K,) for all prompts."""
        reward = tables["reward"]
        constants = np.broadcast_to(constant, reward.shape)
        return cls(teachers, tables, {"router": router, "constant": constants, ORACLE: reward})

    def summary(self, name: str) -> dict[str, Any]:
        """What a router gets on average, what it misses, how often it is right, and which teachers it chooses.

        The oracle asks all teachers that share the best reward of a prompt, each for an equal part of it.
        """
        order, reward = self._order(name), self.tables["reward"]
        missed = self._taken(ORACLE, "reward") - self._taken(name, "reward")
        best = np.nanmax(reward, axis=1, keepdims=True)
        right = np.take_along_axis(reward, order, axis=1) == best  # a tie for the best is as good
        shares = self._asked(name).mean(axis=0)
        return {
            **{table: float(self._taken(name, table).mean()) for table in self.tables},
            "regret": float(missed.mean()),
            **{f"hit_at_{k}": float(right[:, :k].any(axis=1).mean()) for k in HITS},
            "shares": dict(zip(self.teachers, shares.tolist(), strict=True)),
        }

    def gains(self, seed: int) -> dict[str, dict[str, float]]:
        """For each table, what the router gets more than the constant, with its bootstrap interval over prompts."""
        gains = np.stack([self._taken("router", name) - self._taken("constant", name) for name in self.tables], axis=1)
        resampled = bootstrap_rows(gains, np.random.default_rng(seed))
        return {
            name: dataclasses.asdict(percentile_interval(gains[:, column].mean(), resampled[:, column]))
            for column, name in enumerate(self.tables)
        }

    def _order(self, name: str) -> np.ndarray:
        """The teachers who have answered, the best one first, and behind them the others; shape (N, K)."""
        answered = np.where(np.isnan(self.tables["reward"]), -np.inf, self.coefficients[name])
        return np.argsort(-answered, axis=1, kind="stable")

    def _asked(self, name: str) -> Array:
        """The part of each prompt for which a router asks each teacher, shape (N, K); rows have the sum 1."""
        if name == ORACLE:
            best = self.tables["reward"] == np.nanmax(self.tables["reward"], axis=1, keepdims=True)
            return best / best.sum(axis=1, keepdims=True)
        asked = np.zeros(self.tables["reward"].shape)
        np.put_along_axis(asked, self._order(name)[:, :1], 1.0, axis=1)
        return asked

    def _taken(self, name: str, table: str) -> Array:
        """The numbers of the responses that a router takes, shape (N,)."""
        if name == ORACLE and table == "reward":
            best: Array = np.nanmax(self.tables[table], axis=1)  # a mean of equals may differ in its last digit
            return best
        asked = self._asked(name)
        taken: Array = np.where(asked > 0, asked * self.tables[table], 0.0).sum(axis=1)
        return taken
