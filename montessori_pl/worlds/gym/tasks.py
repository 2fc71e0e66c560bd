"""The tasks of the gym: short English questions with short answers that a program can check.

Six target families are what the reference and the test set ask for; a small model answers few of them and learns them
from some hundred examples. Six families of distractors are answered right as well, but teach nothing of the targets.
Every family has a verifier: whoever wrote an instruction, it is recognised and solved, or it is none of these.
Knows nothing about models.
"""

import functools
import itertools
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Difficulty = Literal["easy", "normal", "hard"]

KINDS: Mapping[str, tuple[str, ...]] = {
    "animals": ("dog", "cat", "horse", "lion", "tiger", "rabbit", "monkey", "bear", "snake", "duck", "sheep", "goat"),
    "fruits": ("apple", "banana", "orange", "grape", "lemon", "peach", "mango", "cherry", "pear", "melon", "plum"),
    "colors": ("red", "blue", "green", "yellow", "purple", "black", "white", "pink", "brown", "gray"),
    "tools": ("hammer", "saw", "drill", "wrench", "knife", "shovel", "rake", "ladder", "axe", "brush"),
    "clothes": ("shirt", "hat", "shoes", "coat", "dress", "socks", "jacket", "scarf", "gloves", "belt"),
    "vehicles": ("car", "bus", "train", "truck", "boat", "plane", "bicycle", "ship", "tram", "van"),
}
"""Words by kind; none is of two kinds."""
WORDS = tuple(word for words in KINDS.values() for word in words)
NAMES = ("Anna", "Ben", "Carl", "Dora", "Emma", "Frank", "Grace", "Henry", "Jack", "Lucy", "Mary", "Tom")
TIMES = ("morning", "afternoon", "evening", "night")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
RELATIONS = {"taller": "shortest", "older": "youngest", "faster": "slowest", "richer": "poorest"}
"""Who is last in a row of comparisons."""
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Cuba": "Havana",
    "Portugal": "Lisbon", "Norway": "Oslo", "Sweden": "Stockholm", "Ireland": "Dublin", "Peru": "Lima",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "happy": "sad", "light": "dark", "high": "low", "open": "closed",
    "rich": "poor", "young": "old", "full": "empty", "wet": "dry", "early": "late", "hard": "soft", "strong": "weak",
}  # fmt: skip
PASTS = {
    "go": "went", "eat": "ate", "see": "saw", "run": "ran", "write": "wrote", "sing": "sang", "drink": "drank",
    "give": "gave", "take": "took", "come": "came", "speak": "spoke", "find": "found", "buy": "bought", "make": "made",
}  # fmt: skip

Slots = Mapping[str, str]
"""What stands in the places of a wording, by name."""


@dataclass(frozen=True)
class Family:
    """A kind of task: how it is asked, drawn and solved."""

    wordings: tuple[str, ...]
    """Ways to ask, with places in braces."""
    draw: Callable[[random.Random, Difficulty], Slots]
    """What stands in the places."""
    solve: Callable[[Slots], str | None]
    """The right answer; none where the places are filled with what has none."""


def _size(rng: random.Random, difficulty: Difficulty) -> int:
    """Items of a list."""
    return rng.choice({"easy": (3,), "normal": (3, 4), "hard": (5, 6)}[difficulty])


def _list(rng: random.Random, difficulty: Difficulty) -> Slots:
    return {"words": ", ".join(rng.sample(WORDS, _size(rng, difficulty)))}


def _count(rng: random.Random, difficulty: Difficulty) -> Slots:
    kind, size = rng.choice(list(KINDS)), _size(rng, difficulty) + 1
    others = [word for word in WORDS if word not in KINDS[kind]]
    number = rng.randint(1, size - 1)
    words = [*rng.sample(KINDS[kind], number), *rng.sample(others, size - number)]
    rng.shuffle(words)
    return {"kind": kind, "words": ", ".join(words)}


