"""The gym: a world for real language models. Short English tasks with verifiers, and a teacher that knows them.

    gym/seed_tasks    gym/reference    gym/test    JSON lines of `Example`
    gym/teacher:BACKBONE                           BACKBONE, fine-tuned to write and to answer the gym's tasks

`gym-easy/` and `gym-hard/` name the same with shorter and longer tasks, `gym@3/` a world that is drawn from seed 3. The
student is BACKBONE as it is. All of it is made on first use and kept in `$MONTESSORI_PL_CACHE`.
"""

import functools
import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from montessori_pl.classroom.names import cached
from montessori_pl.worlds.gym.tasks import Difficulty

log = logging.getLogger(__name__)

SETS = ("seed_tasks", "reference", "test")
TEACHER = "teacher:"
"""Stands before the backbone of the model that becomes a teacher."""
_NAME = re.compile(rf"gym(?:-(easy|hard))?(?:@(\d+))?/(?:({'|'.join(SETS)})|{TEACHER}(.+))")


@dataclass(frozen=True)
class Name:
    """What a name of the gym means."""

    difficulty: Difficulty
    """How long the tasks are."""
    seed: int
    """From which all is drawn."""
    content: str
    """One of `SETS`, or `teacher:` and the name of its backbone."""

    @property
    def backbone(self) -> str | None:
        """The backbone of a teacher; none for a set."""
        return self.content.removeprefix(TEACHER) if self.content.startswith(TEACHER) else None


def is_name(name: str) -> bool:
    """Whether the gym has something of this name, without its slice."""
    return _NAME.fullmatch(name) is not None


def parse(name: str) -> Name:
    """What a name means, without its slice.

    Raises:
        ValueError: the gym has nothing of this name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        known = ", ".join(f"gym/{content}" for content in SETS)
        raise ValueError(
            f"unknown name {name!r}: the gym has the sets {known} and the model gym/teacher:BACKBONE; gym-easy/... and "
            "gym-hard/... are other lengths, gym@SEED/... is drawn from another seed"
        )
    difficulty: Difficulty = "easy" if match[1] == "easy" else "hard" if match[1] == "hard" else "normal"
    return Name(difficulty, int(match[2] or 0), match[3] or f"{TEACHER}{match[4]}")


def version(name: str) -> str:
    """Changes when what has this name is made otherwise, apart from its backbone."""
    from montessori_pl.synthesis.prompts import TEMPLATES

    modules = ("tasks.py", "sets.py") if parse(name).backbone is None else ("tasks.py", "sets.py", "teacher.py")
    sources = [(Path(__file__).parent / module).read_text(encoding="utf-8") for module in modules]
    return hashlib.sha256("\0".join([*sources, TEMPLATES["new_task"]]).encode()).hexdigest()[:12]


def resolve(name: str, locate_backbone: Callable[[str], str]) -> Path:
    """The path of a set or of a teacher, which is made first if need be.

    Args:
        name: of the gym, without a slice.
        locate_backbone: gives the path of a backbone, to make a teacher of it.

    Raises:
        ValueError: the gym has nothing of this name, or the backbone of a teacher cannot be read.
    """
    wanted = parse(name)
    world = f"gym-{wanted.difficulty}-{wanted.seed}"
    if wanted.backbone is None:
        return cached(f"{world}-{version(name)}", lambda path: _write_sets(path, wanted)) / f"{wanted.content}.jsonl"
    base = Path(locate_backbone(wanted.backbone))
    if not base.is_dir():
        raise ValueError(f"{name!r} needs a backbone on this machine: a directory or a GGUF file; save the model first")

    def build(path: Path) -> None:
        from montessori_pl.worlds.gym.teacher import build_teacher

        log.warning("making the gym's teacher of %s: once, some minutes; kept in the cache", wanted.backbone)
        build_teacher(path, base, wanted.difficulty, wanted.seed)

    return cached(f"{world}-teacher-{version(name)}-{_content(base)}", build)


def _write_sets(directory: Path, wanted: Name) -> None:
    from montessori_pl.data.records import append_records
    from montessori_pl.worlds.gym.sets import draw_sets

    for name, examples in draw_sets(wanted.difficulty, wanted.seed).items():
        append_records(directory / f"{name}.jsonl", examples)


@functools.cache  # hundreds of megabytes, which do not change under a running program
def _content(directory: Path) -> str:
    """Some digits of the files of a checkpoint."""
    digest = hashlib.sha256()
    for path in sorted(one for one in directory.iterdir() if one.is_file()):
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]
