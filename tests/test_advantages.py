"""Advantages within a prompt, by hand."""

import math
import statistics

import pytest

from montessori_pl.advantages import SMALLEST_SPREAD, Scale, group_advantages
from montessori_pl.data.records import Example, Score


def example(id_: str, prompt_id: str = "p") -> Example:
    return Example(id=id_, instruction="say it", response="it", prompt_id=prompt_id)


def score(id_: str, value: float) -> Score:
    return Score(id=id_, value=value)


def test_by_hand() -> None:
    """Scores 1, 2 and 6 have mean 3, a root mean square around it of sqrt(14/3), and standard deviation sqrt(7)."""
    examples = [example("a"), example("b"), example("c")]
    scores = {id_: score(id_, value) for id_, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))}
    size = (14 / 3) ** 0.5
    plain = group_advantages(examples, scores, "none")
    assert plain == pytest.approx({"a": -2 / size, "b": -1 / size, "c": 3 / size})
    spread = 7**0.5 / size + SMALLEST_SPREAD
    assert group_advantages(examples, scores, "group") == pytest.approx({k: v / spread for k, v in plain.items()})


def test_who_has_none() -> None:
    """A completion alone in its prompt, one without a score, an example that no prompt asked for."""
    examples = [example("a"), example("b"), example("alone", "q"), example("unscored"), example("given", "")]
    scores = {id_: score(id_, float(place)) for place, id_ in enumerate(("a", "b", "alone", "given"))}
    assert group_advantages(examples, scores, "group").keys() == {"a", "b"}
    assert group_advantages([], {}, "group") == {}


def test_scores_in_other_units_or_from_another_zero_make_the_same_advantages() -> None:
    examples = [example(str(n), f"p{n // 4}") for n in range(12)]
    values = [(7 * n) % 12 - 3.5 for n in range(12)]
    found = [
        group_advantages(examples, {str(n): score(str(n), zero + unit * v) for n, v in enumerate(values)}, "group")
        for zero, unit in ((0.0, 1e-6), (0.0, 1.0), (5.0, 1.0))
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[2] == pytest.approx(found[1])
    assert statistics.fmean(found[0].values()) == pytest.approx(0)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_scores_that_differ_by_rounding_alone_are_no_reason_for_a_step(scale: Scale) -> None:
    """The mean of three times 0.1 is not 0.1, and the difference would become the unit of all others."""
    examples = [example(f"{prompt}{n}", prompt) for prompt in "pq" for n in range(3)]
    scores = {
        f"{prompt}{n}": score(f"{prompt}{n}", value) for prompt, value in (("p", 0.1), ("q", 0.7)) for n in range(3)
    }
    assert set(group_advantages(examples, scores, scale).values()) == {0.0}
    scores |= {"p2": score("p2", 0.1 + 1e-17), "q2": score("q2", math.nextafter(0.7, 1))}
    assert set(group_advantages(examples, scores, scale).values()) == {0.0}
    scores["q2"] = score("q2", 0.7 + 1e-9)
    assert group_advantages(examples, scores, scale)["q2"] > 0.5


def test_equal_scores_are_no_reason_for_a_step() -> None:
    examples = [example("a"), example("b")]
    assert set(group_advantages(examples, {"a": score("a", 0.3), "b": score("b", 0.3)}, "group").values()) == {0.0}
    assert set(group_advantages(examples, {"a": score("a", 0.0), "b": score("b", 0.0)}, "group").values()) == {0.0}
