"""How well one set of scores agrees with another: the report that every approximation owes its user."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Agreement of approximate scores with exact ones, on examples that have both."""

    count: int
    """Number of examples."""
    pearson: float
    """Linear correlation."""
    spearman: float
    """Rank correlation."""
    sign: float
    """Share of examples whose scores have the same sign."""
    best: float
    """Share of groups (prompts) of two or more in which both find the same best example; nan without such groups."""
    worst: float
    """The same for the worst."""

    def spearman_bound(self, confidence_z: float = 2.0) -> float:
        """A lower bound of the rank correlation beyond this sample, by Fisher's transformation.

        A sample in which all ranks agree counts as one with half an exchange of neighbours: without this correction for
        continuity four examples in the right order, one chance in 24, would prove perfect agreement.

        Args:
            confidence_z: standard errors below the estimate; 2 holds in 97 of 100 samples.
        """
        if self.count < 4 or math.isnan(self.spearman):
            return -1.0
        most = 1 - 6 / (self.count * (self.count**2 - 1))
        # 1.03 instead of 1: Fisher's variance for rank correlations (Fieller, Hartley and Pearson, 1957).
        z = math.atanh(max(-most, min(self.spearman, most))) - confidence_z * 1.03 / math.sqrt(self.count - 3)
        return math.tanh(z)


def agreement(approximate: Sequence[float], exact: Sequence[float], groups: Sequence[Hashable]) -> Agreement:
    """Compare two sets of scores of the same examples.

    Args:
        approximate: one score for each example.
        exact: the score that it shall agree with.
        groups: for each example its prompt.
    """
    a, b = (torch.tensor(list(values), dtype=torch.float64) for values in (approximate, exact))
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    several = [torch.tensor(indices) for indices in members.values() if len(indices) > 1]
    return Agreement(
        count=len(a),
        pearson=_correlation(a, b),
        spearman=_correlation(_ranks(a), _ranks(b)),
        sign=(a.sign() == b.sign()).double().mean().item() if len(a) else float("nan"),
        best=_share([bool(a[i].argmax() == b[i].argmax()) for i in several]),
        worst=_share([bool(a[i].argmin() == b[i].argmin()) for i in several]),
    )


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation; nan where one side does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = (a.norm() * b.norm()).item()
    return float("nan") if scale == 0 else ((a @ b).item() / scale)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, equal values sharing the mean of theirs, shape as `values`."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() + 1) / 2)[inverse]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")
