"""Solve rate as a signal: scores by hand, answers that are none, and the student's own answers one by one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scoring_runs import Scoring
from tiny_models import save_tiny_model

import callbacks.solve_rate
from callbacks import SolveRateSignal
from montessori_pl.data.records import Example, Message, Score, Turn, stable_seed
from montessori_pl.evaluation.answers import answer_key, same_answer
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend
from montessori_pl.models.loading import ModelSource

# Lightning's advice on loaders, which the command line silences too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You are using a custom batch sampler"),
]

CUT = "?"
"""Stands in a script for an answer that reaches the token limit."""


class Scripted(TransformersBackend):
    """The student says what it was told to, by example and number of the answer."""

    answers: ClassVar[dict[int, str]] = {}

    @classmethod
    def say(cls, answers: dict[str, Sequence[str]]) -> None:
        cls.answers = {
            stable_seed("solve", id_, n): text for id_, said in answers.items() for n, text in enumerate(said, 1)
        }

    def serve(self, model: Any, chat_template: Any) -> None:
        pass

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return "too much" not in messages[-1]["content"]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        texts = [self.answers[one.seed] for one in requests]
        return [Completion(text=text, finished=CUT not in text, num_tokens=1) for text in texts]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def score(tmp_path: Path, backbone: str) -> Scoring:
    return Scoring(tmp_path, backbone)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    monkeypatch.setattr(callbacks.solve_rate, "TransformersBackend", Scripted)
    return Scripted


def example(id_: str, response: str = "5", **changes: Any) -> Example:
    return Example(id=id_, instruction="what is it?", response=response, prompt_id="p", prompt="say it", **changes)


def of_four(**settings: Any) -> SolveRateSignal:
    return SolveRateSignal(samples=4, **settings)


ANSWERS = {
    "half": ["It is 5.", "5", "5 apples", "three"],  # two of four
    "most": [r"\boxed{5}", "#### 5", "5.0", "6"],  # three of four
    "all": ["Yes, so", "yes,  so", "YES, SO", "yes, so"],
    "none": ["a", "b", "c", "d"],  # the most frequent answer is one of four
    "some": ["5", "6", CUT, "<think>it may be 5"],  # one of four, of which two are none
}
RATES = {"half": 0.5, "most": 0.75, "all": 1.0, "none": 0.25, "some": 0.25}


def test_the_most_frequent_answer_counts_as_right(score: Scoring, scripted: type[Scripted]) -> None:
    scripted.say(ANSWERS)
    metrics = score(of_four(), [example(id_) for id_ in ANSWERS])
    found = score.scores()

    assert {id_: one.details["solve_rate"] for id_, one in found.items()} == RATES
    assert {id_: one.value for id_, one in found.items()} == {
        "half": 1.0,
        "most": 0.5,
        "all": 0.0,
        "none": 0.5,
        "some": 0.5,
    }
    assert found["most"].standard_error == pytest.approx(2 * (0.75 * 0.25 / 4) ** 0.5)
    assert found["some"].standard_error == pytest.approx(2 * (0.25 * 0.75 / 4) ** 0.5)
    assert found["some"].details == {"solve_rate": 0.25, "answers": 2.0, "different_answers": 2.0}
    assert found["half"].texts == tuple(ANSWERS["half"])
    assert metrics["signal"]["certain_rate"] == 0.2
    assert metrics["signal"]["tied"] == 3, "most, none and some"


def test_the_response_counts_as_right(score: Scoring, scripted: type[Scripted]) -> None:
    """What was cut is wrong, and so is every answer if nothing was finished; a text counts where text is asked for."""
    scripted.say({**ANSWERS, "cut": [CUT] * 4})
    score(of_four(against="response"), [example(id_) for id_ in [*ANSWERS, "cut"]])
    rates = {id_: one.details["solve_rate"] for id_, one in score.scores().items()}
    assert rates == {"half": 0.75, "most": 0.75, "all": 0.0, "none": 0.0, "some": 0.25, "cut": 0.0}

    score(of_four(against="response", answers="text"), [example("most"), example("all", "yes, SO")], "text")
    assert {id_: one.details["solve_rate"] for id_, one in score.scores("text").items()} == {"most": 0.0, "all": 1.0}


@pytest.mark.parametrize("samples", range(2, 33))
def test_as_many_right_as_others_wrong_are_as_uncertain(samples: int) -> None:
    """To the last digit, or pairs would be made of rounding."""
    signal = SolveRateSignal(samples=samples, against="response")

    def uncertainty(right: int) -> tuple[float, float | None]:
        texts = ["5"] * right + ["6"] * (samples - right)
        score = signal._scored(example("x"), [Completion(text=one, finished=True, num_tokens=1) for one in texts])
        assert isinstance(score, Score)
        return score.value, score.standard_error

    assert [uncertainty(right) for right in range(samples + 1)] == [
        uncertainty(samples - right) for right in range(samples + 1)
    ]


def test_text_is_compared_as_text(score: Scoring, scripted: type[Scripted]) -> None:
    scripted.say({"a": ["5 apples", "5  Apples", "5", "5.0"]})
    score(of_four(answers="text"), [example("a")])
    assert score.scores()["a"].details == {"solve_rate": 0.5, "answers": 4.0, "different_answers": 3.0}


def test_what_has_no_answer_is_left_unscored(score: Scoring, scripted: type[Scripted]) -> None:
    scripted.say({"cut": [CUT] * 4, "silent": ["", " ", "<think>so", "\n"], "half": ANSWERS["half"]})
    examples = [example("cut"), example("silent"), dataclasses.replace(example("long"), instruction="too much")]
    metrics = score(of_four(), [*examples, example("half")])
    assert list(score.scores()) == ["half"]
    assert metrics["unscored"] == {"no answer": 2, "too long for the student": 1}
    assert {one.detail for one in score.unscored() if one.reason == "no answer"} == {
        "none of 4 ended in 512 tokens",
        "none of 4 is more than blanks or reasoning",
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("#### 1,000", "1000.0"),
        (r"so \boxed{\$5}", "5"),
        ("Yes", "  yes "),
        ("<think>6</think> 5", "5"),
        ("1/2", "0.5"),
    ],
)
def test_equal_answers_have_one_key(first: str, second: str) -> None:
    assert answer_key(first) == answer_key(second) != ""
    assert same_answer(first, second)
    assert same_answer(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [(r"\boxed{18 apples}", "#### $18.00"), ("so that is 18.", "**18**"), ("x = 18%", "18"), (r"It is $18$.", "18")],
)
def test_an_answer_that_ends_in_a_number_or_marks_one_is_that_number(first: str, second: str) -> None:
    assert answer_key(first) == answer_key(second) == "18"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Rome has 7 hills.", "A week in Oslo takes 7 days."),
        ("Paris, since 1789 or so", "London, since 1789 or so"),
        ("7 hills", "7"),
    ],
)
def test_texts_that_hold_a_number_somewhere_are_texts(first: str, second: str) -> None:
    assert answer_key(first) != answer_key(second)


@pytest.mark.parametrize(("first", "second"), [("3 1 2", "2"), ("3 1 2", "1 3 2"), ("5", "-5"), ("a", "b"), ("a", "")])
def test_different_answers_have_different_keys(first: str, second: str) -> None:
    assert answer_key(first) != answer_key(second)
    assert not same_answer(first, second)


def test_answers_are_the_students_own(score: Scoring, backbone: str) -> None:
    """Of a random model, one request at a time and loaded by an engine of its own; with a system message and turns."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=24)
    examples = [
        example("a"),
        example("b", system="be brief", history=(Turn("user", "one"), Turn("assistant", "two"))),
        dataclasses.replace(example("c"), instruction="and this?"),
    ]
    score(SolveRateSignal(samples=3, sampling=sampling, against="response"), examples)
    engine = TransformersBackend()
    engine.load(ModelSource(backbone))
    found = score.scores()
    assert list(found) == ["a", "b", "c"]
    for one in examples:
        seeds = [stable_seed("solve", one.id, number) for number in (1, 2, 3)]
        alone = [engine.generate([Request(messages=one.messages()[:-1], seed=seed)], sampling)[0] for seed in seeds]
        assert found[one.id].texts == tuple(answer.text for answer in alone)
        assert found[one.id].details["answers"] == sum(answer.finished and answer.text != "" for answer in alone)
    assert len({one.texts for one in found.values()}) == 3


@pytest.mark.parametrize("settings", [{"samples": 1}, {"sampling": Sampling(temperature=0.0)}])
def test_refuses_what_tells_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="set samples to 2 or more, and a temperature above 0"):
        SolveRateSignal(**settings)
