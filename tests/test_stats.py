"""Statistics by hand, by SciPy where we do more than call it, and by samples of which the truth is known."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from montessori_pl.stats.bootstrap import (
    NUM_RESAMPLES,
    bootstrap_groups,
    bootstrap_rows,
    bootstrap_values,
    percentile_interval,
)
from montessori_pl.stats.correlation import pearson, spearman, spearman_bound
from montessori_pl.stats.distribution import cumulative, describe
from montessori_pl.stats.means import MeanInterval, mean_interval, welch_interval


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------------------------------------------------------------
# Means


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(2, 4.30265), (3, 3.18245), (7, 2.36462), (10, 2.22814), (200, 1.97190)]
)
def test_t_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    values = generator().normal(size=degrees + 1).tolist()
    expected = quantile * statistics.stdev(values) / math.sqrt(degrees + 1)
    assert mean_interval(values).half_width == pytest.approx(expected, rel=1e-5)


def test_mean_by_hand() -> None:
    """Mean .6, standard deviation .1: .6 +- 4.30265 * .1 / sqrt(3)."""
    found = mean_interval([0.5, 0.6, 0.7])
    assert found.mean == pytest.approx(0.6)
    assert found.ends == pytest.approx((0.6 - 0.248414, 0.6 + 0.248414), abs=1e-6)
    assert found.half_width == pytest.approx(0.248414, abs=1e-6)


def test_mean_without_an_interval() -> None:
    found = mean_interval([1.0, 2.0])
    assert found == MeanInterval(1.5), "two values have no interval"
    assert (found.ends, found.half_width) == (None, None)


def _within(t: float, degrees: float) -> float:
    """Probability of Student's distribution between -t and t: its density, summed over narrow strips."""
    scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    middles = (np.arange(100_000) + 0.5) * t / 100_000
    return float(2 * scale * ((1 + middles**2 / degrees) ** (-(degrees + 1) / 2)).sum() * t / 100_000)


def test_unpaired_difference_by_hand() -> None:
    """Variances .01 and .0175: standard error sqrt(.0275 / 3) = .0957427.

    Welch's degrees are .0275**2 / ((.01**2 + .0175**2) / 2) = 3.72308, for which t = 2.85982.
    """
    assert _within(2.85982, 3.72308) == pytest.approx(0.95, abs=1e-6)
    found = welch_interval([0.5, 0.6, 0.7], [0.45, 0.5, 0.7])
    assert found.mean == pytest.approx(0.05)
    assert found.half_width == pytest.approx(2.85982 * 0.0957427, abs=1e-6)
    assert found.ends == pytest.approx((0.05 - 0.273807, 0.05 + 0.273807), abs=1e-6)


def test_unpaired_difference_as_scipy_has_it() -> None:
    rng = generator()
    for sizes in itertools.product((3, 5, 20), repeat=2):
        ours, theirs = (rng.normal(size=size, scale=rng.uniform(0.1, 10)).tolist() for size in sizes)
        expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        assert welch_interval(ours, theirs).ends == pytest.approx(tuple(expected), rel=1e-9)


def test_unpaired_difference_of_what_does_not_vary_and_of_too_little() -> None:
    assert welch_interval([1.0] * 3, [0.5] * 3) == MeanInterval(0.5, 0.5, 0.5)
    assert welch_interval([1.0] * 3, [0.5] * 2) == MeanInterval(0.5)
    one_sided = welch_interval([1.0, 2.0, 3.0], [0.5] * 3)
    assert one_sided.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5), "two degrees, from our side alone"


# ---------------------------------------------------------------------------------------------------------------------
# The bootstrap


def test_rows_are_drawn_as_scipy_draws_them() -> None:
    """One generator, the same draws: row by row for us, all at once for SciPy, which takes one column."""
    values = generator().normal(size=37)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=NUM_RESAMPLES, method="percentile", rng=generator(5))
    ours = bootstrap_rows(values[:, None], generator(5))[:, 0]
    np.testing.assert_allclose(ours, theirs.bootstrap_distribution, rtol=0, atol=1e-15)
    found = percentile_interval(values.mean(), ours)
    assert found.mean == values.mean()
    assert found.ends == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)


