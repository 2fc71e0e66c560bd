"""What has reached the disk: a power loss takes what the operating system has not written there yet.

Whatever vouches for data (a journal, the manifest, the final name of a file) is written after the data have reached the
disk. A kill needs none of this: what a process has written outlives the process.
"""

import errno
import os
from pathlib import Path

CANNOT_SYNC_DIRECTORIES = (errno.EACCES, errno.EINVAL, errno.ENOTSUP)
"""What file systems say that cannot do it, network ones among them, and directories that may not be listed."""


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a directory, is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in CANNOT_SYNC_DIRECTORIES:
            raise


def sync_tree(path: Path) -> None:
    """The same for a file, or for all that lies in a directory; what links point at is left out."""
    for directory, _, names in os.walk(path, topdown=False):
        for file in (Path(directory, name) for name in names):
            if file.is_file() and not file.is_symlink():
                sync(file)
        sync(Path(directory))
    if path.is_file():
        sync(path)


def append(path: Path, data: bytes) -> None:
    """Append to a file, which is made if there is none; when this returns, a power loss cannot take it."""
    is_new = not path.exists()
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def replace(draft: Path, path: Path) -> None:
    """Give a file or directory its final name; whatever had it is gone."""
    sync_tree(draft)
    os.replace(draft, path)
    sync(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory, with those above it, where there is none."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync(one.parent)
