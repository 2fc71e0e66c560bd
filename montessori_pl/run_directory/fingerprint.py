"""The fingerprint of a stage: the settings that decide what it makes, with what stands behind their names.

Settings that say how fast or how long a stage works are not part of it. A class that is chosen by `class_path` names
these in its attribute `fingerprint_excludes`, with dots for nested ones (`training.checkpoint_every_n_steps`); you may
change them at any time. A class that says by `replicates` which of its settings is the thing itself, of which it makes
more, is pinned as that. A model's class names in `for_training` the settings that say how it is trained: a stage that
only lets it write or answer does not depend on them.

A path says nothing when the file is edited. A class says in `files` which of its settings name files; the fingerprint
then holds some digits of the content behind the name: `prompt.txt (content 3f2a9c01b4de)`. The digits depend on what
the file holds, not on where it lies.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

Files = Mapping[str, Callable[[str], Path | None]]
"""Settings that may name a file, each with what gives its path: none where the setting means no file."""
UNKNOWN = "unknown"
"""Stands for the content of a file that is not there."""
_NAMED = re.compile(rf"(.*) \(content ([0-9a-f]{{12}}|{UNKNOWN})\)", re.DOTALL)


def pinned(settings: Any, trained: bool = True, kind: type | None = None) -> Any:
    """The settings, nested as they are, without those that are not pinned, and with the contents of files.

    Args:
        settings: of a stage, or of a section that it uses.
        trained: whether the stage trains the model that the settings describe.
        kind: the class that takes the settings, where they do not say so themselves by `class_path`.
    """
    if isinstance(settings, list):
        return [pinned(one, trained) for one in settings]
    if not isinstance(settings, Mapping):
        return settings
    kept = {key: pinned(value, trained) for key, value in settings.items()}
    arguments = kept
    if isinstance(class_path := settings.get("class_path"), str):
        module, _, name = class_path.rpartition(".")
        kind, arguments = getattr(import_module(module), name), kept.get("init_args") or {}
        if (replicated := getattr(kind, "replicates", None)) is not None:
            return arguments[replicated]
    for dotted in (*getattr(kind, "fingerprint_excludes", ()), *(() if trained else getattr(kind, "for_training", ()))):
        inner, name = _find(arguments, dotted)
        inner.pop(name, None)
    for dotted, path_of in getattr(kind, "files", {}).items():
        inner, name = _find(arguments, dotted)
        if isinstance(value := inner.get(name), str) and (path := path_of(value)) is not None:
            inner[name] = with_content(value, path)
    return kept


def with_content(name: str, path: Path) -> str:
    """A name with digits behind it that stand for what a file holds, or all files of a directory.

    Args:
        name: what the setting says.
        path: the file or directory that it means.
    """
    return f"{name} (content {_digest(path) if path.is_file() or path.is_dir() else UNKNOWN})"


def same(then: object, now: object) -> bool:
    """Whether a setting is what it was; a file that is not there to look at is taken for what it was."""
    if then == now:
        return True
    one, other = _split(then), _split(now)
    return one is not None and other is not None and one[0] == other[0] and UNKNOWN in (one[1], other[1])


def common_file(then: object, now: object) -> str | None:
    """The file that a setting named then and names now; none where these are two, or none."""
    one, other = _split(then), _split(now)
    return one[0] if one is not None and other is not None and one[0] == other[0] else None


def _split(value: object) -> tuple[str, str] | None:
    """A name and its content; none of what is no name with a content."""
    match = _NAMED.fullmatch(value) if isinstance(value, str) else None
    return (match[1], match[2]) if match is not None else None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for one in [path] if path.is_file() else _files(path):
        with open(one, "rb") as file:
            digest.update(
                f"{one.relative_to(path).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
            )
    return digest.hexdigest()[:12]


def _files(directory: Path) -> list[Path]:
    # `datasets` keeps what users compute from a data set beside its files, under names of this kind.
    return sorted(one for one in directory.rglob("*") if one.is_file() and not one.name.startswith("cache-"))


def _find(settings: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a setting, which is empty if there is none, and the setting's last name."""
    *path, name = dotted.split(".")
    for part in path:
        settings = settings.get(part) or {}
    return settings, name
