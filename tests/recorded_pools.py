"""Pools of recorded responses for tests of the stages that choose among teachers: who should be asked is known.

Prompts are spelled in letters or in digits. `letters` answers the first kind well and the second badly, `digits` the
other way round, and `steady` answers everything so-so.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.data import DataSources
from montessori_pl.models import LoraSettings
from montessori_pl.progress import Progress
from montessori_pl.records import Example, Record, Score, append_records
from montessori_pl.stages import StageContext
from montessori_pl.student import StudentModule
from montessori_pl.teacher import TeacherDPOModule

TEACHERS = ("digits", "letters", "steady")


def write(path: Path, records: Sequence[Record]) -> Path:
    """Write records into a new file and return its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    append_records(path, records)
    return path.parent


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


def make_context(directory: Path, backbone: str, **changes: Any) -> StageContext:
    """The context of a stage called `it`, whose student is this model."""
    directory.mkdir(parents=True, exist_ok=True)

    def never(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("not needed")

    nothing: Callable[..., None] = lambda *arguments: None  # noqa: E731
    settings: dict[str, Any] = {
        "key": "iteration_1/it",
        "name": "it",
        "iteration": 1,
        "directory": directory,
        "seed": 5,
        "inputs": {},
        "data": DataSources("none", "none"),
        "student": lambda: StudentModule(backbone, lora=LoraSettings(r=2, alpha=4)),
        "teacher": lambda: TeacherDPOModule(backbone),
        "backend": never,
        "trainer": never,
        "progress": Progress(nothing, nothing),
        "log_distribution": nothing,
    }
    return StageContext(**{**settings, **changes})
