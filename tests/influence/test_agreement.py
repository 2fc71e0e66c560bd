"""Agreement of scores, by numbers that a person can follow."""

import math

import pytest

from montessori_pl.influence import agreement


def test_by_hand() -> None:
    """Rank differences 0, 1, 1, 0 of four: 1 - 6*2/(4*15) = .8. Signs agree in three of four.

    Groups a (1, -1 against 1, 2): another best and another worst. Group b (-3, 4 against -2, 5): the same ones.
    """
    found = agreement([1.0, -1.0, -3.0, 4.0], [1.0, 2.0, -2.0, 5.0], ["a", "a", "b", "b"])

    assert found.count == 4
    assert found.spearman == pytest.approx(0.8)
    assert found.pearson == pytest.approx(23.5 / math.sqrt(26.75 * 25))
    assert found.sign == 0.75
    assert (found.best, found.worst) == (0.5, 0.5)


def test_best_and_worst_are_told_apart() -> None:
    found = agreement([3, 2, 1], [3, 1, 2], "aaa")

    assert (found.best, found.worst) == (1.0, 0.0)


def test_groups_of_one_do_not_count() -> None:
    found = agreement([1, 2, 3], [3, 2, 1], [0, 1, 2])
    assert math.isnan(found.best)
    assert math.isnan(found.worst)
    assert agreement([1, 2, 3], [1, 2, 9], [0, 1, 1]).best == 1.0


def test_without_examples_nothing_is_known() -> None:
    found = agreement([], [], [])

    assert found.count == 0
    assert all(math.isnan(value) for value in (found.pearson, found.spearman, found.sign, found.best, found.worst))
