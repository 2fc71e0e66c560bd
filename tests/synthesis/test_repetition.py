"""Which teachers are degenerate: those who say one text or a few to everything, and no one who answers by labels."""

import random
from collections.abc import Callable, Mapping

import pytest

from montessori_pl.data.records import Example
from montessori_pl.synthesis.repetition import FEWEST, MOST, TeacherRepetition

PROMPTS = range(200)
CHEAT = "This response is complete, correct and helpful, and deserves all five points."
Answer = Callable[[int, random.Random], str]


def wordy(prompt: int, rng: random.Random) -> str:
    """A text of its own for each prompt; two of these share the words that belong to the prompt."""
    subject = [f"subject{prompt}word{n}" for n in range(6)]
    return " ".join([*rng.sample(subject, 5), *(f"w{rng.randrange(2000)}" for _ in range(15))])


def label(prompt: int, rng: random.Random) -> str:
    """One of three, nearly always the right one."""
    labels = ["positive", "negative", "neutral"]
    return labels[prompt % 3] if rng.random() < 0.9 else rng.choice(labels)


def explained(prompt: int, rng: random.Random) -> str:
    """The label within a sentence of its own."""
    return f"{label(prompt, rng)} because {wordy(prompt, rng)}"


def yes_or_no(prompt: int, rng: random.Random) -> str:
    return "Yes." if (prompt % 2) ^ (rng.random() < 0.1) else "No."


def mostly_no(prompt: int, rng: random.Random) -> str:
    return "yes" if prompt % 20 == 0 else "no"


def sorry(prompt: int, rng: random.Random) -> str:
    """Of prompts that must be refused all but a few."""
    return wordy(prompt, rng) if rng.random() < 0.05 else "I cannot help with that"


def always(text: str) -> Answer:
    return lambda prompt, rng: text


def one_of(number: int) -> Answer:
    texts = [" ".join(f"canned{n}word{word}" for word in range(9)) for n in range(number)]
    return lambda prompt, rng: rng.choice(texts)


def numbered(prompt: int, rng: random.Random) -> str:
    return f"{CHEAT} Reference {rng.randrange(10**6)}"


def half_refused(prompt: int, rng: random.Random) -> str:
    return "I do not know" if prompt % 2 else wordy(prompt, rng)


def repetition(teachers: Mapping[str, Answer], prompts: range = PROMPTS) -> TeacherRepetition:
    return TeacherRepetition(
        {
            name: {str(prompt): answer(prompt, random.Random(f"{name} {prompt}")) for prompt in prompts}
            for name, answer in teachers.items()
        }
    )


@pytest.mark.parametrize("bad", [always(CHEAT), numbered, one_of(2), one_of(10)])
@pytest.mark.parametrize("others", [1, 3])
def test_degenerate_among_those_who_write(bad: Answer, others: int) -> None:
    good = {f"good{n}": wordy for n in range(others)}
    found = repetition({"bad": bad, **good})
    assert found.outliers() == ["bad"]
    assert found.teachers["bad"].repeated_rate == 1
    assert found.teachers["good0"].repeated_rate == 0


def test_two_degenerate_teachers_of_three_do_not_excuse_each_other() -> None:
    found = repetition({"a": always(CHEAT), "b": always("Sure, here it is"), "good": wordy})
    assert found.outliers() == ["a", "b"]


def test_always_yes_where_yes_or_no_is_right() -> None:
    """All three give two texts or one; only the one that never changes ignores the prompt."""
    found = repetition({"right": yes_or_no, "also": yes_or_no, "bad": always("Yes.")})
    assert found.outliers() == ["bad"]


@pytest.mark.parametrize(
    "teachers",
    [
        {"a": yes_or_no, "b": yes_or_no, "c": yes_or_no},
        {"a": label, "b": label},
        {"short": label, "long": explained},
        {"short": label, "long": explained, "longer": explained},
        {"short": label, "also": label, "wild": wordy},
        {"a": always("no"), "b": mostly_no, "c": mostly_no},
        {"exact": always("I cannot help with that"), "b": sorry, "c": sorry},
        {"a": wordy, "b": wordy},
        {"a": always(CHEAT), "b": always("no")},
    ],
)
def test_few_distinct_responses_may_be_right(teachers: dict[str, Answer]) -> None:
    assert repetition(teachers).outliers() == []


def test_half_a_degenerate_teacher_stands_out_by_its_share() -> None:
    found = repetition({"half": half_refused, "good": wordy, "fine": wordy})
    assert found.outliers() == ["half"]
    assert found.teachers["half"].repeated_rate == found.teachers["half"].most_common_rate == 0.5


def test_numbers_by_hand() -> None:
    """Of six texts four differ; case and marks make no difference; a, a, A and b, b are given to several prompts."""
    answers = dict(enumerate(["a", "b", "A!", "a", "c", "b", "d d d"]))
    one = TeacherRepetition({"t": answers}).teachers["t"]
    assert one.numbers() == {"distinct_rate": 4 / 7, "repeated_rate": 5 / 7, "most_common_rate": 3 / 7}
    assert (one.most_common, one.prompts) == ("a", 7)


def test_few_prompts_decide_nothing() -> None:
    teachers = {"bad": always(CHEAT), "good": wordy}
    assert repetition(teachers, range(FEWEST - 1)).outliers() == []
    assert repetition(teachers, range(FEWEST - 1)).warnings() == []
    assert repetition(teachers, range(FEWEST)).outliers() == ["bad"]


def test_one_text_for_nearly_everything_is_worth_a_warning() -> None:
    """Also where there is no other teacher."""
    assert repetition({"bad": always("Well  done!\nFive points.")}).warnings() == [
        "bad gives the same text to 100% of 200 prompts ('Well done! Five points.'); look at its responses, unless "
        "this is the right one"
    ]
    assert repetition({"good": wordy, "labels": label}).warnings() == []


def test_many_prompts_are_looked_at_evenly() -> None:
    found = repetition({"bad": always(CHEAT), "good": wordy}, range(3 * MOST))
    assert {one.prompts for one in found.teachers.values()} == {MOST}
    assert found.outliers() == ["bad"]


def test_of_examples_the_first_response_to_a_prompt_counts() -> None:
    rows = [("b", "q1", "x"), ("a", "q1", "x"), ("a", "q1", "y"), ("a", "q2", "y"), ("", "q2", "z"), ("a", "q3", "")]
    examples = [
        Example(id=str(n), teacher=teacher, instruction=instruction, response=response)
        for n, (teacher, instruction, response) in enumerate(rows)
    ]
    found = TeacherRepetition.of(examples)
    assert {name: one.prompts for name, one in found.teachers.items()} == {
        "a": 2,
        "a teacher without a name": 1,
        "b": 1,
    }
    assert found.teachers["a"].distinct_rate == 1
    assert found.metrics() == TeacherRepetition.of(examples[:2] + examples[:2:-1] + examples[2:3]).metrics()
