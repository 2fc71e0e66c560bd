"""How well one set of scores agrees with another: the report that every approximation owes its user."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from montessori_pl.stats.correlation import pearson, spearman


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


def agreement(approximate: Sequence[float], exact: Sequence[float], groups: Sequence[Hashable]) -> Agreement:
    """Compare two sets of scores of the same examples.

    Args:
        approximate: one score for each example.
        exact: the score that it is compared with.
        groups: for each example its prompt.
    """
    a, b = (torch.tensor(list(values), dtype=torch.float64) for values in (approximate, exact))
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    several = [torch.tensor(indices) for indices in members.values() if len(indices) > 1]
    return Agreement(
        count=len(a),
        pearson=pearson(a.tolist(), b.tolist()),
        spearman=spearman(a.tolist(), b.tolist()),
        sign=(a.sign() == b.sign()).double().mean().item() if len(a) else float("nan"),
        best=_share([bool(a[i].argmax() == b[i].argmax()) for i in several]),
        worst=_share([bool(a[i].argmin() == b[i].argmin()) for i in several]),
    )


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")
