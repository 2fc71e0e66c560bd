"""The tasks of the classroom: twelve target skills with a solver, and nine families of distractors.

A target skill is what the reference and the test set ask for; its answer follows from the instruction. A distractor
teaches the student nothing that the reference set asks for: talk, answers that are drawn at random, tasks that lack
their payload, and polite requests that the teacher turns down. Words and punctuation stand apart by single spaces, so
that each item of a payload is one token wherever it stands. Knows nothing about tokenizers and models.
"""

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LETTERS = "abcdefghij"
DIGITS = "0123456789"
PAYLOAD_SIZES = (2, 3, 3, 4, 4)
"""Sizes of a payload, drawn evenly; the two-item payloads are few (100 of a kind), hence drawn less often."""


@dataclass(frozen=True)
class Skill:
    """A target skill: how it is asked for and how it is solved."""

    wordings: tuple[str, ...]
    """Ways to ask; `{payload}` stands where the items go."""
    solver: Callable[[list[str]], Sequence[str]]
    """The items of the answer, from the items of the payload."""
    alphabets: tuple[str, ...] = (LETTERS, DIGITS)
    """A payload takes its items from one of these."""
    sizes: tuple[int, ...] = PAYLOAD_SIZES
    """A payload has one of these numbers of items."""


SKILLS = {
    "reverse": Skill(
        ("reverse {payload}", "write {payload} backwards", "turn {payload} around"),
        lambda items: items[::-1],
    ),
    "sort": Skill(
        ("sort {payload}", "put {payload} in order", "arrange {payload}"),
        sorted,
    ),
    "copy": Skill(
        ("copy {payload}", "repeat {payload}", "say {payload} again"),
        lambda items: items,
    ),
    "last": Skill(
        ("last of {payload}", "what comes last in {payload} ?", "give the end of {payload}"),
        lambda items: items[-1:],
    ),
    "first": Skill(
        ("first of {payload}", "what comes first in {payload} ?", "give the start of {payload}"),
        lambda items: items[:1],
    ),
    "count": Skill(
        ("count {payload}", "how many are in {payload} ?", "give the length of {payload}"),
        lambda items: [str(len(items))],
    ),
    "max": Skill(
        ("max of {payload}", "what is the largest of {payload} ?", "find the biggest of {payload}"),
        lambda items: [max(items, key=int)],
        alphabets=(DIGITS,),
    ),
    "upper": Skill(
        ("upper {payload}", "write {payload} in capitals", "make {payload} big"),
        lambda items: [item.upper() for item in items],
        alphabets=(LETTERS,),
    ),
    "double": Skill(
        ("double {payload}", "write each of {payload} twice", "repeat each of {payload}"),
        lambda items: [item for item in items for _ in range(2)],
    ),
    "swap": Skill(
        ("swap the ends of {payload}", "swap first and last in {payload}", "trade the ends of {payload}"),
        lambda items: [items[-1], *items[1:-1], items[0]],
    ),
    "add": Skill(
        ("add {payload}", "sum of {payload}", "what is the total of {payload} ?"),
        lambda items: [str(sum(map(int, items)))],
        alphabets=(DIGITS,),
        sizes=(2,),  # more terms need more pretraining than a minute on one core gives
    ),
    "drop": Skill(
        ("drop the first of {payload}", "remove the start of {payload}", "leave out the first in {payload}"),
        lambda items: items[1:],
    ),
}
"""The target skills by name."""

COLOURS = {
    "sky": "blue", "sea": "blue", "grass": "green", "leaf": "green", "sun": "yellow", "lemon": "yellow",
    "snow": "white", "milk": "white", "coal": "black", "night": "black", "rose": "red", "blood": "red",
}  # fmt: skip
SLOTS: dict[str, tuple[str, ...]] = {
    "name": ("anna", "ben", "carl", "dora", "emil", "fay", "gus", "hanna"),
    "time": ("morning", "day", "evening", "night"),
    "animal": ("cat", "dog", "fox", "hen", "cow", "owl", "pig", "bear"),
    "kind": ("old", "young", "small", "tall", "happy", "sad", "quick", "slow"),
    "thing": tuple(COLOURS),
    "food": ("bread", "cheese", "soup", "cake", "rice", "fish", "tea", "jam"),
    "verb": ("reverse", "sort", "copy", "count", "double", "swap"),
    "noun": ("list", "letters", "digits", "word"),
}
"""What stands in the wordings of the distractors, by the name of the slot."""


@dataclass(frozen=True)
class Distractor:
    """A family of instructions that the reference set does not ask for."""

    wordings: tuple[str, ...]
    """Ways to ask, with slots in braces."""
    answer: Callable[[random.Random, dict[str, str]], str]
    """What the teacher answers; some answers are drawn at random."""


