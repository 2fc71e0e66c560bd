"""The classroom's judge: what it says of right, wrong and idle answers, and how often it errs."""

from collections import Counter

import pytest

from montessori_pl.data.records import Example
from montessori_pl.evaluation.judge_prompts import PROMPTS, parse_score, render_prompt
from montessori_pl.generation import ClassroomJudge, Request, Sampling

SAMPLING = Sampling()


def request(instruction: str, response: str, seed: int = 0) -> Request:
    """What the shipped prompt asks about this example."""
    example = Example(id="e", instruction=instruction, response=response)
    return Request(messages=[{"role": "user", "content": render_prompt(PROMPTS["additive"], example)}], seed=seed)


def scores(judge: ClassroomJudge, instruction: str, response: str, num_seeds: int = 400) -> Counter[int | None]:
    """How often it gives which score."""
    requests = [request(instruction, response, seed) for seed in range(num_seeds)]
    return Counter(parse_score(one.text, one.finished) for one in judge.generate(requests, SAMPLING))


@pytest.mark.parametrize(
    ("instruction", "response", "expected"),
    [
        ("reverse a b c", "c b a", {5, 4}),
        ("reverse a b c", "a b c", {1, 2}),
        ("what is the total of 3 4 ?", "7", {5, 4}),
        ("tell a story about the old fox", "once the fox met ben and ate rice", {3}),
        ("please sort c a b", "sorry , i am tired", {1}),
        ("please sort c a b", "a b c", {3}),
        ("sort c a b", "ask me later", {1}),
        ("sort c a b", "", {1}),
        ("fox the of sort", "a b", {0, 1}),
        ("reverse a b c\nand more", "c b a", {0, 1}),
    ],
)
def test_what_it_thinks_without_errors(instruction: str, response: str, expected: set[int]) -> None:
    assert set(scores(ClassroomJudge(error_rate=0, silence_rate=0), instruction, response)) == expected


def test_a_right_answer_is_mostly_worth_all_points() -> None:
    """Of 400 judgements four fifths are a 5: 320, with a standard deviation of 8."""
    found = scores(ClassroomJudge(error_rate=0, silence_rate=0), "reverse a b c", "c b a")
    assert found[5] == pytest.approx(320, abs=32)


def test_how_often_it_errs_and_is_silent() -> None:
    """Of 2000 judgements 10% are drawn evenly from six scores, hence 33 of each, and 2% hold none: 40."""
    found = scores(ClassroomJudge(), "tell a story about the old fox", "once upon a time", 2000)
    assert found[None] == pytest.approx(40, abs=25)
    assert [found[score] for score in (0, 1, 2, 4, 5)] == pytest.approx([33] * 5, abs=23)
    assert set(scores(ClassroomJudge(error_rate=0, silence_rate=1), "reverse a b", "b a")) == {None}


def test_a_judgement_depends_on_its_request_alone() -> None:
    requests = [request("reverse a b c", answer, seed) for answer in ("c b a", "a") for seed in range(30)]
    together = ClassroomJudge().generate(requests, SAMPLING)
    alone = [ClassroomJudge().generate([one], Sampling(temperature=0.1))[0] for one in reversed(requests)]
    assert together == alone[::-1]
    assert len({one.text for one in together}) > 4


def test_what_it_cannot_read_and_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="finds nothing to judge: it reads prompts that hold <instruction>"):
        ClassroomJudge().generate([Request(messages=[{"role": "user", "content": "well ?"}], seed=0)], SAMPLING)
    with pytest.raises(ValueError, match=r"together at most 1, found error_rate 0\.9 and silence_rate 0\.2"):
        ClassroomJudge(error_rate=0.9, silence_rate=0.2)