def _odd(rng: random.Random, difficulty: Difficulty) -> Slots:
    kind, other = rng.sample(list(KINDS), 2)
    words = [*rng.sample(KINDS[kind], _size(rng, difficulty)), rng.choice(KINDS[other])]
    rng.shuffle(words)
    return {"words": ", ".join(words)}


def _position(rng: random.Random, difficulty: Difficulty) -> Slots:
    size = _size(rng, difficulty) + 1
    return {"ordinal": rng.choice(ORDINALS[:size]), "words": ", ".join(rng.sample(WORDS, size))}


def _order(rng: random.Random, difficulty: Difficulty) -> Slots:
    names = rng.sample(NAMES, {"easy": 2, "normal": 3, "hard": 4}[difficulty])
    more = rng.choice(list(RELATIONS))
    pairs = [f"{one} is {more} than {other}." for one, other in itertools.pairwise(names)]
    rng.shuffle(pairs)
    return {"facts": " ".join(pairs), "most": RELATIONS[more]}


def _day(rng: random.Random, difficulty: Difficulty) -> Slots:
    most = {"easy": 6, "normal": 9, "hard": 30}[difficulty]
    return {"day": rng.choice(DAYS), "number": str(rng.randint(2, most))}


def _pair(rng: random.Random, difficulty: Difficulty) -> Slots:
    return {"words": ", ".join(rng.sample(WORDS, 2))}


def _items(slots: Slots) -> list[str]:
    return slots["words"].split(", ")


def _solve_count(slots: Slots) -> str | None:
    return str(sum(word in KINDS[slots["kind"]] for word in _items(slots)))


def _solve_odd(slots: Slots) -> str | None:
    kinds = [next((kind for kind, words in KINDS.items() if word in words), None) for word in _items(slots)]
    alone = [word for word, kind in zip(_items(slots), kinds, strict=True) if kinds.count(kind) == 1]
    return alone[0] if len(alone) == 1 and len(set(kinds)) == 2 else None


def _solve_position(slots: Slots) -> str | None:
    place, items = ORDINALS.index(slots["ordinal"]), _items(slots)
    return items[place] if place < len(items) else None


def _solve_order(slots: Slots) -> str | None:
    """Who stands below the others, where the facts say it of one alone."""
    facts = re.findall(r"(\w+) is (\w+) than (\w+)\.", slots["facts"])
    if any(RELATIONS[more] != slots["most"] for _, more, _ in facts):
        return None
    below = {other for _, _, other in facts} - {one for one, _, _ in facts}
    everyone = {name for one, _, other in facts for name in (one, other)}
    return below.pop() if len(below) == 1 and len(facts) == len(everyone) - 1 else None


def _solve_day(slots: Slots) -> str | None:
    return DAYS[(DAYS.index(slots["day"]) + int(slots["number"])) % len(DAYS)]


TARGETS: Mapping[str, Family] = {
    "count": Family(
        ("How many of these are {kind}: {words}?", "Count the {kind} in this list: {words}."), _count, _solve_count
    ),
    "odd_one_out": Family(("Which word does not belong: {words}?", "Find the odd one out: {words}."), _odd, _solve_odd),
    "position": Family(
        ("What is the {ordinal} word in this list: {words}?", "Name the {ordinal} of these: {words}."),
        _position,
        _solve_position,
    ),
    "reverse": Family(
        ("Write these words in reverse order: {words}.", "Say this list backwards: {words}."),
        _list,
        lambda slots: ", ".join(reversed(_items(slots))),
    ),
    "last_in_order": Family(("{facts} Who is the {most}?", "{facts} Name the {most}."), _order, _solve_order),
    "day": Family(
        (
            "Today is {day}. What day is it in {number} days?",
            "Which day comes {number} days after {day}?",
            "It is {day}. Name the day in {number} days.",
        ),
        _day,
        _solve_day,
    ),
}
"""What the reference and the test set ask for."""

