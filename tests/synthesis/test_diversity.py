import math

import pytest

from montessori_pl.synthesis.diversity import SAMPLE, diversity


def test_numbers_derived_by_hand() -> None:
    """Words a b a b a c: frequencies 3/6, 2/6, 1/6; pairs ab, ab, ba, ac: three of four; both texts begin with a."""
    measured = diversity(["a b", "A b a, c!"])
    assert measured == {
        "distinct_rate": 1.0,
        "distinct_2": pytest.approx(3 / 4),
        "token_entropy": pytest.approx(-(1 / 2 * math.log(1 / 2) + 1 / 3 * math.log(1 / 3) + 1 / 6 * math.log(1 / 6))),
        "first_word_entropy": 0.0,
        "mean_characters": (3 + 9) / 2,
        "mean_max_rouge_l": pytest.approx(2 * 2 / (2 + 4)),
    }


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_measures_as_zero(texts: list[str]) -> None:
    assert diversity(texts) == {
        "distinct_rate": float(len(texts)),
        "distinct_2": 0.0,
        "token_entropy": 0.0,
        "first_word_entropy": 0.0,
        "mean_characters": 0.0,
        "mean_max_rouge_l": 0.0,
    }


def test_repetition_and_variety_are_the_ends_of_the_scale() -> None:
    same, different = diversity(["name a river"] * 5), diversity([f"word{i} other{i}" for i in range(5)])
    assert (same["distinct_rate"], same["mean_max_rouge_l"]) == (0.2, 1.0)
    assert (different["distinct_rate"], different["distinct_2"], different["mean_max_rouge_l"]) == (1.0, 1.0, 0.0)
    assert same["token_entropy"] == pytest.approx(math.log(3))
    assert different["token_entropy"] == pytest.approx(math.log(10))


def test_opening_words() -> None:
    """Name, name, list, why: frequencies 1/2, 1/4, 1/4; case and marks do not count, and "?" holds no word."""
    texts = ["Name a river", "name: two lakes", "List", '"Why?"', "?"]
    assert diversity(texts)["first_word_entropy"] == pytest.approx(1 / 2 * math.log(2) + 2 * 1 / 4 * math.log(4))


def test_the_sample_spreads_over_all_texts() -> None:
    """Of 2 * SAMPLE texts every second one is compared; the repeated ones stand only in between."""
    texts = [f"word{i}" if i % 2 == 0 else "same" for i in range(2 * SAMPLE)]
    assert diversity(texts)["mean_max_rouge_l"] == 0.0
    assert diversity(texts[::-1])["mean_max_rouge_l"] == 1.0
