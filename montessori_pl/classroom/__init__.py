"""The embedded classroom: a world that comes with the program, which runs offline on a fresh machine as a whole.

    classroom/teacher    classroom/student                      checkpoints: real, very small Llama models
    classroom/seed_tasks      classroom/reference   classroom/test   JSON lines of `Example`
    classroom/specialist_letters   classroom/specialist_digits   classroom/chatty   classroom/peer
    classroom/questioner                                        LoRA adapters on `classroom/teacher`: other teachers

`classroom@3/teacher` names the teacher of another world, drawn and trained afresh from seed 3. It is built on first use
and kept in `$MONTESSORI_PL_CACHE` (default `~/.cache/montessori-pl`), and so is each of its adapters. That of seed 0
was built beforehand, and lies in `embedded/`: on processors without bfloat16 it takes seven minutes, on others two.
"""

import functools
import hashlib
import io
import logging
import os
import re
import shutil
import tokenize
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

CONTENTS = {
    "teacher": "teacher",
    "student": "student",
    "seed_tasks": "seed_tasks.jsonl",
    "reference": "reference.jsonl",
    "test": "test.jsonl",
}
"""What a world holds: the last part of a name, and its path inside the world."""

TEACHER_VARIANTS = ("specialist_letters", "specialist_digits", "chatty", "peer", "questioner")
"""Variants of `teacher`, each an adapter on it; `teacher_variants.py` says what they are like."""

_NAME = re.compile(rf"classroom(?:@(\d+))?/({'|'.join((*CONTENTS, *TEACHER_VARIANTS))})")
_OF_VARIANTS = ("adapters.py", "teacher_variants.py")
"""Sources on which the adapters depend, and the world does not."""
_OF_NOTHING = ("__init__.py", "names.py")
"""Sources on which nothing depends that is built."""

EMBEDDED = Path(__file__).parent / "embedded"
"""What was built beforehand, as a cache holds it. After a change of the sources it is not found; to build it anew:
`MONTESSORI_PL_CACHE=montessori_pl/classroom/embedded`, and `resolve` all names."""


def resolve(name: str) -> Path:
    """The path of a checkpoint, an adapter or a set of the classroom, which is built first if need be.

    Args:
        name: `classroom/` or `classroom@SEED/`, and one of `CONTENTS` or `TEACHER_VARIANTS`.

    Raises:
        ValueError: the classroom has nothing of this name.
    """
    match = _NAME.fullmatch(name)
    if not match:
        known = ", ".join(f"classroom/{content}" for content in (*CONTENTS, *TEACHER_VARIANTS))
        raise ValueError(
            f"unknown name {name!r}: the classroom has {known}; classroom@SEED/... is a world drawn from another seed"
        )
    seed, content = int(match[1] or 0), match[2]
    return _adapter(seed, content) if content in TEACHER_VARIANTS else _world(seed) / CONTENTS[content]


def version(name: str = "classroom/teacher") -> str:
    """Changes when the recipe of what has this name changes: its sources, or the request for a new task."""
    from montessori_pl.synthesis.prompts import TEMPLATES

    not_read = _OF_NOTHING if name.rpartition("/")[2] in TEACHER_VARIANTS else (*_OF_NOTHING, *_OF_VARIANTS)
    paths = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name not in not_read]
    sources = [_code(path.read_text(encoding="utf-8")) for path in paths]
    return hashlib.sha256("\0".join([*sources, TEMPLATES["classroom"]]).encode()).hexdigest()[:12]


@functools.cache
def _code(source: str) -> str:
    """The tokens of a module without comments and documentation, which change no world."""
    kept: list[str] = []
    begins, documents = True, False  # a statement; a statement that is only a text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        documents = (begins and token.type == tokenize.STRING) or (documents and token.type == tokenize.NEWLINE)
        if not documents:
            kept.append(token.string)
        begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return "".join(kept)


def kept_world(seed: int) -> Path | None:
    """The directory of a world; none where it has not been built yet."""
    return _kept(f"classroom-{seed}-{version()}")


def _world(seed: int) -> Path:
    """The directory of a world, which exists when this returns."""

    def build(directory: Path) -> None:
        from montessori_pl.classroom.build import build_world

        logger.info("building the classroom in %s: once, two to seven minutes on one core", directory)
        build_world(directory, seed)

    return _built(f"classroom-{seed}-{version()}", build)


def _adapter(seed: int, name: str) -> Path:
    """The directory of an adapter, which exists when this returns."""

    def build(directory: Path) -> None:
        from montessori_pl.classroom.adapters import build_adapter

        world = _world(seed)
        logger.info("adapting the classroom's teacher in %s: once, about ten seconds on one core", directory)
        build_adapter(directory, world, name, seed)

    return _built(f"classroom-{seed}-{name}-{version(name)}", build)


def _built(name: str, build: Callable[[Path], None]) -> Path:
    """A directory that is built in the cache if it is nowhere: by one process, and whole or not at all."""
    if (found := _kept(name)) is not None:
        return found
    from filelock import FileLock

    directory = _cache() / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not directory.is_dir():  # another process may have built it while this one waited
            unfinished = directory.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # left behind by a process that was killed
            unfinished.mkdir()
            build(unfinished)
            os.rename(unfinished, directory)
    return directory


def _kept(name: str) -> Path | None:
    """The directory of this name that came with the program or was built before; none where it has to be built."""
    return next((home / name for home in (EMBEDDED, _cache()) if (home / name).is_dir()), None)


def _cache() -> Path:
    return Path(os.environ.get("MONTESSORI_PL_CACHE") or Path.home() / ".cache" / "montessori-pl")
