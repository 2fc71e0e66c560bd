"""What a file holds, in a few digits behind its name: `prompt.txt (content 3f2a9c01b4de)`.

A stage is pinned to such a name where a setting of it names a file, whose path says nothing when the file is edited.
The digits depend on what the file holds, not on where it lies.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

Files = Mapping[str, Callable[[str], Path | None]]
"""Settings that may name a file, each with what gives its path: none where the setting means no file."""
UNKNOWN = "unknown"
"""Stands for the content of a file that is not there."""
_NAMED = re.compile(rf"(.*) \(content ([0-9a-f]{{12}}|{UNKNOWN})\)", re.DOTALL)


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
