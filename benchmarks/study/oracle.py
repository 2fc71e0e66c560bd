"""How much is possible: the data that the reference set asks for, as good as they can be."""

import random

from montessori_pl.classroom import resolve
from montessori_pl.classroom.tasks import SKILLS, sample_task
from montessori_pl.data.records import Example, read_records, stable_seed


def oracle_examples(number: int, world: int, seed: int) -> list[Example]:
    """Different tasks of the target skills, as many of each, with right answers; none is a reference or test item."""
    rng = random.Random(stable_seed("oracle", world, seed))
    held_out = {
        one.instruction
        for role in ("reference", "test")
        for one in read_records(resolve(f"classroom@{world}/{role}"), Example)
    }
    skills = list(SKILLS)
    examples: list[Example] = []
    while len(examples) < number:
        instruction, response = sample_task(rng, skills[len(examples) % len(skills)])
        if instruction not in held_out:
            held_out.add(instruction)
            examples.append(Example(id=f"oracle-{len(examples):05d}", instruction=instruction, response=response))
    return examples
