"""The limits, each on both sides of its bound."""

import pytest

from montessori_pl.synthesis.collapse import HIGHER_IS_WORSE, LOWER_IS_WORSE, CollapseLimits

BEFORE = {
    "parsed_rate": 0.9,
    "token_entropy": 4.0,
    "first_word_entropy": 2.0,
    "distinct_rate": 0.5,
    "divergence": 0.1,
    "near_duplicate_rate": 0.2,
}


@pytest.mark.parametrize(
    ("name", "inside", "outside", "clause"),
    [
        # .8 of .9
        ("parsed_rate", 0.721, 0.719, "share of usable completions 0.72, before 0.90, limit 0.72"),
        # .8 of 4
        ("token_entropy", 3.201, 3.19, "entropy of the words 3.19, before 4.00, limit 3.20"),
        # .7 of 2
        ("first_word_entropy", 1.401, 1.39, "entropy of the first words 1.39, before 2.00, limit 1.40"),
        # .8 of .5
        ("distinct_rate", 0.401, 0.39, "share of different texts 0.39, before 0.50, limit 0.40"),
        # .1 and .3
        (
            "divergence",
            0.399,
            0.41,
            "divergence from the teacher before alignment, in nats per token 0.41, before 0.10, limit 0.40",
        ),
        # .2 and .3
        ("near_duplicate_rate", 0.499, 0.51, "share of near duplicates 0.51, before 0.20, limit 0.50"),
    ],
)
def test_both_sides_of_each_limit(name: str, inside: float, outside: float, clause: str) -> None:
    limits = CollapseLimits()
    assert limits.crossed(BEFORE, BEFORE) == []
    assert limits.crossed(BEFORE, BEFORE | {name: inside}) == []
    assert limits.crossed(BEFORE, BEFORE | {name: outside}) == [clause]


@pytest.mark.parametrize("name", ["parsed_rate", "token_entropy"])
def test_the_bound_itself_is_within(name: str) -> None:
    limits = CollapseLimits(**{name: 0.5})
    assert limits.crossed({name: 4.0}, {name: 2.0}) == []
    assert limits.crossed({name: 4.0}, {name: 1.99}) != []


def test_the_other_direction_is_never_a_collapse() -> None:
    better = dict.fromkeys(LOWER_IS_WORSE, 100.0) | dict.fromkeys(HIGHER_IS_WORSE, 0.0)
    assert CollapseLimits().crossed(BEFORE, better) == []


def test_all_at_once_in_a_fixed_order() -> None:
    worse = dict.fromkeys(LOWER_IS_WORSE, 0.0) | dict.fromkeys(HIGHER_IS_WORSE, 100.0)
    clauses = CollapseLimits().crossed(dict(reversed(BEFORE.items())), worse)
    titles = list((LOWER_IS_WORSE | HIGHER_IS_WORSE).values())
    assert len(clauses) == len(titles) == 6
    assert all(clause.startswith(title) for clause, title in zip(clauses, titles, strict=True))


def test_null_does_not_look() -> None:
    blind = CollapseLimits(**dict.fromkeys(BEFORE))
    assert blind.crossed(BEFORE, dict.fromkeys(BEFORE, 0.0) | {"divergence": 100.0}) == []


@pytest.mark.parametrize("name", BEFORE)
def test_what_one_side_has_not_measured_is_not_judged(name: str) -> None:
    worst = {name: 0.0 if name in LOWER_IS_WORSE else 100.0}
    assert len(CollapseLimits().crossed(BEFORE, worst)) == 1
    assert CollapseLimits().crossed({}, worst) == CollapseLimits().crossed(worst, {}) == []


def test_a_teacher_that_varied_nothing_cannot_fall() -> None:
    assert CollapseLimits().crossed({"token_entropy": 0.0}, {"token_entropy": 0.0}) == []


@pytest.mark.parametrize("name", BEFORE)
def test_negative_limits_are_refused(name: str) -> None:
    assert CollapseLimits(**{name: 0.0}) != CollapseLimits()
    with pytest.raises(ValueError, match=rf"{name}: expected float >= 0.*, found -0\.1"):
        CollapseLimits(**{name: -0.1})
