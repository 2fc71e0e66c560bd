"""Agreement of scores, by numbers that a person can follow, and by SciPy."""

import math

import pytest
import torch

from montessori_pl.influence import Agreement, agreement


def test_by_hand() -> None:
    """Rank differences 0, 1, 1, 0 of four: 1 - 6*2/(4*15) = .8. Signs agree in three of four.

    Groups a (1, -1 against 1, 2): another best and another worst. Group b (-3, 4 against -2, 5): the same ones.
    """
    found = agreement([1.0, -1.0, -3.0, 4.0], [1.0, 2.0, -2.0, 5.0], ["a", "a", "b", "b"])

    assert found.count == 4
    assert found.spearman == pytest.approx(0.8)
    assert found.sign == 0.75
    assert (found.best, found.worst) == (0.5, 0.5)


def test_pearson_by_hand() -> None:
    """Deviations -1, 0, 1 and -2, 1, 1: 3/sqrt(2*6)."""
    assert agreement([1, 2, 3], [0, 3, 3], "xyz").pearson == pytest.approx(3 / math.sqrt(12))


def test_equal_values_share_a_rank() -> None:
    """Ranks 0.5, 0.5, 2 against 0, 1, 2: deviations -.5, -.5, 1 and -1, 0, 1: 1.5/sqrt(1.5*2)."""
    assert agreement([5, 5, 9], [1, 2, 3], "xyz").spearman == pytest.approx(1.5 / math.sqrt(3))


def test_best_and_worst_are_told_apart() -> None:
    found = agreement([3, 2, 1], [3, 1, 2], "aaa")

    assert (found.best, found.worst) == (1.0, 0.0)


def test_groups_of_one_do_not_count() -> None:
    found = agreement([1, 2, 3], [3, 2, 1], [0, 1, 2])
    assert math.isnan(found.best)
    assert math.isnan(found.worst)
    assert agreement([1, 2, 3], [1, 2, 9], [0, 1, 1]).best == 1.0


@pytest.mark.parametrize(("values", "exact"), [([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_what_does_not_vary_is_not_correlated(values: list[float], exact: list[float]) -> None:
    found = agreement(values, exact, [0, 1])

    assert math.isnan(found.pearson)
    assert math.isnan(found.spearman)


def test_without_examples_nothing_is_known() -> None:
    found = agreement([], [], [])

    assert found.count == 0
    assert all(math.isnan(value) for value in (found.pearson, found.spearman, found.sign, found.best, found.worst))
    assert found.spearman_bound() == -1


def test_as_scipy_has_it() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    for decimals in (0, 1, 8):  # many ties, some, none
        a = torch.randn(50, generator=generator, dtype=torch.float64).round(decimals=decimals)
        b = (a + torch.randn(50, generator=generator, dtype=torch.float64)).round(decimals=decimals)
        found = agreement(a.tolist(), b.tolist(), range(50))
        assert found.spearman == pytest.approx(stats.spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-12)
        assert found.pearson == pytest.approx(stats.pearsonr(a.numpy(), b.numpy()).statistic, abs=1e-12)


def of(count: int, spearman: float) -> Agreement:
    return Agreement(count, math.nan, spearman, math.nan, math.nan, math.nan)


def test_bound_by_hand() -> None:
    """28 examples, .9: atanh is 1.47222, standard error 1.03/5 = .206; two of them below: tanh(1.06022) = .7858."""
    assert of(28, 0.9).spearman_bound() == pytest.approx(0.7857, abs=1e-4)
    assert of(28, 0.9).spearman_bound(confidence_z=0) == pytest.approx(0.9)


def test_bound_of_perfect_order_by_hand() -> None:
    """Four examples: at most 1 - 6/60 = .9, atanh 1.47222, minus 2*1.03: tanh(-.58778) = -.5283; and 48 prove .999."""
    assert of(4, 1.0).spearman_bound() == pytest.approx(-0.5283, abs=1e-4)
    assert of(8, 1.0).spearman_bound() < 0.99 < of(16, 1.0).spearman_bound()
    assert 0.999 < of(48, 1.0).spearman_bound() < 1


def test_bound_grows_with_the_sample_and_the_agreement() -> None:
    bounds = [of(count, 0.95).spearman_bound() for count in (2, 3, 4, 8, 48, 1000)]
    assert bounds == sorted(bounds)
    assert bounds[:2] == [-1, -1]
    assert bounds[-1] < 0.95
    rising = [of(20, spearman).spearman_bound() for spearman in (-1.0, -0.5, 0.0, 0.5, 0.9, 1.0)]
    assert rising == sorted(rising)
    assert rising[0] > -1
    assert of(20, math.nan).spearman_bound() == -1


def test_bound_holds_in_97_of_100_samples() -> None:
    """Bivariate normal values of rank correlation .9: 1000 samples of 40."""
    generator = torch.Generator().manual_seed(0)
    r = 2 * math.sin(math.pi * 0.9 / 6)  # Pearson's correlation of such values
    held = 0
    for _ in range(1000):
        a, noise = torch.randn(2, 40, generator=generator, dtype=torch.float64)
        found = agreement(a.tolist(), (r * a + math.sqrt(1 - r**2) * noise).tolist(), range(40))
        held += found.spearman_bound() <= 0.9
    assert 0.95 < held / 1000 < 0.99
