"""Pools of recorded responses for tests of the stages that choose among teachers: who should be asked is known.

Prompts are spelled in letters or in digits. `letters` answers the first kind well and the second badly, `digits` the
other way round, and `steady` answers everything so-so.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from stage_runs import write

from montessori_pl.data.records import Example, Score

TEACHERS = ("digits", "letters", "steady")


def prompts(number: int, seed: int = 0) -> list[str]:
    """Different prompts, of letters and of digits in turn."""
    rng = random.Random(seed)
    kinds = ("abcdefghijklm", "0123456789")
    return ["".join(rng.choices(kinds[n % 2], k=rng.randint(6, 14))) for n in range(number)]


def best_teacher(prompt: str) -> str:
    """Who should answer it."""
    return "digits" if prompt[0].isdigit() else "letters"


def pool(texts: Sequence[str], teachers: Sequence[str] = TEACHERS) -> list[Example]:
    """A response of each teacher to each prompt."""
    return [
        Example(id=f"{n}-{teacher}", instruction=text, response=f"so says {teacher}", teacher=teacher)
        for n, text in enumerate(texts)
        for teacher in teachers
    ]


def known_qualities(examples: Sequence[Example], seed: int = 0) -> dict[str, float]:
    """1 for the teacher that should answer, 0 for the other specialist and .4 for the steady one, with noise of .1."""
    rng = random.Random(seed)
    worth = {example.id: float(example.teacher == best_teacher(example.instruction)) for example in examples}
    worth |= {example.id: 0.4 for example in examples if example.teacher == "steady"}
    return {id_: value + rng.gauss(0, 0.1) for id_, value in worth.items()}


def random_qualities(examples: Sequence[Example], seed: int = 0) -> dict[str, float]:
    """Drawn by lot."""
    rng = random.Random(seed)
    return {example.id: rng.gauss(0, 1) for example in examples}


def inputs(root: Path, examples: Sequence[Example], **scores: dict[str, float] | Sequence[Score]) -> dict[str, Path]:
    """What stages would have left: the responses, and under each name the scores, by id or whole."""
    found = {"examples": write(root / "pool" / "examples.jsonl", examples)}
    for name, given in scores.items():
        records = [Score(id=id_, value=one) for id_, one in given.items()] if isinstance(given, dict) else given
        found[name] = write(root / name / "scores.jsonl", records)
    return found