DISTRACTORS: Mapping[str, Family] = {
    "capital": Family(
        (
            "What is the capital of {country}?",
            "Name the capital of {country}.",
            "Which city is the capital of {country}?",
        ),
        lambda rng, difficulty: {"country": rng.choice(list(CAPITALS))},
        lambda slots: CAPITALS.get(slots["country"]),
    ),
    "opposite": Family(
        ("What is the opposite of {word}?", "Name the opposite of {word}.", "Which word means the opposite of {word}?"),
        lambda rng, difficulty: {"word": rng.choice(list(OPPOSITES))},
        lambda slots: OPPOSITES.get(slots["word"]),
    ),
    "past": Family(
        (
            "What is the past tense of {word}?",
            "Put this verb into the past: {word}.",
            "Write {word} in the past tense.",
        ),
        lambda rng, difficulty: {"word": rng.choice(list(PASTS))},
        lambda slots: PASTS.get(slots["word"]),
    ),
    "greeting": Family(
        ("Wish {name} a good {time}.", "Say good {time} to {name}."),
        lambda rng, difficulty: {"name": rng.choice(NAMES), "time": rng.choice(TIMES)},
        lambda slots: f"Good {slots['time']}, {slots['name']}!",
    ),
    "initial": Family(
        ("Which letters do these begin with: {words}?", "Give the first letters of {words}."),
        _pair,
        lambda slots: ", ".join(word[0].upper() for word in _items(slots)),
    ),
    "upper": Family(
        ("Write these in capital letters: {words}.", "Put {words} into upper case."),
        _pair,
        lambda slots: slots["words"].upper(),
    ),
}
"""What the seed tasks hold as well."""

FAMILIES: Mapping[str, Family] = {**TARGETS, **DISTRACTORS}


def draw_task(rng: random.Random, family: str, difficulty: Difficulty = "normal") -> tuple[str, str]:
    """An instruction of this family, and the right answer to it."""
    one = FAMILIES[family]
    slots = one.draw(rng, difficulty)
    answer = one.solve(slots)
    assert answer is not None, f"{family} cannot solve what it has drawn: {slots}"
    return rng.choice(one.wordings).format(**slots), answer


def family_of(instruction: str) -> str | None:
    """The family that an instruction belongs to, whoever wrote it; none if it belongs to none or has no answer."""
    return _recognise(instruction)[0]


def solve(instruction: str) -> str | None:
    """The right answer to an instruction; none if it belongs to no family or has no answer."""
    return _recognise(instruction)[1]


def is_right(text: str, answer: str) -> bool:
    """Whether a text gives this answer: it is the answer, or its first sentence ends in it, as in `It is Oslo.`"""
    said, wanted = (" ".join(one.casefold().split()) for one in (text, answer))
    first = re.split(r"(?<=[.!?])\s", said)[0]
    return said.rstrip(".!") == wanted.rstrip(".!") or re.search(rf"\b{re.escape(wanted)}[.!]$", first) is not None


def _recognise(instruction: str) -> tuple[str | None, str | None]:
    for name, pattern in _patterns():
        if match := pattern.fullmatch(" ".join(instruction.split())):
            answer = FAMILIES[name].solve(match.groupdict())
            return (name, answer) if answer is not None else (None, None)
    return None, None


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """One pattern for each wording; a list may hold any words, as many as it likes, and anybody may have a name."""
    name = r"[A-Z][a-z]+"
    fact = rf"{name} is (?:{'|'.join(RELATIONS)}) than {name}\."
    places = {
        "words": r"[a-z]+(?:, [a-z]+)+",
        "kind": "|".join(KINDS),
        "ordinal": "|".join(ORDINALS),
        "facts": rf"{fact}(?: {fact})*",
        "most": "|".join(RELATIONS.values()),
        "day": "|".join(DAYS),
        "number": "[0-9]{1,2}",
        "country": "[A-Z][a-z]+",
        "name": name,
        "time": "|".join(TIMES),
    }
    patterns = []
    for family, one in FAMILIES.items():
        for wording in one.wordings:
            parts = re.split(r"\{(\w+)\}", wording)
            texts = [
                f"(?P<{part}>{places.get(part, '[a-z]+')})" if number % 2 else re.escape(part)
                for number, part in enumerate(parts)
            ]
            patterns.append((family, re.compile("".join(texts))))
    return patterns
