"""The memory that a container may still take: its control group's limit, which what is free on the machine hides.

Knows the files of Linux control groups (https://docs.kernel.org/admin-guide/cgroup-v2.html, memory), of both versions.
"""

from collections.abc import Iterator
from pathlib import Path

PROCESS, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory_left(process: Path = PROCESS, root: Path = ROOT) -> int | None:
    """Bytes that may still be taken; none where no control group sets a limit.

    Args:
        process: says to which control groups this process belongs.
        root: where control groups are mounted.
    """
    left = [one for group in _groups(process, root) if (one := _left(group)) is not None]
    return min(left, default=None)


def _groups(process: Path, root: Path) -> Iterator[Path]:
    """The process's control groups of memory and all above them, whose limits hold as well.

    A container often sees its own group as the root, while the file of the process names the path outside.
    """
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        group = top / path.lstrip("/")
        yield from (one for one in (group, *group.parents) if one.is_relative_to(top) and one.is_dir())


def _left(group: Path) -> int | None:
    """Bytes below the limit of one group; memory of files that nobody reads is given back when it is wanted."""
    for limit, used, unread in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = int((group / limit).read_text()), int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # of the other version, at the top, or without a limit ("max")
            continue
        return max(0, most - taken + int(stat.get(unread, 0)))
    return None