def test_columns_are_drawn_together() -> None:
    values = generator().normal(size=(20, 1))
    resampled = bootstrap_rows(np.hstack([values, 3 * values]), generator(1))
    assert resampled.shape == (NUM_RESAMPLES, 2)
    np.testing.assert_allclose(resampled[:, 1], 3 * resampled[:, 0])


def test_rows_know_the_standard_error_of_a_mean() -> None:
    values = generator().normal(size=(400, 2)) * [1.0, 3.0]
    resampled = bootstrap_rows(values, generator(1))
    expected = values.std(axis=0) / math.sqrt(400)
    np.testing.assert_allclose(resampled.std(axis=0), expected, rtol=0.1)
    found = percentile_interval(values[:, 0].mean(), resampled[:, 0])
    assert found.half_width == pytest.approx(1.96 * expected[0], rel=0.12)
    np.testing.assert_array_equal(resampled, bootstrap_rows(values, generator(1)))


def test_values_are_drawn_as_scipy_draws_them() -> None:
    values = generator().normal(size=9)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=500, method="percentile", rng=generator(2))
    np.testing.assert_array_equal(bootstrap_values(values.tolist(), generator(2), 500), theirs.bootstrap_distribution)


def test_means_over_groups_occur_as_often_as_counted() -> None:
    """Groups (0, 1) and (4,): every choice of two groups and of their values, written down, beside many draws."""
    groups = [(0.0, 1.0), (4.0,)]
    expected: dict[float, float] = {}
    for chosen in itertools.product(groups, repeat=2):
        samples = [list(itertools.product(group, repeat=len(group))) for group in chosen]
        for sample in itertools.product(*samples):
            mean = statistics.fmean(itertools.chain(*sample))
            expected[mean] = expected.get(mean, 0) + 0.25 / math.prod(map(len, samples))
    assert sum(expected.values()) == 1
    drawn = bootstrap_groups(groups, generator(), 40_000)
    found = {mean: float(np.isclose(drawn, mean).mean()) for mean in expected}
    assert found == pytest.approx(expected, abs=0.01)  # four standard errors of a share of 1/2
    assert sum(found.values()) == pytest.approx(1)


def test_ends_between_two_resamples() -> None:
    """Of 0 to 9 the percentiles lie at .225 and 8.775; inwards, the next ones that were drawn are 1 and 8."""
    resampled = generator().permutation(10).astype(float)
    assert percentile_interval(4.5, resampled) == MeanInterval(4.5, pytest.approx(0.225), pytest.approx(8.775))
    assert percentile_interval(4.5, resampled, interpolated=False) == MeanInterval(4.5, 1.0, 8.0)


# ---------------------------------------------------------------------------------------------------------------------
# Correlations


def test_pearson_by_hand() -> None:
    """Deviations -1, 0, 1 and -2, 1, 1: 3/sqrt(2*6)."""
    assert pearson([1, 2, 3], [0, 3, 3]) == pytest.approx(3 / math.sqrt(12))


def test_spearman_by_hand() -> None:
    """Rank differences 0, 1, 1, 0 of four: 1 - 6*2/(4*15) = .8."""
    assert spearman([1.0, -1.0, -3.0, 4.0], [1.0, 2.0, -2.0, 5.0]) == pytest.approx(0.8)
    assert spearman([1.0, 2.0], [7.0, 8.0]) == pytest.approx(1)


def test_equal_values_share_a_rank() -> None:
    """Ranks 0.5, 0.5, 2 against 0, 1, 2: deviations -.5, -.5, 1 and -1, 0, 1: 1.5/sqrt(1.5*2)."""
    assert spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(3))


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([0.1] * 3, [1.0, 2.0, 3.0]), ([1.0], [2.0]), ([], [])],
)
def test_what_does_not_vary_is_not_correlated(a: list[float], b: list[float]) -> None:
    assert math.isnan(pearson(a, b))
    assert math.isnan(spearman(a, b))


