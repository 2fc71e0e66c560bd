"""Which of several answers is kept, and when none is."""

import pytest

from montessori_pl.generation import Completion
from montessori_pl.stages import SelfConsistency
from montessori_pl.synthesis.filters import Rejected


def answers(*texts: str, cut: int | None = None) -> list[Completion]:
    """Answers in this order; the one at `cut` has not ended."""
    return [Completion(text=text, finished=place != cut, num_tokens=3) for place, text in enumerate(texts)]


def kept(rule: SelfConsistency, *texts: str, cut: int | None = None) -> str:
    return rule.vote(answers(*texts, cut=cut)).text


def refused(rule: SelfConsistency, *texts: str, cut: int | None = None) -> str:
    with pytest.raises(Rejected) as error:
        rule.vote(answers(*texts, cut=cut))
    assert error.value.reason == "inconsistent answers"
    return error.value.detail


def test_the_first_of_the_majority_is_kept_with_its_reasoning() -> None:
    rule = SelfConsistency(samples=3)
    assert kept(rule, "7", "3 + 5 = 8 #### 8", "I say \\boxed{8}") == "3 + 5 = 8 #### 8"
    assert kept(rule, "It is 1,000.", "#### 1000", "5") == "It is 1,000.", "numbers are compared as numbers"
    assert kept(rule, "<think>6? no</think>8", "<think>9? no</think>8.0", "6") == "<think>6? no</think>8"


@pytest.mark.parametrize(("number", "asked"), [(7, 10), (3, 5), (2, 3), (1, 3)])
def test_exactly_as_many_as_are_asked_for_are_enough(number: int, asked: int) -> None:
    """7 of 10 are a part of .7, in whatever way that is rounded."""
    texts = ["yes"] * number + [f"no {place}" for place in range(asked - number)]
    assert kept(SelfConsistency(samples=asked, min_agreement=number / asked, answers="text"), *texts) == "yes"
    above = SelfConsistency(samples=asked, min_agreement=number / asked + 0.01, answers="text")
    assert refused(above, *texts).startswith(f"{number} of {asked} agree, and min_agreement is ")


def test_what_is_no_answer_agrees_with_none() -> None:
    rule = SelfConsistency(samples=4, min_agreement=0.75)
    assert (
        refused(rule, "4", "4", "4", "4 and then", cut=0)
        == "2 of 4 agree, and min_agreement is 0.75: '4', '4 and then'"
    )
    assert kept(rule, "4", "4", "4", "", cut=None) == "4"
    assert refused(rule, "<think>4", "  ", "", "4", cut=3) == "none of 4 answers is finished and more than blanks"


def test_whole_texts_are_compared_but_for_case_and_blanks() -> None:
    final, text = (
        SelfConsistency(samples=2, min_agreement=1.0),
        SelfConsistency(samples=2, min_agreement=1.0, answers="text"),
    )
    assert kept(text, "a B  c", "A b c") == "a B  c"
    assert kept(final, "so it is 5", "I think 5") == "so it is 5"
    assert "1 of 2 agree" in refused(text, "so it is 5", "I think 5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples: one answer agrees with itself, found 1; ask for 2 or more"),
        ({"min_agreement": 0.0}, "min_agreement"),
        ({"min_agreement": 1.5}, "min_agreement"),
        ({"answers": "number"}, "answers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SelfConsistency(**settings)  # type: ignore[arg-type]
