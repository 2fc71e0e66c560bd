"""Held-out texts are found by common n-grams, as a slow reference finds them; short tasks only as a whole."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.data.records import Example, Turn
from montessori_pl.synthesis.contamination import (
    TEMPLATE,
    ContaminationIndex,
    Decontamination,
    HeldOut,
    Overlap,
    normalized,
)
from montessori_pl.synthesis.filters import Rejected

QUESTION = "A train travels 360 miles in 3 hours. At the same rate, how many hours would it take to travel 240 miles?"
"""22 words, hence ten 13-grams."""


def ngrams(text: str, ngram: int) -> list[tuple[str, ...]]:
    """Every run of words, told apart by blanks: the texts of the reference have no punctuation."""
    words = text.lower().split()
    return [tuple(words[start : start + ngram]) for start in range(len(words)) if start + ngram <= len(words)]


def slow(texts: list[str], text: str, ngram: int) -> tuple[int, float] | None:
    """Compare with every text, one by one; the earliest of those with the largest share."""
    best = None
    every = [run for other in texts for run in set(ngrams(other, ngram))]
    content = {run for run in ngrams(text, ngram) if every.count(run) <= TEMPLATE}
    for number, other in enumerate(texts):
        theirs = {run for run in ngrams(other, ngram) if every.count(run) <= TEMPLATE}
        common = content & theirs
        if common:
            share = len(common) / min(len(content), len(theirs))
            if best is None or share > best[1]:
                best = number, share
    return best


few_words = st.lists(st.sampled_from(["a", "b", "C", "dog", "7"]), max_size=12).map(" ".join)


@given(st.lists(few_words, max_size=20), few_words, st.integers(1, 4))
@example(["a b"] * (TEMPLATE + 1), "a b C", 2)
@example(["a b C"] * TEMPLATE + ["a b"], "a b C dog", 2)
def test_overlaps_equal_a_slow_reference(texts: list[str], text: str, ngram: int) -> None:
    found = ContaminationIndex(((str(number), other) for number, other in enumerate(texts)), ngram).find(text)
    expected = slow(texts, text, ngram)
    assert (found and (int(found.name), found.share)) == expected
    if found is not None:
        run = tuple(found.passage.split())
        assert run in ngrams(text, ngram)
        assert run in ngrams(texts[int(found.name)], ngram)


def test_share_is_of_the_shorter_text() -> None:
    """Six words have four 3-grams. Two of them stand in the other text, which has two, three or eight."""
    index = ContaminationIndex([("six", "One, two: three FOUR five six!")], ngram=3)
    assert index.find("two three four five") == Overlap("six", 1.0, "two three four")
    assert index.find("Zero two three four five") == Overlap("six", 2 / 3, "two three four")
    assert index.find("z y x w v u two three four five") == Overlap("six", 2 / 4, "two three four")
    assert index.find("six five four three two one") is None
    assert index.find("five six") is None


def test_a_question_is_found_within_a_longer_text_and_an_excerpt_within_the_question() -> None:
    index = ContaminationIndex([("question", QUESTION)])
    longer = f"Solve the following problem and explain each step for a child. {QUESTION} Answer with one number."
    excerpt = " ".join(QUESTION.split()[4:18])
    for text in (QUESTION, longer, excerpt):
        found = index.find(text)
        assert found is not None
        assert (found.name, found.share) == ("question", 1.0)
    assert index.find(" ".join(QUESTION.split()[:12])) is None, "twelve words are no 13-gram"


def test_letters_of_scripts_without_blanks_are_half_a_word_each() -> None:
    """Twenty common letters are how requests of a kind begin; 26 are an n-gram, and so are 24 with a word."""
    index = ContaminationIndex([("question", "".join(map(chr, range(0x4E00, 0x4E28))) + " word")])
    assert index.find("".join(map(chr, range(0x4E00, 0x4E19)))) is None, "25 letters"
    assert index.find("".join(map(chr, range(0x4E00, 0x4E1A)))) is not None
    assert index.find("".join(map(chr, range(0x4E10, 0x4E28))) + " word") is not None
    assert index.find("".join(map(chr, range(0x4E11, 0x4E28))) + " word") is None
    hindi = ContaminationIndex([("question", "निम्नलिखित वाक्य का अंग्रेजी में अनुवाद कीजिए: आज मौसम बहुत अच्छा है।")])
    assert hindi.find("निम्नलिखित वाक्य का अंग्रेजी में अनुवाद कीजिए: मेरी बहन डॉक्टर बनना चाहती है।") is None


def test_templates_are_no_content() -> None:
    """The wording that eleven items begin with is not held out; what they ask is."""
    template = "Think step by step and then give the right answer as a single letter in brackets."
    questions = [" ".join(f"{word}{number}" for word in "abcdefghijklmnop") for number in range(TEMPLATE + 1)]
    texts = [(str(number), f"{template} {question}") for number, question in enumerate(questions)]
    own = f"{template} What is the name of the largest river in the north of the country that you like best?"
    assert ContaminationIndex(texts).find(own) is None
    found = ContaminationIndex(texts[1:]).find(own)
    assert found is not None, "with ten items it could be the content of each"
    found = ContaminationIndex(texts).find(questions[3])
    assert found is not None
    assert (found.name, found.share) == ("3", 1.0)


ANSWER = f"It takes 2 hours, because {' '.join('abcdefghijk')}."


class TestHeldOut:
    def rejection(self, settings: Decontamination, instruction: str, response: str = "") -> str | None:
        reference = Example(id="r", instruction="Sort 3 1 2 ?", response="1 2 3")
        test = Example(id="t", instruction=QUESTION, response=ANSWER)
        held_out = HeldOut({"reference": [reference], "test": [test]}, settings)
        try:
            held_out.check_instruction(instruction)
            held_out.check_response(response)
        except Rejected as error:
            return str(error)
        return None

    def test_the_same_instruction_is_dropped_at_any_setting(self) -> None:
        for settings in (Decontamination(), Decontamination(max_overlap=1.0)):
            found = self.rejection(settings, " sort  3 1\n2 ?")
            assert found == "held out: the same instruction as reference example r"

    def test_short_texts_are_compared_as_a_whole_only(self) -> None:
        assert self.rejection(Decontamination(), "please sort 3 1 2 ?") is None
        assert self.rejection(Decontamination(), "Sort 3 1 2") is None, "a sign may be all that makes a task another"
        assert self.rejection(Decontamination(), "write 1 2 3", "1 2 3") is None
        assert self.rejection(Decontamination(), "write 1 2 3", "Sort 3 1 2 ?") is None

    def test_overlap_is_found_in_instruction_and_response(self) -> None:
        """Without its first word the question keeps nine of its ten 13-grams, which are all that the rest has."""
        passage = "train travels 360 miles in 3 hours at the same rate how many"
        said = f"held out: 100% of the 13-grams in common with the instruction of test example t: {passage}"
        rest = QUESTION.removeprefix("A ")
        assert self.rejection(Decontamination(), rest) == said
        assert self.rejection(Decontamination(), "Give me a problem.", rest) == said
        copied = self.rejection(Decontamination(), "Say it.", ANSWER)
        assert copied is not None
        assert "in common with the response of test example t: it takes 2" in copied

    def test_an_overlap_up_to_the_largest_one_is_kept(self) -> None:
        """Fourteen words of the question, and as many others before them: two of ten 13-grams."""
        text = " ".join([*"abcdefghijklmn", *QUESTION.split()[:14]])
        assert self.rejection(Decontamination(max_overlap=0.2), text) is None
        found = self.rejection(Decontamination(max_overlap=0.19), text)
        assert found is not None
        assert found.startswith("held out: 20% of the 13-grams")

    def test_every_turn_of_a_conversation_is_held_out(self) -> None:
        """The first user turn as a request of its own, the others where they are long enough to be known again."""
        history = (
            Turn("user", "Sort 3 1 2 ?"),
            Turn("assistant", ANSWER),
            Turn("user", QUESTION),
            Turn("assistant", "2"),
        )
        item = Example(id="t", instruction="Shorter, please.", response="2", history=history)
        held_out = HeldOut({"test": [item]}, Decontamination())
        for repeated in ("sort 3 1 2 ?", QUESTION, ANSWER):
            with pytest.raises(Rejected, match="held out"):
                held_out.check_instruction(repeated)
        held_out.check_instruction("Shorter, please.")

    def test_in_the_classroom_only_the_same_tasks_are_dropped(self) -> None:
        rng = random.Random(0)
        drawn = [sample_task(rng, family) for family in FAMILIES for _ in range(60)]
        tasks = [Example(id=str(n), instruction=text, response=answer) for n, (text, answer) in enumerate(drawn)]
        held_out = HeldOut({"test": tasks[::2]}, Decontamination())
        taken = {normalized(task.instruction) for task in tasks[::2]}
        for task in tasks[1::2]:
            held_out.check_response(task.response)
            if normalized(task.instruction) in taken:
                with pytest.raises(Rejected, match="held out: the same instruction as test example"):
                    held_out.check_instruction(task.instruction)
            else:
                held_out.check_instruction(task.instruction)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ngram": 0}, "ngram: expected int >= 1, found 0"),
        ({"max_overlap": -0.1}, r"max_overlap: expected float >= 0 and <= 1, found -0\.1"),
        ({"max_overlap": 1.5}, r"max_overlap: expected float >= 0 and <= 1, found 1\.5"),
        ({"max_overlap": float("nan")}, "max_overlap: expected finite float .*, found nan"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decontamination(**settings)  # type: ignore[arg-type]


def test_normalized() -> None:
    assert normalized("  A\tStraße \n b ") == "a strasse b"
