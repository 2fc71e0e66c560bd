"""GRACE, G-Vendi and the projection of gradients: against their definitions, and by hand."""

import numpy as np
import pytest
import torch

from montessori_pl.influence import GradientProjection
from montessori_pl.stats.gradients import Array, grace, gradient_vendi

PROMPTS, RESPONSES, DIM = 23, 3, 5


@pytest.fixture
def gradients() -> list[Array]:
    """Of some prompts, longer for some than for others."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(RESPONSES, DIM)) * (1 + n % 4) for n in range(PROMPTS)]


def by_definition(gradients: list[Array], seed: int) -> float:
    """The trace of a product of matrices, each written out as a mean of outer products."""
    order = np.random.default_rng(seed).permutation(len(gradients))
    train = [row / np.sqrt(row @ row) for place in order[:-2] for row in gradients[place]]
    test = [row for place in order[-2:] for row in gradients[place]]
    seen, unseen = (sum(np.outer(row, row) for row in rows) / len(rows) for rows in (train, test))
    smoothed = (1 - 1e-3) * seen + 1e-3 * np.trace(seen) / DIM * np.eye(DIM)
    return float(np.trace(np.linalg.inv(smoothed) @ unseen))


def test_grace_is_its_definition(gradients: list[Array]) -> None:
    assert grace(gradients).tolist() == pytest.approx([by_definition(gradients, seed) for seed in range(10)])


def test_grace_by_hand() -> None:
    """All along one axis of two, of length 3: the seen moment is diag(1, 0), smoothed diag(.9995, .0005)."""
    same = [np.array([[3.0, 0.0]])] * 4
    assert grace(same).tolist() == pytest.approx([9 / 0.9995] * 10)
    assert grace([2 * one for one in same]).mean() == pytest.approx(4 * 9 / 0.9995), "long gradients foretell less"
    stray = [*same[:3], np.array([[0.0, 3.0]])]
    assert grace(stray).max() == pytest.approx(9 / 0.0005), "and so do those that point where no other does"
    with pytest.raises(ValueError, match="GRACE splits prompts into two parts, and there are 1"):
        grace(same[:1])


def test_grace_with_as_many_responses_as_there_are(gradients: list[Array]) -> None:
    """One prompt has a response less."""
    assert np.isfinite(grace([gradients[0][:1], *gradients[1:]])).all()


def test_vendi_by_hand() -> None:
    """At right angles as many as there are, however long; in one direction one; two of three alike between."""
    assert gradient_vendi(np.diag([1.0, 5.0, 0.1])) == pytest.approx(3)
    assert gradient_vendi(np.array([[1.0, 2.0], [3.0, 6.0], [-1.0, -2.0]])) == pytest.approx(1)
    two = np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    assert gradient_vendi(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])) == pytest.approx(two)


def test_projections_keep_inner_products() -> None:
    """On average over seeds, and within four standard deviations for each."""
    torch.manual_seed(0)
    params = {"one": torch.zeros(30, 20), "other": torch.zeros(7)}
    rows = {name: torch.randn(2, *param.shape) for name, param in params.items()}
    rows = {name: torch.cat([row, row[:1] + 0.5 * row[1:]]) for name, row in rows.items()}
    whole = torch.cat([row.flatten(1) for row in rows.values()], dim=1)
    truth, size = whole @ whole.T, whole.norm(dim=1)
    spread = size[:, None] * size * (2 / 64) ** 0.5
    found = []
    for seed in range(50):
        projected = GradientProjection(params, dim=64, seed=seed)(rows)
        assert projected.shape == (3, 64)
        found.append((projected @ projected.T - truth) / spread)
    errors = torch.stack(found)
    assert errors.abs().max() < 4
    assert errors.mean(dim=0).abs().max() < 4 / 50**0.5
    again = GradientProjection(params, dim=64, seed=0)(rows)
    assert torch.equal(again, GradientProjection(params, dim=64)(rows))
