"""The length-controlled win rate: by hand, against a general optimizer, and against the library's own numbers.

The numbers of the library are those of alpaca_eval 0.6.6 with scikit-learn 1.9.1: `get_length_controlled_winrate` with
`length_controlled_minimal` and `length_controlled_v1` on the comparisons that `comparisons` draws. For the latter the
rows of `gamed` were its `df_gamed.csv`, which it else downloads.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy.optimize import minimize

from montessori_pl.stats.length_controlled import PromptFeatures, fit, length_controlled_win_rate


class Comparisons(NamedTuple):
    preferences: list[float]
    lengths: list[int]
    baseline_lengths: list[int]


def comparisons(
    seed: int, count: int, theta: float, phi: float, missing: float = 0.0, ties: float = 0.1, soft: bool = False
) -> Comparisons:
    """What a judge says who likes longer answers as phi says; without a judgement NaN."""
    rng = np.random.default_rng(seed)
    found = Comparisons([], [], [])
    for _ in range(count):
        baseline, ours = int(rng.integers(1, 400)), int(rng.integers(1, 600))
        p = 1 / (1 + np.exp(-(theta + phi * np.tanh((baseline - ours) / 150))))
        preference = 0.5 if rng.random() < ties else (p if soft else float(rng.random() < p))
        found.preferences.append(math.nan if rng.random() < missing else preference)
        found.lengths.append(ours)
        found.baseline_lengths.append(baseline)
    return found


def gamed(count: int, num_prompts: int = 805) -> PromptFeatures:
    """Rows in the form of `df_gamed.csv`, and the difficulties of the first prompts."""
    rng = np.random.default_rng(9)
    difficulties = rng.normal(0, 1, num_prompts)
    rows = [
        (np.clip(0.5 + sign * 0.2 + rng.normal(0, 0.2), 0, 1), rng.normal(sign, 0.5))
        for sign in (1, -1)
        for _ in range(num_prompts)
    ]
    preferences, differences = np.array(rows).T
    return PromptFeatures(difficulties[:count], preferences, differences, np.tile(difficulties, 2))


CASES = {
    "a": ((1, 100, 0.3, -0.8), 56.56175650796806, 64.2834262478887),
    "b": ((2, 37, -1.0, -0.3, 0.1), 33.73296348902668, 28.68824721915482),
    "c": ((3, 400, 0.8, -1.5, 0.02, 0.1, True), 65.00077143168996, 70.77213425103474),
    "f": ((6, 805, -0.4, -1.2, 0.01), 37.86686726605106, 43.061452419943244),
}
"""What is compared, and what the library says: without and with what is known of the prompts, in percent."""


@pytest.mark.parametrize("case", ["a", *(pytest.param(case, marks=pytest.mark.slow) for case in "bcf")])
def test_equals_the_library(case: str) -> None:
    settings, minimal, version_1 = CASES[case]
    rows = comparisons(*settings)
    found = length_controlled_win_rate(*rows)
    assert found is not None
    assert 100 * found.mean == pytest.approx(minimal, abs=2e-3)
    found = length_controlled_win_rate(*rows, prompts=gamed(len(rows.preferences)))
    assert found is not None
    assert 100 * found.mean == pytest.approx(version_1, abs=2e-3)


def test_equal_lengths_change_nothing() -> None:
    """By hand: without a difference of lengths the model is sigma(theta), whose best fit is the win rate itself, here 3
    of 4, but for the penalty: at a strength C it holds `C N (3/4 - sigma(theta)) = 1`."""
    preferences = [1.0, 1.0, 1.0, 0.0] * 25
    found = length_controlled_win_rate(preferences, [7] * 100, [7] * 100)
    assert found is not None
    assert found.mean == pytest.approx(0.75, abs=0.01)
    (coefficients,) = fit(np.ones((100, 1)), np.array(preferences), np.ones((1, 100)), strength=2.0)
    assert 1 / (1 + math.exp(-coefficients[0])) == pytest.approx(0.75 - 1 / (2.0 * 100), abs=1e-9)


def test_the_fit_against_a_general_optimizer() -> None:
    """Nelder and Mead's simplex knows neither slopes nor penalties; of several fits at once each is as it is alone."""
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(30, 2)), rng.random(30)
    weights = rng.random((3, 30)) * [[1.0], [0.0], [1.0]] + [[0.0], [1.0], [0.5]]
    found = fit(features, targets, weights, strength=0.3)

    for row, weight in zip(found, weights, strict=True):

        def objective(w: np.ndarray, weight: np.ndarray = weight) -> float:
            z = features @ w
            return float(np.abs(w).sum() + 0.3 * weight @ (np.logaddexp(0, z) - targets * z))

        slow = minimize(objective, [0.1, 0.1], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
        assert row == pytest.approx(slow.x, abs=1e-5)


def test_always_won() -> None:
    found = length_controlled_win_rate([1.0] * 20, list(range(20)), [5] * 20, np.random.default_rng(0))
    assert found is not None
    assert found.ends is not None
    assert found.ends[0] > 0.99


def test_a_judge_without_preferences_has_an_interval() -> None:
    """Ten wins and ten losses at random lengths: nothing is left of theta, and chance is as large as ever."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 50, size=(2, 20)).tolist()
    found = length_controlled_win_rate([1.0, 0.0] * 10, *lengths, np.random.default_rng(0))
    assert found is not None
    assert found.half_width == pytest.approx(1.96 * 0.5 / math.sqrt(20), rel=0.4)


def test_interval_covers_what_is_drawn() -> None:
    """The judge looks at nothing but lengths and chance: half is within the interval."""
    rows = comparisons(11, 100, 0.0, -1.0, missing=0.05)
    found = length_controlled_win_rate(*rows, np.random.default_rng(1))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(95), rel=0.3)


def test_too_few_judgements() -> None:
    assert length_controlled_win_rate([1.0] * 4 + [math.nan], [1] * 5, [2] * 5) is None