def test_bound_by_hand() -> None:
    """28 examples, .9: atanh is 1.47222, standard error 1.03/5 = .206; two of them below: tanh(1.06022) = .7858."""
    assert spearman_bound(0.9, 28) == pytest.approx(0.7857, abs=1e-4)
    assert spearman_bound(0.9, 28, standard_errors=0) == pytest.approx(0.9)


def test_bound_of_perfect_order_by_hand() -> None:
    """Four examples: at most 1 - 6/60 = .9, atanh 1.47222, minus 2*1.03: tanh(-.58778) = -.5283; and 48 prove .999."""
    assert spearman_bound(1.0, 4) == pytest.approx(-0.5283, abs=1e-4)
    assert spearman_bound(1.0, 8) < 0.99 < spearman_bound(1.0, 16)
    assert 0.999 < spearman_bound(1.0, 48) < 1


def test_bound_grows_with_the_sample_and_the_correlation() -> None:
    bounds = [spearman_bound(0.95, count) for count in (2, 3, 4, 8, 48, 1000)]
    assert bounds == sorted(bounds)
    assert bounds[:2] == [-1, -1]
    assert bounds[-1] < 0.95
    rising = [spearman_bound(correlation, 20) for correlation in (-1.0, -0.5, 0.0, 0.5, 0.9, 1.0)]
    assert rising == sorted(rising)
    assert rising[0] > -1
    assert spearman_bound(math.nan, 20) == -1
    assert spearman_bound(math.nan, 0) == -1


def test_bound_holds_in_97_of_100_samples() -> None:
    """Bivariate normal values of rank correlation .9: 1000 samples of 40."""
    rng, held = generator(), 0
    r = 2 * math.sin(math.pi * 0.9 / 6)  # Pearson's correlation of such values
    for _ in range(1000):
        a, noise = rng.normal(size=(2, 40))
        held += spearman_bound(spearman(a.tolist(), (r * a + math.sqrt(1 - r**2) * noise).tolist()), 40) <= 0.9
    assert 0.95 < held / 1000 < 0.99


# ---------------------------------------------------------------------------------------------------------------------
# Distributions


def test_description_by_hand() -> None:
    """-1, 0, 2, 3: mean 1, squared deviations 4, 1, 1, 4, so the variance is 10/3 and that of the mean 10/12.

    Quantiles lie at 3q between neighbours: a quarter at .75 between -1 and 0, three quarters at .25 between 2 and 3.
    """
    found = describe([3.0, -1.0, 2.0, 0.0], bins=2)
    assert (found["count"], found["mean"], found["positive_rate"]) == (4, 1, 0.5)
    assert found["standard_error"] == pytest.approx(math.sqrt(10 / 12))
    expected = {"0": -1, "0.05": -0.85, "0.25": -0.25, "0.5": 1, "0.75": 2.25, "0.95": 2.85, "1": 3}
    assert found["quantiles"] == pytest.approx(expected)
    assert found["histogram"] == {"counts": [2, 2], "edges": [-1, 1, 3]}


def test_description_of_values_that_differ_by_rounding_alone() -> None:
    for values in ([2 / 3, 2 / 3 + 1e-16], [0.0, 0.0], [-5.0]):
        assert describe(values)["histogram"] == {
            "counts": [len(values)],
            "edges": [values[0] - 0.5, values[0] + 0.5],
        }


def test_description_of_one_value_and_of_none() -> None:
    assert describe([2.0])["standard_error"] == 0
    assert describe([]) == {"count": 0}


def test_cumulative_distribution_by_hand() -> None:
    """Of 1, 2, 4, 8 a quarter lies at .75 between 1 and 2, a half between 2 and 4, three quarters at .25 past 4."""
    assert cumulative([8, 1, 4, 2], steps=4) == [1, 1.75, 3, 5, 8]
    assert cumulative([3.0], steps=2) == [3, 3, 3]
    with pytest.raises(ValueError, match="no values"):
        cumulative([])
