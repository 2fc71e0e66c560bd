"""The embedded classroom: a world that builds itself, so that the whole program runs offline on a fresh machine.

    classroom/teacher    classroom/student                      checkpoints: real, very small Llama models
    classroom/seeds      classroom/reference   classroom/test   JSON lines of `Example`

`classroom@3/teacher` names the teacher of another world, drawn and trained afresh from seed 3. A world is built on
first use and kept in `$MONTESSORI_PL_CACHE` (default `~/.cache/montessori-pl`).
"""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

CONTENTS = {
    "teacher": "teacher",
    "student": "student",
    "seeds": "seeds.jsonl",
    "reference": "reference.jsonl",
    "test": "test.jsonl",
}
"""What a world holds: the last part of a name, and its path inside the world."""

_NAME = re.compile(rf"classroom(?:@(\d+))?/({'|'.join(CONTENTS)})")


def resolve(name: str) -> Path:
    """The path of a checkpoint or a set of the classroom, which is built first if need be.

    Args:
        name: `classroom/` or `classroom@SEED/`, and one of `CONTENTS`.

    Raises:
        ValueError: the classroom has nothing of this name.
    """
    match = _NAME.fullmatch(name)
    if not match:
        known = ", ".join(f"classroom/{content}" for content in CONTENTS)
        raise ValueError(
            f"unknown name {name!r}: the classroom has {known}; classroom@SEED/... is a world drawn from another seed"
        )
    return _world(int(match[1] or 0)) / CONTENTS[match[2]]


def _world(seed: int) -> Path:
    """The directory of a world, which exists when this returns."""
    cache = Path(os.environ.get("MONTESSORI_PL_CACHE") or Path.home() / ".cache" / "montessori-pl")
    world = cache / f"classroom-{seed}-{version()}"
    if not world.is_dir():
        from filelock import FileLock

        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{world}.lock"):
            if not world.is_dir():  # another process may have built it while this one waited
                from montessori_pl.classroom.build import build_world

                logger.info("building the classroom in %s: once, about two minutes on one core", world)
                unfinished = world.with_name(f"{world.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # left behind by a process that was killed
                unfinished.mkdir()
                build_world(unfinished, seed)
                os.rename(unfinished, world)
    return world


def version() -> str:
    """Changes when the recipe of the world changes: its sources, or the request for a new task."""
    from montessori_pl.synthesis.prompts import TEMPLATES

    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"\0".join([*sources, TEMPLATES["classroom"].encode()])).hexdigest()[:12]
