"""Names of the embedded classroom beside hub ids and paths: `classroom/teacher`, `classroom@3/seed_tasks[:10]`."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from montessori_pl import classroom

_CLASSROOM = re.compile(r"(classroom(?:@[^/]*)?/[^\[]*)(\[.*\])?")
_SET = re.compile(r"classroom(?:@(\d+))?/(seed_tasks|reference|test)(\[.*\])?")


def locate(name: str) -> str:
    """The path of what the classroom calls by this name, which is built first if need be; other names as they are.

    Raises:
        ValueError: the classroom has nothing of this name.
    """
    match = _CLASSROOM.fullmatch(name)
    return f"{classroom.resolve(match[1])}{match[2] or ''}" if match else name


def in_classroom(name: str) -> bool:
    """Whether this is a name of the classroom rather than a path."""
    return _CLASSROOM.fullmatch(name) is not None


def with_versions(settings: Any) -> Any:
    """The settings with its version behind each name of the classroom: another version is another world."""
    if isinstance(settings, Mapping):
        return {key: with_versions(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [with_versions(value) for value in settings]
    if isinstance(settings, str) and (match := _CLASSROOM.fullmatch(settings)):
        return f"{settings} (version {classroom.version(match[1])})"
    return settings


def kept(name: str) -> str | None:
    """What `locate` gives where nothing has to be built for it; none for a set of a world that is not kept here."""
    match = _SET.fullmatch(name)
    if match is None:
        return name
    world = classroom.kept_world(int(match[1] or 0))
    return f"{world / classroom.CONTENTS[match[2]]}{match[3] or ''}" if world is not None else None


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """A directory of the classroom's cache that others build as well: by one process, and whole or not at all.

    Args:
        name: of the directory; what it holds depends on nothing else.
        build: fills it, while it is empty and has another name.
    """
    return classroom._built(name, build)
