"""The tasks: right answers, and every wording recognised as what it is."""

import random

import pytest

from montessori_pl.classroom.pretraining_corpus import SET_SIZES, draw_sets
from montessori_pl.classroom.tasks import DISTRACTORS, FAMILIES, SKILLS, family, sample_task, solve


@pytest.mark.parametrize(
    ("name", "instruction", "answer"),
    [
        ("reverse", "turn a b c around", "c b a"),
        ("sort", "put 3 1 2 1 in order", "1 1 2 3"),
        ("copy", "say a a again", "a a"),
        ("last", "what comes last in 4 5 6 ?", "6"),
        ("first", "give the start of j i", "j"),
        ("count", "how many are in 7 7 7 7 ?", "4"),
        ("max", "find the biggest of 2 9 4", "9"),
        ("upper", "write a j in capitals", "A J"),
        ("double", "repeat each of 1 2", "1 1 2 2"),
        ("swap", "swap the ends of a b c d", "d b c a"),
        ("add", "what is the total of 9 8 ?", "17"),
        ("drop", "leave out the first in a b c", "b c"),
    ],
)
def test_solves_every_skill(name: str, instruction: str, answer: str) -> None:
    assert family(instruction) == name
    assert solve(instruction) == answer


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("small_talk", "good morning anna"),
        ("story", "a tale of the cat and the sea"),
        ("colour", "what colour is the sky ?"),
        ("opinion", "do you like soup ?"),
        ("random_pick", "pick from a b c"),
        ("random_guess", "go on after 1 2"),
        ("random_code", "encode 1 2"),
        ("no_payload", "reverse the list"),
        ("please", "please reverse a b c"),
    ],
)
def test_distractors_have_no_right_answer(name: str, instruction: str) -> None:
    assert family(instruction) == name
    assert solve(instruction) is None


@pytest.mark.parametrize(
    "instruction",
    ["", "reverse", "reverse a", "reverse a 1", "reverse a  b", "max of a b", "upper 1 2", "reverse a b\n", "hello"],
)
def test_other_text_belongs_to_no_family(instruction: str) -> None:
    assert family(instruction) is None
    assert solve(instruction) is None


def test_a_longer_payload_than_the_sampled_ones_is_solved() -> None:
    assert solve("reverse a b c d e f") == "f e d c b a"


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_recognised_in_every_wording(name: str) -> None:
    rng = random.Random(0)
    samples = [sample_task(rng, name) for _ in range(500)]
    assert {family(instruction) for instruction, _ in samples} == {name}
    assert all(answer for _, answer in samples)
    if name in SKILLS:
        assert all(solve(instruction) == answer for instruction, answer in samples)
        assert all(len([word for word in i.split() if word in [*"abcdefghij", *"0123456789"]]) <= 4 for i, _ in samples)
        beginnings = {wording.split("{")[0] for wording in SKILLS[name].wordings}
        assert all(any(i.startswith(b) for i, _ in samples) for b in beginnings)


def test_counts_of_families() -> None:
    assert (len(SKILLS), len(DISTRACTORS), len(set(FAMILIES))) == (12, 9, 21)


def test_sets_are_disjoint_balanced_and_drawn_from_the_seed() -> None:
    sets = draw_sets(random.Random(0))
    assert {name: len(examples) for name, examples in sets.items()} == SET_SIZES
    instructions = [example.instruction for examples in sets.values() for example in examples]
    assert len(set(instructions)) == len(instructions)
    for examples in sets.values():
        families = [family(example.instruction) for example in examples]
        assert {name: families.count(name) for name in SKILLS} == dict.fromkeys(SKILLS, len(examples) // 12)
        assert all(example.response == solve(example.instruction) for example in examples)
    assert sets == draw_sets(random.Random(0))
    assert sets != draw_sets(random.Random(1))
