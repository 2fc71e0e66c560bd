"""Rankings of teachers, against numbers that were worked out by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from montessori_pl.data.records import Example, Turn
from montessori_pl.routing import Prompt, ResponsePool
from montessori_pl.routing.selection import adjusted_reward, merit, positive, ranking

TEACHERS = ["big", "middle", "small"]
REWARDS = np.array([8.0, 6.0, 5.0])
LOSSES = np.array([3.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("beta", "expected", "order"),
    [
        (0.0, [8, 6, 5], "big middle small"),
        (0.5, [8 / 2.5, 6 / 1.5, 5 / 1.25], "middle small big"),  # 3.2, 4, 4: equals stand in the order of their names
        (3.0, [8 / 10, 6 / 4, 5 / 2.5], "small middle big"),
        (math.inf, [8 / 3, 6, 10], "small middle big"),
    ],
)
def test_the_larger_beta_the_more_a_loss_discounts(beta: float, expected: list[float], order: str) -> None:
    merits = merit("car", {"quality": REWARDS, "loss": LOSSES}, beta)
    np.testing.assert_allclose(merits, expected)
    assert ranking(TEACHERS, merits) == order.split()


def test_a_large_beta_ranks_as_an_infinite_one() -> None:
    large, infinite = (adjusted_reward(REWARDS, LOSSES, beta) for beta in (1e9, math.inf))
    np.testing.assert_allclose(large * 1e9, infinite, rtol=1e-6)


def test_negative_rewards_are_shifted_and_positive_ones_are_not() -> None:
    """Unshifted, -1 / (1 + 3 * 9) > -1 / (1 + 3 * 1): the worse student fit would win between equal rewards."""
    shifted = positive(np.array([-3.0, 7.0, -1.0]))
    np.testing.assert_allclose(shifted, [0.1, 10.1, 2.1])  # the range is 10, and a hundredth of it the lowest
    np.testing.assert_array_equal(positive(REWARDS), REWARDS)
    alike = adjusted_reward(np.array([-1.0, -1.0]), np.array([9.0, 1.0]), 3.0)
    np.testing.assert_allclose(alike, [1 / 28, 1 / 4])
    many = positive(np.array([[-3.0, 7.0, -1.0], [8.0, 6.0, 5.0]]))
    np.testing.assert_allclose(many, [[0.1, 10.1, 2.1], [8, 6, 5]])


def test_the_ranking_of_shifted_rewards_has_no_unit() -> None:
    rewards = np.array([-3.0, 7.0, -1.0])
    orders = [
        ranking(TEACHERS, adjusted_reward(scale * (rewards - shift), LOSSES, 3.0))
        for scale, shift in ((1.0, 0.0), (50.0, 0.0), (0.001, 2.0))
    ]
    assert orders[0] == orders[1] == orders[2]


def test_baselines() -> None:
    means = {"quality": REWARDS, "loss": LOSSES, "length": np.array([2.0, 9.0, 5.0]), "ifd": np.array([0.5, 0.1, 0.9])}
    orders = {rule: ranking(TEACHERS, merit(rule, means, 3.0)) for rule in ("quality", "loss", "length", "ifd")}
    assert orders == {
        "quality": ["big", "middle", "small"],
        "loss": ["small", "middle", "big"],
        "length": ["middle", "small", "big"],
        "ifd": ["small", "big", "middle"],
    }


def example(number: int, teacher: str, instruction: str, system: str = "") -> Example:
    return Example(id=str(number), instruction=instruction, response="r", system=system, teacher=teacher)


def test_a_pool_groups_by_text_and_not_by_prompt_id() -> None:
    examples = [
        example(0, "b", "q"),
        example(1, "a", "q"),
        example(2, "a", "q", "be brief"),
        example(3, "a", "q"),
        example(4, "b", "p"),
    ]
    tables = []
    for order in itertools.permutations(examples):
        pool = ResponsePool.of(order)
        assert pool.prompts == [Prompt("p"), Prompt("q"), Prompt("q", "be brief")]
        assert pool.teachers == ["a", "b"]
        assert pool.counts() == {"a": 3, "b": 2}
        tables.append(pool.table({"0": 0.0, "1": 1.0, "2": 2.0, "3": 4.0}))
    np.testing.assert_array_equal(tables[0], [[np.nan, np.nan], [2.5, 0.0], [2.0, np.nan]])
    for table in tables:
        np.testing.assert_array_equal(table, tables[0])


def test_a_pool_groups_by_the_whole_conversation() -> None:
    turns = [(Turn("user", text), Turn("assistant", "yes")) for text in ("dogs?", "cats?")]
    examples = [dataclasses.replace(example(n, "ab"[n], "why?"), history=turns[n]) for n in range(2)]
    pool = ResponsePool.of([*examples, example(2, "a", "why?")])
    assert pool.prompts == [Prompt("why?"), Prompt("why?", "", turns[1]), Prompt("why?", "", turns[0])]
    assert [message["content"] for message in pool.prompts[1].messages()] == ["cats?", "yes", "why?"]


def test_a_pool_wants_to_know_who_wrote() -> None:
    with pytest.raises(
        ValueError, match=r"no teacher is recorded for the response of example 7 \('why\?'\); write its teac"
    ):
        ResponsePool.of([example(7, "", "why?")])
