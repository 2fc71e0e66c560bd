"""Pairing, by hand-written prompts of a few scored completions."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from montessori_pl.data.records import Example, PreferencePair, Score, stable_id
from montessori_pl.pairing import Rule, mean_scores, pair_examples


def example(example_id: str, prompt_id: str = "p", completion: str | None = None, finished: bool = True) -> Example:
    return Example(
        id=example_id,
        instruction="unused",
        response="unused",
        prompt_id=prompt_id,
        prompt=f"prompt {prompt_id}",
        completion=f"completion {example_id}" if completion is None else completion,
        completion_finished=finished,
    )


def scores_of(values: Mapping[str, float], standard_error: float | None = None) -> dict[str, Score]:
    return {name: Score(id=name, value=value, standard_error=standard_error) for name, value in values.items()}


def ids(pairs: Sequence[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen_id, pair.rejected_id) for pair in pairs]


FOUR = [example(name) for name in "abcd"]
FOUR_SCORES = scores_of({"a": 0.3, "b": -0.1, "c": 0.1, "d": -0.4}, standard_error=0.1)


def test_signed_crosses_every_positive_score_with_every_negative_one() -> None:
    """Margins: a-d 0.7, c-d 0.5, a-b 0.4, c-b 0.2."""
    pairs = pair_examples(FOUR, FOUR_SCORES, rule="signed")

    assert ids(pairs) == [("a", "d"), ("c", "d"), ("a", "b"), ("c", "b")]
    assert [pair.margin for pair in pairs] == pytest.approx([0.7, 0.5, 0.4, 0.2])


def test_signed_makes_nothing_of_scores_of_one_sign_or_of_zero() -> None:
    assert pair_examples(FOUR, scores_of({"a": 0.3, "b": 0.1, "c": 0.0}), rule="signed") == []


def test_best_worst_takes_the_highest_against_the_lowest() -> None:
    assert ids(pair_examples(FOUR, FOUR_SCORES, rule="best_worst")) == [("a", "d")]


def test_best_worst_does_not_need_opposite_signs() -> None:
    assert ids(pair_examples(FOUR, scores_of({"a": 0.3, "b": 0.1, "c": 0.2}), rule="best_worst")) == [("a", "b")]


def test_best_worst_makes_nothing_of_equal_scores_or_of_one_sample() -> None:
    """A judge that gives whole numbers ties often; neither does the control draw pairs there."""
    for values in ({"a": 0.3, "b": 0.3}, {"a": 4.0, "b": 4.0, "c": 4.0, "d": 4.0}, {"a": 0.3}):
        assert pair_examples(FOUR, scores_of(values), rule="best_worst") == []
        assert pair_examples(FOUR, scores_of(values), rule="best_worst", shuffle_seed=0) == []


@pytest.mark.parametrize("rule", ["best_worst", "signed"])
def test_the_record_says_all_that_is_known(rule: Rule) -> None:
    good, bad = example("good", finished=False), example("bad")
    (pair,) = pair_examples([bad, good], scores_of({"good": 0.5, "bad": -0.25}), rule=rule)

    assert pair == PreferencePair(
        id=stable_id("good", "bad"),
        prompt="prompt p",
        chosen="completion good",
        rejected="completion bad",
        chosen_id="good",
        rejected_id="bad",
        prompt_id="p",
        margin=0.75,
        chosen_finished=False,
        rejected_finished=True,
    )


def test_prompts_are_kept_apart_and_in_the_order_of_their_first_appearance() -> None:
    examples = [example("a", "late"), example("b", "early"), example("c", "late"), example("d", "early")]
    pairs = pair_examples(examples, FOUR_SCORES, rule="best_worst")

    assert [(pair.prompt, pair.chosen_id, pair.rejected_id) for pair in pairs] == [
        ("prompt late", "a", "c"),
        ("prompt early", "b", "d"),
    ]


def test_examples_without_a_score_or_a_prompt_are_skipped() -> None:
    examples = [*FOUR[:2], example("unscored"), example("c", prompt_id=""), example("d", prompt_id="")]

    assert ids(pair_examples(examples, FOUR_SCORES, rule="signed")) == [("a", "b")]


def test_an_example_without_a_score_is_neither_the_best_nor_the_worst() -> None:
    examples = [example("unscored"), *FOUR, example("another")]

    assert ids(pair_examples(examples, FOUR_SCORES, rule="best_worst")) == [("a", "d")]
    assert pair_examples([*FOUR[:1], *examples[::5]], FOUR_SCORES, rule="best_worst") == []
    for seed in range(10):
        (drawn,) = pair_examples(examples, FOUR_SCORES, rule="best_worst", shuffle_seed=seed)
        assert {drawn.chosen_id, drawn.rejected_id} <= set("abcd")


@pytest.mark.parametrize("rule", ["best_worst", "signed"])
def test_the_same_text_is_never_paired_with_itself(rule: Rule) -> None:
    """The two texts with the widest margin are the same, so the next pair is the widest; the control has only it."""
    examples = [example("a", completion="same"), example("d", completion="same"), example("c")]
    scores = scores_of({"a": 0.3, "d": -0.4, "c": 0.1})

    assert ids(pair_examples(examples, scores, rule=rule)) == [("c", "d")]
    for seed in range(10):
        (drawn,) = pair_examples(examples, scores, rule=rule, shuffle_seed=seed)
        assert drawn.chosen != drawn.rejected


def test_the_cap_keeps_the_largest_margins_of_each_prompt() -> None:
    others = [example("e", "q"), example("f", "q")]
    scores = FOUR_SCORES | scores_of({"e": 0.01, "f": -0.01})
    pairs = pair_examples([*FOUR, *others], scores, rule="signed", max_pairs_per_prompt=2)

    assert ids(pairs) == [("a", "d"), ("c", "d"), ("e", "f")]


def test_equal_margins_are_decided_by_ids_whatever_the_order() -> None:
    scores = scores_of({"a": 0.5, "b": 0.5, "c": -0.5, "d": -0.5})
    for examples in (FOUR, FOUR[::-1]):
        assert ids(pair_examples(examples, scores, rule="signed", max_pairs_per_prompt=3)) == [
            ("a", "c"),
            ("a", "d"),
            ("b", "c"),
        ]
        assert ids(pair_examples(examples, scores, rule="best_worst")) == [("a", "c")]


def test_the_noise_margin_asks_for_standard_errors_of_the_difference() -> None:
    """Two errors of 0.1 make one of sqrt(0.02) = 0.1414; three of them are 0.4243, four 0.5657."""
    assert ids(pair_examples(FOUR, FOUR_SCORES, rule="signed", noise_margin=3.0)) == [("a", "d"), ("c", "d")]
    assert ids(pair_examples(FOUR, FOUR_SCORES, rule="signed", noise_margin=4.0)) == [("a", "d")]
    assert ids(pair_examples(FOUR, FOUR_SCORES, rule="best_worst", noise_margin=4.0)) == [("a", "d")]
    assert pair_examples(FOUR, FOUR_SCORES, rule="best_worst", noise_margin=5.0) == []


def test_the_noise_margin_comes_before_the_cap() -> None:
    scores = scores_of({"b": -0.1, "c": 0.1}, standard_error=0.01) | {
        "a": Score(id="a", value=0.3, standard_error=1.0),
        "d": Score(id="d", value=-0.4, standard_error=1.0),
    }
    pairs = pair_examples(FOUR, scores, rule="signed", noise_margin=2.0, max_pairs_per_prompt=1)

    assert ids(pairs) == [("c", "b")]


def test_paired_differences_see_what_independent_errors_hide() -> None:
    """Both examples vary much from reference to reference, but together.

    a: 1.2, 0.0, -0.9; b: 0.9, -0.1, -1.1. The margins 0.3, 0.1, 0.2 have the mean 0.2, the standard deviation 0.1 and
    the standard error 0.1 / sqrt(3) = 0.0577: the mean is 3.46 of them. Taken one by one the standard errors are
    0.61 and 0.58, their root of squares 0.84: the mean is 0.24 of that.
    """
    differences = {"a": [1.2, 0.0, -0.9], "b": [0.9, -0.1, -1.1]}
    scores = {
        "a": Score(id="a", value=0.1, standard_error=0.61),
        "b": Score(id="b", value=-0.1, standard_error=0.58),
    }

    def paired(noise_margin: float) -> list[PreferencePair]:
        return pair_examples(FOUR, scores, rule="signed", noise_margin=noise_margin, differences=differences)

    assert pair_examples(FOUR, scores, rule="signed", noise_margin=1.0) == []
    assert ids(paired(3.4)) == [("a", "b")]
    assert paired(2 * math.sqrt(3) + 0.01) == []


def test_a_noise_margin_without_standard_errors_is_refused() -> None:
    """One score with a standard error makes no pair either, but is no mistake."""
    scores = scores_of({"a": 0.3, "b": -0.1})
    with pytest.raises(ValueError, match=r"needs standard errors, and none of 2 scores has one \("):
        pair_examples(FOUR, scores, rule="signed", noise_margin=1.0)
    scores["a"] = dataclasses.replace(scores["a"], standard_error=0.1)
    assert pair_examples(FOUR, scores, rule="signed", noise_margin=1.0) == []


@pytest.mark.parametrize("rule", ["signed", "best_worst"])
def test_no_pair_is_made_of_an_example_without_a_standard_error(rule: Rule) -> None:
    """The others of its prompt have theirs: without the best one, the second best is the best."""
    scores = FOUR_SCORES | {"a": dataclasses.replace(FOUR_SCORES["a"], standard_error=None)}
    rest = {id_: score for id_, score in FOUR_SCORES.items() if id_ != "a"}
    pairs = pair_examples(FOUR, scores, rule=rule, noise_margin=1.0)
    assert pairs == pair_examples(FOUR, rest, rule=rule, noise_margin=1.0)
    assert pairs


def test_missing_differences_are_named() -> None:
    with pytest.raises(ValueError, match="example b has no difference per reference example"):
        pair_examples(
            FOUR, scores_of({"a": 0.3, "b": -0.1}), rule="signed", noise_margin=1.0, differences={"a": [0.1, 0.2]}
        )


def test_pairs_weigh_the_same_by_default() -> None:
    equal = pair_examples(FOUR, FOUR_SCORES, rule="signed")

    assert {pair.weight for pair in equal} == {1.0}
    assert pair_examples(FOUR, FOUR_SCORES, rule="signed", weights="equal") == equal


def test_weights_in_proportion_to_margins() -> None:
    """Margins .7, .5, .4, .2 with the mean .45; of four the 95th percentile is the largest, so that none is cut."""
    equal = pair_examples(FOUR, FOUR_SCORES, rule="signed")
    weighed = pair_examples(FOUR, FOUR_SCORES, rule="signed", weights="margin")

    assert [pair.weight for pair in weighed] == pytest.approx([0.7 / 0.45, 0.5 / 0.45, 0.4 / 0.45, 0.2 / 0.45])
    assert [dataclasses.replace(pair, weight=1.0) for pair in weighed] == equal, "the order and all else are kept"


def test_a_huge_margin_weighs_as_much_as_the_95th_percentile() -> None:
    """Margins 1000, 1, 2, ..., 19, a prompt each: 95 of 100 are at most 19. Mean (19 + 190) / 20 = 10.45."""
    examples = [example(f"{name}{n}", f"q{n}") for n in range(20) for name in ("good", "bad")]
    scores = scores_of({f"bad{n}": 0.0 for n in range(20)} | {f"good{n}": float(n or 1000) for n in range(20)})
    weighed = pair_examples(examples, scores, rule="best_worst", weights="margin")

    assert [pair.margin for pair in weighed] == [1000.0, *range(1, 20)], "prompt by prompt, as without weights"
    assert [pair.weight for pair in weighed] == pytest.approx([n / 10.45 for n in (19, *range(1, 20))])
    assert sum(pair.weight for pair in weighed) == pytest.approx(20)


def test_margins_of_the_random_control_weigh_by_their_size() -> None:
    """A pair that was drawn against its scores says as much as one that was drawn along them."""
    examples, scores = many_prompts()
    equal = pair_examples(examples, scores, rule="best_worst", shuffle_seed=0)
    weighed = pair_examples(examples, scores, rule="best_worst", shuffle_seed=0, weights="margin")

    assert ids(weighed) == ids(equal)
    assert any(pair.margin < 0 for pair in weighed)
    assert all(pair.weight > 0 for pair in weighed)
    assert sum(pair.weight for pair in weighed) == pytest.approx(len(weighed))
    # Of 30 sizes the 29th is the 95th percentile: ceil(28.5). Up to there, weight by size is one constant.
    by_size = sorted(weighed, key=lambda pair: abs(pair.margin))
    constant = by_size[0].weight / abs(by_size[0].margin)
    assert [pair.weight for pair in by_size[:29]] == pytest.approx(
        [constant * abs(pair.margin) for pair in by_size[:29]]
    )
    assert by_size[29].weight == pytest.approx(by_size[28].weight)


def test_a_single_pair_weighs_one_whatever_its_margin() -> None:
    """Of one prompt the control draws one pair, often of two equal scores: no size to be in proportion to."""
    scores = scores_of({"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0})
    drawn = [
        pair
        for seed in range(20)
        for pair in pair_examples(FOUR, scores, rule="best_worst", shuffle_seed=seed, weights="margin")
    ]

    assert {pair.margin for pair in drawn} == {-1.0, 0.0, 1.0}
    assert {pair.weight for pair in drawn} == {1.0}
    assert pair_examples([], {}, rule="best_worst", weights="margin") == []


def many_prompts() -> tuple[list[Example], dict[str, Score]]:
    examples = [example(f"{prompt}-{place}", f"q{prompt}") for prompt in range(30) for place in range(4)]
    values = {row.id: math.sin(7.0 * index) for index, row in enumerate(examples)}
    return examples, scores_of(values, standard_error=0.2)


@pytest.mark.parametrize(("rule", "cap"), [("best_worst", None), ("signed", None), ("signed", 2)])
@pytest.mark.parametrize("noise_margin", [0.0, 3.0])
def test_the_random_control_has_as_many_pairs_of_each_prompt(rule: Rule, cap: int | None, noise_margin: float) -> None:
    examples, scores = many_prompts()
    settled = pair_examples(examples, scores, rule=rule, max_pairs_per_prompt=cap, noise_margin=noise_margin)
    drawn = pair_examples(
        examples, scores, rule=rule, max_pairs_per_prompt=cap, noise_margin=noise_margin, shuffle_seed=0
    )

    assert [pair.prompt for pair in drawn] == [pair.prompt for pair in settled]
    assert ids(drawn) != ids(settled)
    assert len({frozenset(pair) for pair in ids(drawn)}) == len(drawn), "no pair twice, in whatever direction"
    assert all(pair.margin == scores[pair.chosen_id].value - scores[pair.rejected_id].value for pair in drawn)


def test_the_random_control_prefers_either_side_about_as_often() -> None:
    """60 fair draws: fewer than 15 or more than 45 of one kind happen once in some ten thousand seeds."""
    examples, scores = many_prompts()
    drawn = pair_examples(examples, scores, rule="best_worst", shuffle_seed=0)
    drawn += pair_examples(examples, scores, rule="best_worst", shuffle_seed=1)

    assert len(drawn) == 60
    assert 15 <= sum(pair.margin > 0 for pair in drawn) <= 45
    assert 15 <= sum(pair.chosen_id < pair.rejected_id for pair in drawn) <= 45


def test_the_random_control_depends_on_its_seed_and_on_nothing_else() -> None:
    examples, scores = many_prompts()
    drawn = pair_examples(examples, scores, rule="signed", shuffle_seed=0)

    assert pair_examples(examples, scores, rule="signed", shuffle_seed=0) == drawn
    assert pair_examples(examples, scores, rule="signed", shuffle_seed=1) != drawn
    # Each prompt has a seed of its own: other prompts and the order within one do not matter.
    some = [row for row in reversed(examples) if row.prompt_id in ("q3", "q7")]
    again = pair_examples(some, scores, rule="signed", shuffle_seed=0)
    assert {pair.id for pair in again} == {pair.id for pair in drawn if pair.prompt in ("prompt q3", "prompt q7")}


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("xyz"), st.integers(-3, 3)), max_size=12))
def test_whatever_comes_in_every_pair_prefers_the_better_of_two_texts(rows: list[tuple[str, str, int]]) -> None:
    examples = [example(str(index), prompt, completion) for index, (prompt, completion, _) in enumerate(rows)]
    scores = scores_of({str(index): float(value) for index, (_, _, value) in enumerate(rows)})
    prompts = {row.id: row.prompt_id for row in examples}

    signed = pair_examples(examples, scores, rule="signed")
    best = pair_examples(examples, scores, rule="best_worst")
    for pair in [*signed, *best]:
        assert pair.margin > 0
        assert pair.chosen != pair.rejected
        assert prompts[pair.chosen_id] == prompts[pair.rejected_id]
    assert len(best) == len({pair.prompt for pair in best}) <= 3
    assert {pair.prompt for pair in signed} <= {pair.prompt for pair in best}


def test_no_kind_of_request_has_more_than_its_share() -> None:
    """Six prompts, four of whose chosen instructions begin with `sort`: of a weight of 6 these have 4, and may have 3.

    The others have 2, and half of 4 are 2: they are scaled by 1/2. The mean stays 1, so that all are scaled up by 6/4.
    """
    instructions = ["sort a", "Sort b", "sort c", "sort d", "count e", "say f"]
    examples, values = [], {}
    for number, instruction in enumerate(instructions):
        good, bad = (example(f"{number}{side}", f"p{number}") for side in ("good", "bad"))
        examples += [dataclasses.replace(good, instruction=instruction), bad]
        values |= {good.id: 1.0, bad.id: 0.0}
    pairs = pair_examples(examples, scores_of(values), rule="best_worst", max_first_word_rate=0.5)
    assert [pair.weight for pair in pairs] == pytest.approx([0.75] * 4 + [1.5] * 2)

    equal = pair_examples(examples, scores_of(values), rule="best_worst", max_first_word_rate=0.7)
    assert [pair.weight for pair in equal] == [1.0] * 6, "nobody has more than .7"


def test_scores_that_differ_by_rounding_alone_make_no_pair() -> None:
    """As .1 + .2 and .3 do; differences that are as small beside scores as small are differences."""
    alike = scores_of({"a": 0.1 + 0.2, "b": 0.3})
    assert pair_examples(FOUR, alike, rule="best_worst") == []
    small = scores_of({"a": 2e-16, "b": 1e-16})
    assert ids(pair_examples(FOUR, small, rule="best_worst")) == [("a", "b")]


def test_shares_are_those_of_the_weights_by_margin() -> None:
    """Margins 3 and 1: weights 1.5 and .5, shares .75 and .25; at most half each leaves .5 and .5, with the mean 1."""
    examples = [
        dataclasses.replace(example(f"{prompt}{side}", prompt), instruction=f"{prompt} it")
        for prompt in ("sort", "say")
        for side in ("good", "bad")
    ]
    scores = scores_of({"sortgood": 3.0, "sortbad": 0.0, "saygood": 1.0, "saybad": 0.0})
    pairs = pair_examples(examples, scores, rule="best_worst", weights="margin", max_first_word_rate=0.5)
    assert [pair.weight for pair in pairs] == pytest.approx([1.0, 1.0])


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 9)), min_size=1, max_size=30),
    st.floats(0.05, 1, exclude_min=True),
)
def test_no_share_is_above_its_limit_where_there_are_enough_kinds(kinds: list[tuple[str, int]], limit: float) -> None:
    examples, values = [], {}
    for number, (kind, margin) in enumerate(kinds):
        good, bad = (example(f"{number}{side}", f"p{number}") for side in ("good", "bad"))
        examples += [dataclasses.replace(good, instruction=kind), bad]
        values |= {good.id: float(margin), bad.id: 0.0}
    settings: dict[str, Any] = {"rule": "best_worst", "weights": "margin"}
    before = pair_examples(examples, scores_of(values), **settings)
    pairs = pair_examples(examples, scores_of(values), **settings, max_first_word_rate=limit)
    openings = {one.id: one.instruction for one in examples}

    def weights(pairs: Sequence[PreferencePair], kind: str) -> list[float]:
        return [pair.weight for pair in pairs if openings[pair.chosen_id] == kind]

    names = {kind for kind, _ in kinds}
    shares = {kind: sum(weights(pairs, kind)) / len(pairs) for kind in names}
    bound = max(limit, 1 / len(names))
    assert max(shares.values()) <= bound * (1 + 1e-9)
    assert sum(shares.values()) == pytest.approx(1)
    for kind in names:
        if shares[kind] < bound * (1 - 1e-9):  # what is below the limit is cut nowhere: all such grow alike
            factor = {round(new / old, 9) for new, old in zip(weights(pairs, kind), weights(before, kind), strict=True)}
            assert len(factor) == 1
            assert min(factor) >= 1 - 1e-9


def test_a_noise_margin_needs_two_references() -> None:
    with pytest.raises(ValueError, match="needs two reference examples or more, found 1"):
        pair_examples(
            FOUR, FOUR_SCORES, rule="best_worst", noise_margin=1.0, differences={id_: [0.0] for id_ in "abcd"}
        )


def test_the_mean_of_scores_of_different_sizes() -> None:
    """Standard deviations 5 (around 6) and .5 (around -1): values are divided by them, and errors and terms too."""
    first = scores_of({"a": 11.0, "b": 1.0, "c": 11.0, "d": 1.0}, standard_error=1.0)
    second = scores_of({"c": -1.5, "a": -0.5, "b": -0.5, "d": -1.5}, standard_error=0.1)
    first["a"] = dataclasses.replace(first["a"], terms=(10.0, 12.0))
    second["a"] = dataclasses.replace(second["a"], terms=(-1.0, 0.0))
    found = mean_scores([first, second])

    assert list(found) == ["a", "b", "c", "d"]
    assert {name: score.value for name, score in found.items()} == pytest.approx(
        {"a": (2.2 - 1.0) / 2, "b": (0.2 - 1.0) / 2, "c": (2.2 - 3.0) / 2, "d": (0.2 - 3.0) / 2}
    )
    assert [score.standard_error for score in found.values()] == pytest.approx([(0.2 + 0.2) / 2] * 4)
    assert found["a"].terms == pytest.approx(((2.0 - 2.0) / 2, (2.4 + 0.0) / 2))
    assert found["a"].value == pytest.approx(math.fsum(found["a"].terms) / 2)
    assert found["b"].terms == ()


def test_mean_scores_need_all_judges_and_more_than_one_value() -> None:
    one, other = scores_of({"a": 1.0, "b": 2.0}, standard_error=0.1), scores_of({"a": 1.0, "c": 3.0})
    assert list(mean_scores([one, other])) == ["a"]
    assert mean_scores([one, other])["a"].standard_error is None
    for alike in ({"a": 0.0, "b": 0.0}, {"a": 0.1, "b": 0.1}, {"a": 0.3, "b": 0.1 + 0.2}):
        with pytest.raises(ValueError, match="all of them are alike"):
            mean_scores([one, scores_of(alike)])
    with pytest.raises(ValueError, match="there is none"):
        mean_scores([one, {}])


def test_a_judge_from_one_to_five_is_not_outvoted_by_influence_around_zero() -> None:
    """By their size, scores of 4 and 5 hardly differ; what counts is by how much they differ from each other."""
    influence = scores_of({"a": 1e-4, "b": -1e-4, "c": 1e-4, "d": -1e-4})
    judged = scores_of({"a": 4.0, "b": 5.0, "c": 5.0, "d": 4.0})
    alike, mostly_judged = mean_scores([influence, judged]), mean_scores([influence, judged], [1.0, 1.5])
    assert alike["a"].value == pytest.approx(alike["b"].value)
    assert mostly_judged["a"].value < mostly_judged["b"].value


def test_judges_have_weights() -> None:
    """Standard deviations 5 and 1; the second counts three times. Judges of several kinds have no terms in common."""
    first = scores_of({"a": 5.0, "b": -5.0}, standard_error=1.0)
    second = scores_of({"a": -1.0, "b": 1.0}, standard_error=0.4)
    first["a"], second["a"] = (
        dataclasses.replace(one, terms=terms, method=method)
        for one, terms, method in ((first["a"], (4.0, 6.0), "exact"), (second["a"], (-1.0,), "judge"))
    )
    found = mean_scores([first, second], [1.0, 3.0])
    assert {id_: one.value for id_, one in found.items()} == pytest.approx({"a": -0.5, "b": 0.5})
    assert found["a"].standard_error == pytest.approx((0.2 + 3 * 0.4) / 4)
    assert (found["a"].terms, found["a"].method) == ((), "mean of 2: exact, judge")
    assert mean_scores([first, second], [2.0, 2.0]) == mean_scores([first, second])


def test_scaling_a_judge_changes_nothing() -> None:
    one, other = FOUR_SCORES, scores_of({"a": 0.1, "b": 0.5, "c": -0.2, "d": 0.3})
    thousandfold = {name: dataclasses.replace(score, value=1000 * score.value) for name, score in other.items()}
    assert {n: s.value for n, s in mean_scores([one, other]).items()} == pytest.approx(
        {n: s.value for n, s in mean_scores([one, thousandfold]).items()}
    )
