"""A power loss, simulated: what a program has not synced is not on the disk when it starts again.

A kill leaves all that was written. A power loss leaves what `os.fsync` was called for, and of the rest whatever has
happened to reach the disk: the names of files before their content, or the other way round, or neither.
"""

import os
import resource
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from killing import Moment, die

Loss = Literal["all", "data", "names"]
"""What is lost of that which was not synced: all of it; content, while names are there (NUL bytes stand where it would
have been, as file systems do that know a size already); or names, while content is there."""
LOSSES: tuple[Loss, ...] = ("all", "data", "names")


@dataclass(frozen=True)
class Synced:
    """A file or directory as it is on the disk."""

    content: bytes = b""
    """Of a file."""
    modified_ns: int = 0
    """Of a file: its time of modification."""
    names: tuple[tuple[str, int], ...] = ()
    """Of a directory: the names in it, each with the number of its inode."""


class Disk:
    """Follows what reaches the disk of one directory; what lies there at the beginning has reached it.

    Args:
        root: the directory; whether it exists is known to the directory above, whose other content does not matter.
        on_sync: is called before each sync that counts, with its number, from 1.
    """

    def __init__(self, root: Path, on_sync: Callable[[int], None] = lambda number: None) -> None:
        self.root, self.on_sync = root, on_sync
        self.num_syncs = 0
        self._synced: dict[int, Synced] = {}
        self._held: dict[int, int] = {}
        """An open descriptor of each inode: its number is given to no other file meanwhile."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for directory, _, names in os.walk(root):
            for path in (Path(directory), *(Path(directory, name) for name in names)):
                self._reached(path)
        self._reached(root.parent)

    def fsync(self, descriptor: int) -> None:
        """Stands for `os.fsync`."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path == self.root.parent or path.is_relative_to(self.root):
            self.num_syncs += 1
            self.on_sync(self.num_syncs)
            self._reached(Path(f"/proc/self/fd/{descriptor}"))

    def lose_power(self, loss: Loss) -> None:
        """Leave of the directory what a power loss leaves; whoever is at work must stop."""
        left = self.root.with_name(f"{self.root.name}.left")
        names = dict(self._names(self.root.parent, loss))
        if self.root.name in names:
            self._restore(names[self.root.name], left, loss)
        shutil.rmtree(self.root, ignore_errors=True)
        if left.exists():
            left.rename(self.root)
        for descriptor in self._held.values():
            os.close(descriptor)

    def _reached(self, path: Path) -> None:
        """A file or directory is on the disk as it is."""
        status = path.stat()
        self._hold(path, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            self._synced[status.st_ino] = Synced(names=self._listed(path))
        else:
            self._synced[status.st_ino] = Synced(path.read_bytes(), status.st_mtime_ns)

    def _listed(self, directory: Path) -> tuple[tuple[str, int], ...]:
        above = directory.resolve() == self.root.parent.resolve()
        found = [one for one in sorted(directory.iterdir()) if not above or one.name == self.root.name]
        for one in found:
            self._hold(one, one.stat().st_ino)
        return tuple((one.name, one.stat().st_ino) for one in found)

    def _hold(self, path: Path, inode: int) -> None:
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)

    def _names(self, directory: Path, loss: Loss) -> tuple[tuple[str, int], ...]:
        if loss == "data" and directory.exists():
            return self._listed(directory)
        return self._synced.get(directory.stat().st_ino, Synced()).names

    def _restore(self, inode: int, target: Path, loss: Loss) -> None:
        now = Path(f"/proc/self/fd/{self._held[inode]}")
        if now.is_dir():
            target.mkdir()
            for name, one in self._names(now, loss):
                self._restore(one, target / name, loss)
            return
        synced, content, modified_ns = self._synced.get(inode, Synced()), now.read_bytes(), now.stat().st_mtime_ns
        if loss == "all":
            content, modified_ns = synced.content, synced.modified_ns
        elif loss == "data":
            content = synced.content + b"\0" * (len(content) - len(synced.content))
        target.write_bytes(content)
        os.utime(target, ns=(modified_ns, modified_ns))


@dataclass(frozen=True)
class PowerLoss(Moment):
    """The power fails in a run of the program, before the sync of this number (`call`)."""

    run: Path = Path()
    """Where the run lies."""
    loss: Loss = "all"
    """What is lost."""

    def arm(self, note: Path, end: Callable[[], None] = die) -> None:
        """Follow the disk from now on, and wait for the moment."""

        def fail(number: int) -> None:
            if number == self.call:
                note.write_text(self.stage, encoding="utf-8")
                disk.lose_power(self.loss)
                end()

        disk = Disk(self.run, fail)
        os.fsync = disk.fsync
