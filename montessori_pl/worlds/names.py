"""Names of what is made on first use, beside hub ids and paths: of the classroom, of the gym, and of GGUF files.

`classroom/teacher`, `gym/seed_tasks[:10]`, `gym/teacher:model.gguf` and `model.gguf` are such names.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from montessori_pl.classroom import names as classroom
from montessori_pl.worlds import gym
from montessori_pl.worlds.gguf import checkpoint, gguf_file

_GYM_SET = re.compile(r"(gym(?:[@-][^/]*)?/(?!teacher:)[^\[]*)(\[.*\])?")
_GYM_TEACHER = re.compile(r"gym(?:[@-][^/]*)?/teacher:(.+)")


def locate(name: str) -> str:
    """The path of what a world calls by this name, which is made first if need be; other names as they are.

    Raises:
        ValueError: the world has nothing of this name.
    """
    match = _gym_set(name)
    return f"{gym.resolve(match[1], locate_backbone)}{match[2] or ''}" if match else classroom.locate(name)


def kept(name: str) -> str | None:
    """What `locate` gives where that takes no more than a moment; none for a set of a classroom that is not kept here.

    The sets of the gym are drawn in a moment; a classroom is built with its models.
    """
    return locate(name) if _gym_set(name) else classroom.kept(name)


def locate_backbone(backbone: str) -> str:
    """The hub id or the path of a whole model, which is made first if need be: of a world, or of a GGUF file.

    Raises:
        ValueError: there is nothing of this name, or a file cannot be read.
    """
    if _GYM_TEACHER.fullmatch(backbone):
        return str(gym.resolve(backbone, locate_backbone))
    file = gguf_file(backbone)
    return classroom.locate(backbone) if file is None else str(checkpoint(file))


def backbone_file(backbone: str) -> Path | None:
    """The GGUF file that a backbone is read from, also where it becomes a teacher of the gym; none for others."""
    match = _GYM_TEACHER.fullmatch(backbone)
    return gguf_file(match[1] if match else backbone)


def in_world(name: str) -> bool:
    """Whether this is the name of a world's set rather than a path."""
    return _gym_set(name) is not None or classroom.in_classroom(name)


def with_versions(settings: Any) -> Any:
    """The settings with its version behind each name of a world: another version is another world."""
    if isinstance(settings, Mapping):
        return {key: with_versions(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [with_versions(value) for value in settings]
    if isinstance(settings, str) and (match := _gym_set(settings) or _GYM_TEACHER.fullmatch(settings)):
        name = match[1] if match.re is _GYM_SET else settings
        return f"{settings} (version {gym.version(name)})" if gym.is_name(name) else settings
    return classroom.with_versions(settings)


def _gym_set(name: str) -> re.Match[str] | None:
    """The name of a set of the gym and the slice behind it; none where there is a file of this name."""
    match = _GYM_SET.fullmatch(name)
    return match if match is not None and not Path(match[1]).exists() else None
