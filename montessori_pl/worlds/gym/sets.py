"""The sets of the gym. Reference and test set hold target tasks; of the seed tasks, every other one is a distractor."""

import random
from collections.abc import Sequence

from montessori_pl.data.records import Example, stable_seed
from montessori_pl.worlds.gym.tasks import DISTRACTORS, TARGETS, Difficulty, draw_task

SET_SIZES = {"seed_tasks": 96, "reference": 96, "test": 240}
"""240 test items give an accuracy a standard error of at most .03."""


def draw_sets(difficulty: Difficulty, seed: int) -> dict[str, list[Example]]:
    """The sets by name; each family has as many tasks as any other, in turns.

    No task of the reference or the test set stands in another set.
    """
    rng = random.Random(stable_seed("gym", difficulty, seed))
    held_out: set[str] = set()
    sets: dict[str, list[Example]] = {}
    for name in ("test", "reference", "seed_tasks"):
        families = list(TARGETS) if name != "seed_tasks" else _in_turns(list(TARGETS), list(DISTRACTORS))
        sets[name] = []
        for number in range(SET_SIZES[name]):
            instruction, response = new_task(rng, families[number % len(families)], difficulty, held_out)
            held_out.add(instruction)
            prefix = name.removesuffix("_tasks")
            sets[name].append(Example(id=f"gym-{prefix}-{number:03d}", instruction=instruction, response=response))
    return sets


def new_task(rng: random.Random, family: str, difficulty: Difficulty, held_out: set[str]) -> tuple[str, str]:
    """A task that is not held out, with its answer."""
    while True:
        instruction, response = draw_task(rng, family, difficulty)
        if instruction not in held_out:
            return instruction, response


def _in_turns(one: Sequence[str], other: Sequence[str]) -> list[str]:
    return [name for pair in zip(one, other, strict=True) for name in pair]