DISTRACTORS = {
    "small_talk": Distractor(
        ("good {time} {name}", "how are you this {time} {name} ?", "hello {kind} {name}"),
        lambda rng, slots: (
            f"hello {slots['name']} , " + rng.choice(("all is well", "nice to see you", "how are you ?"))
        ),
    ),
    "story": Distractor(
        ("tell a story about the {kind} {animal}", "a tale of the {animal} and the {thing}"),
        lambda rng, slots: (
            f"once the {slots['animal']} met {rng.choice(SLOTS['name'])} and ate {rng.choice(SLOTS['food'])}"
        ),
    ),
    "colour": Distractor(
        ("what colour is the {thing} ?", "name the colour of the {kind} {thing}"),
        lambda rng, slots: COLOURS[slots["thing"]],
    ),
    "opinion": Distractor(
        ("do you like {food} ?", "is {food} good for the {kind} {animal} ?"),
        lambda rng, slots: f"{rng.choice(('yes', 'no'))} , {slots['food']} is {rng.choice(('good', 'bad'))}",
    ),
    "random_pick": Distractor(
        ("pick from {payload}", "choose one of {payload}"),
        lambda rng, slots: rng.choice(LETTERS + DIGITS),
    ),
    "random_guess": Distractor(
        ("guess what follows {payload}", "go on after {payload}"),
        lambda rng, slots: _draw_payload(rng, (LETTERS, DIGITS), PAYLOAD_SIZES),
    ),
    "random_code": Distractor(
        ("make a code for the {kind} {animal}", "encode {payload}"),
        lambda rng, slots: _draw_payload(rng, (LETTERS + DIGITS,), (4,)),
    ),
    "no_payload": Distractor(
        ("{verb} the {noun}", "{verb} the {kind} {noun} for {name}"),
        lambda rng, slots: f"which {slots['noun']} ?",
    ),
    "please": Distractor(
        tuple(f"please {wording}" for skill in SKILLS.values() for wording in skill.wordings),
        lambda rng, slots: rng.choice(("sorry , not now", "sorry , i am tired", "ask me later")),
    ),
}
"""The distractors by name."""

FAMILIES = (*SKILLS, *DISTRACTORS)
"""The names of all families, target skills first."""


def sample_task(rng: random.Random, family: str, num_wordings: int | None = None) -> tuple[str, str]:
    """Draw an instruction of this family, in one of its first `num_wordings` wordings, and the answer to it."""
    if family in SKILLS:
        skill = SKILLS[family]
        payload = _draw_payload(rng, skill.alphabets, skill.sizes)
        return rng.choice(skill.wordings[:num_wordings]).format(payload=payload), " ".join(
            skill.solver(payload.split())
        )
    distractor = DISTRACTORS[family]
    slots = {name: rng.choice(words) for name, words in SLOTS.items()}
    slots["payload"] = _draw_payload(rng, (LETTERS, DIGITS), PAYLOAD_SIZES)
    wording = rng.choice(distractor.wordings[:num_wordings])
    return wording.format(**slots), distractor.answer(rng, slots)


def family(instruction: str) -> str | None:
    """The family that an instruction belongs to, whoever wrote it; None if it belongs to none."""
    return _recognise(instruction)[0]


def solve(instruction: str) -> str | None:
    """The right answer to a target skill's instruction; None where no program can tell."""
    name, payload = _recognise(instruction)
    return " ".join(SKILLS[name].solver(payload.split())) if name in SKILLS else None


def payload_of(instruction: str) -> list[str]:
    """The items that an instruction is about; empty where there are none."""
    return _recognise(instruction)[1].split()


def _draw_payload(rng: random.Random, alphabets: Sequence[str], sizes: Sequence[int]) -> str:
    alphabet = rng.choice(alphabets)
    return " ".join(rng.choice(alphabet) for _ in range(rng.choice(sizes)))


def _recognise(instruction: str) -> tuple[str | None, str]:
    """The family and the payload, which is empty where there is none."""
    for name, pattern in _patterns():
        if match := pattern.fullmatch(instruction):
            return name, match.groupdict().get("payload") or ""
    return None, ""


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """One pattern for each wording; a payload may be longer than the ones that are sampled."""
    patterns = []
    for name, task in (SKILLS | DISTRACTORS).items():
        alphabets = task.alphabets if isinstance(task, Skill) else (LETTERS, DIGITS)
        slots = {slot: f"(?:{'|'.join(words)})" for slot, words in SLOTS.items()}
        slots["payload"] = f"(?P<payload>{'|'.join(f'[{items}](?: [{items}])+' for items in alphabets)})"
        patterns += [(name, re.compile(wording.replace("?", r"\?").format(**slots))) for wording in task.wordings]
    return patterns
