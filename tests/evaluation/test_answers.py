"""Answers: what counts as the same, by a table, and properties that hold for whatever is written."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from montessori_pl.evaluation.answers import final_answer, last_number, number, same_answer, same_text

SAME = [
    ("18", "18"),
    ("1,000", "1000"),
    ("1,234,567.50", "1234567.5"),
    ("2.50", "2.5"),
    (".5", "0.5"),
    ("007", "7"),
    ("1/2", "0.5"),
    ("2/4", "1 / 2"),
    ("+5", "5"),
    ("-0", "0"),
    ("\u22125", "-5"),
    ("\u20135", "-5"),
    ("-$5", "$-5"),
    ("$5", "5"),
    (r"\$5", "5"),
    ("$5$", "5"),
    ("5%", "5"),
    (r"5\%", "5"),
    ("5 %.", "5"),
    ("5.", "5"),
    ("It takes 2+1=3 hours.\n#### 3", "He needs <<1+2=3>>3 hours.\n#### 3"),
    ("#### 5 apples", "#### 5"),
    ("#### 4\nWait.\n#### 5", "5"),
    ("####\n5", "5"),
    ("#### 5\n\nQuestion: what is 7?", "5"),
    (r"so it is \boxed{12} metres, that is 1200 cm", "12"),
    (r"\boxed{3} or rather \boxed{4}.", "4"),
    (r"\boxed{4} and \boxed{5", "4"),
    (r"\boxed{\text{Paris}}", r"\boxed{\text{paris}}"),
    ("There were 7 and now there are 5 of them", "5"),
    ("the temperature is -5 degrees", "-5"),
    ("x=-5", "-5"),
    ("10-5=5", "5"),
    ("so $(3-8) = -5$.", "-5"),
    ("x_1 = 5 and not x^2", "5"),
    ("5km", "5"),
    ("in all 1,000.", "1000"),
    ("8 / 2", "4"),
    ("Paris", " paris "),
    ("3 1 2", "3  1 2"),
    ("", ""),
]
DIFFERENT = [
    ("5", "-5"),
    ("\u22125", "5"),
    ("it is -5", "5"),
    ("#### -5", "#### 5"),
    ("10", "1"),
    ("1,000", "1"),
    ("2.5", "25"),
    ("0.33", "1/3"),
    ("5%", "0.05"),
    ("1/0", "1"),
    ("", "5"),
    ("five", "5"),
    ("5", "five"),
    ("#### ", "5"),
    ("3 1 2", "2"),
    ("3 1 2", "312"),
    ("3 1 2", "3 2 1"),
    ("1,2", "2"),
    ("1,2", "12"),
    ("version 1.2.3", "3"),
    ("1/2/2024", "2024"),
    ("1e5", "5"),
    ("1e5", "1"),
    ("x^2", "2"),
    ("x^{-2}", "2"),
    (r"\boxed{\frac{1}{2}}", "2"),
    ("H2", "2"),
    ("first 5, then 6", "5"),
    ("Paris.", "Rome."),
    ("The answer is Paris", "Paris"),
    ("9" * 5000, "9"),
    ("#### Step 2\nso it is \\boxed{99}", "2"),
]


@pytest.mark.parametrize(("given_text", "expected"), SAME)
def test_the_same(given_text: str, expected: str) -> None:
    assert same_answer(given_text, expected)


@pytest.mark.parametrize(("given_text", "expected"), DIFFERENT)
def test_different(given_text: str, expected: str) -> None:
    assert not same_answer(given_text, expected)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\n#### b ", "b"),
        ("a #### b \nc", "b"),
        (r"#### 1 \boxed{2}", "2"),
        (r"\boxed{2} #### 1", "1"),
        ("#### 18\nI hope that this helps.", "18"),
        ("#### **18**\nI hope that this helps.", "**18**"),
        ("#### $18 in all\nI hope that this helps.", "$18 in all"),
        ("#### Step 1: add\n30 + 42 = 72\n\n#### Step 2: conclude\nIt is \\boxed{72}.", "72"),
        ("It is \\boxed{72}.\n#### Remarks\nThis was easy.", "72"),
        ("#### Final answer\n72", "72"),
        ("##### Conclusion\n\nIt is 72.", "It is 72."),
        ("#### 1. Add\n30 + 42 = 72\n#### 2. Conclude\nIt is 72.", "It is 72."),
        ("#### 72\n#### Remarks\nThis was easy.", "72"),
        (r"\boxed{a{b}c} d", "a{b}c"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{ } ", ""),
        (r" \boxed{5 ", r"\boxed{5"),
        (" whole text ", "whole text"),
    ],
)
def test_final_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_numbers_are_exact() -> None:
    assert number("0.1") == Fraction(1, 10)
    assert number("-1.5/3") == Fraction(-1, 2)
    assert [number(text) for text in ("", "-", ".", "5 apples", "3 1", "1e5", "1/0", "--5", "5-")] == [None] * 9
    assert last_number("of 12 eggs, 1/4 broke") == Fraction(1, 4)
    assert last_number("2 3") is None


LIKE_ANSWERS = st.text(alphabet="0159 .,-+/%$#\n\\{}abx^\u2212", max_size=20) | st.text(max_size=30)
VALUES = st.fractions(max_denominator=1000)
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9)


@pytest.mark.slow
@given(LIKE_ANSWERS)
def test_every_text_is_the_same_as_itself(text: str) -> None:
    assert same_answer(text, text)


@given(LIKE_ANSWERS, LIKE_ANSWERS)
def test_symmetric_where_neither_is_talk(one: str, other: str) -> None:
    """Two numbers, or two texts; a number can stand in a text, and not the other way round."""
    if (number(final_answer(one)) is None) == (number(final_answer(other)) is None):
        assert same_answer(one, other) == same_answer(other, one)


@given(VALUES, VALUES)
def test_fractions_are_compared_as_values(one: Fraction, other: Fraction) -> None:
    assert same_answer(str(one), str(other)) == (one == other)


@given(DECIMALS)
def test_a_changed_sign_is_another_answer(value: object) -> None:
    digits = str(value).removeprefix("-")
    zero = not digits.strip("0.")
    for talk in ("{}", "it is {} kg.", "#### {}", r"\boxed{{{}}}"):
        assert same_answer(talk.format(f"-{digits}"), digits) is zero
        assert same_answer(talk.format(digits), f"-{digits}") is zero
        assert same_answer(talk.format(f"-{digits}"), f"\u2212{digits}")


@given(st.integers(min_value=-(10**12), max_value=10**12))
def test_commas_and_zeros_change_nothing(value: int) -> None:
    assert same_answer(f"{value:,}.00", str(value))
    assert same_answer(str(value), f"${value:,}")


@pytest.mark.parametrize("same", [same_answer, same_text])
def test_reasoning_is_no_answer(same: Callable[[str, str], bool]) -> None:
    """What a model thinks of on the way is neither right nor wrong; who is cut while thinking has said nothing."""
    assert same("<think>\nis it 7? no\n</think>\n\n5", "5")
    assert same("is it 7? no\n</think>\n5", "<think>six minus one</think>5"), "the prompt may have opened it"
    assert not same("<think>it is 5</think>7", "5")
    assert not same("<think>it is 5", "5")
