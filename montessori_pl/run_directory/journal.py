"""Append-only records that move forward together, one commit at a time."""

import io
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Record, as_lines, json_text, read_lines
from montessori_pl.run_directory.durable import append, sync
from montessori_pl.run_directory.errors import RunDirectoryError

JOURNAL = "journal.jsonl"
CHECKSUM = "crc32"
"""Under this name a commit keeps the CRC-32 of the bytes that it appended to the files, one file after another."""
SUFFIX = ".jsonl"
"""How the names of the files end: by this they are told from the numbers that a commit remembers."""

log = logging.getLogger(__name__)


class Journal:
    """Append-only JSON-lines files that move forward together, one commit at a time.

    Each commit appends to the files and, when the data have reached the disk, writes the sizes of the files as one line
    of `journal.jsonl`. What lies behind the last whole line of the journal was never committed; opening the journal
    cuts it off. Commits whose data are gone, as a power loss can leave them on disks that do not keep the order, are
    cut off too, with a warning.

    Args:
        directory: where the files lie.
        names: the files, for example `examples.jsonl`.

    Raises:
        RunDirectoryError: the data are there, and are not what was committed, or the journal is damaged.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        assert all(name.endswith(SUFFIX) for name in names), f"{names} must end in {SUFFIX}"
        self._paths = {name: directory / name for name in names}
        self._journal = directory / JOURNAL
        self._journal.touch()
        self.commits: list[dict[str, Any]] = committed(self._journal, names)
        """The sizes in bytes after each commit, and what the commits remember."""
        lines = _lines(self._journal)
        if lost := len(lines) - len(self.commits):
            log.warning("%s: the data of the last %d commits are gone; they are made again", self._journal, lost)
        # First the journal: it must never vouch for more than there is.
        _truncate(self._journal, sum(map(len, lines[: len(self.commits)])))
        sizes = self.commits[-1] if self.commits else {}
        for name, path in self._paths.items():
            path.touch()
            _truncate(path, sizes.get(name, 0))
        sync(directory)

    def commit(self, records: Mapping[str, Sequence[Record]], **notes: float) -> None:
        """Append records to the files, all or none, with numbers to remember."""
        sizes, checksum = {}, 0
        for name, path in self._paths.items():
            if data := as_lines(records.get(name, ())):
                append(path, data)
            sizes[name] = path.stat().st_size
            checksum = zlib.crc32(data, checksum)
        self.commits.append({**sizes, **notes, CHECKSUM: checksum})
        append(self._journal, (json_text(self.commits[-1]) + "\n").encode())


def committed(journal: Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The commits of a journal up to the first whose data are gone.

    Args:
        journal: `journal.jsonl`; the files that it vouches for lie beside it.
        names: the files; none takes those that the commits name.

    Raises:
        RunDirectoryError: data are there, and are not what was committed, or a line is no commit.
    """
    again = f"restore the file, or delete {journal.parent} to do its work again"
    try:
        commits = list(read_lines(journal))
    except ValueError as error:
        raise RunDirectoryError(f"{error}; {again}") from error
    names = names or [name for name in (commits[0] if commits else {}) if name.endswith(SUFFIX)]
    with ExitStack() as stack:
        paths = [journal.with_name(name) for name in names]
        files = [stack.enter_context(open(path, "rb")) if path.exists() else io.BytesIO() for path in paths]
        for number, commit in enumerate(commits):
            lengths = [_length(commit.get(name), file.tell()) for name, file in zip(names, files, strict=True)]
            if any(length is None for length in lengths):
                raise RunDirectoryError(f"{journal}, line {number + 1}: not a commit of {', '.join(names)}; {again}")
            chunks = [file.read(length) for file, length in zip(files, lengths, strict=True)]
            if any(len(chunk) != length or b"\0" in chunk for chunk, length in zip(chunks, lengths, strict=True)):
                return commits[:number]
            checksum = zlib.crc32(b"".join(chunks))
            if commit.get(CHECKSUM, checksum) != checksum:
                changed = " or ".join(map(str, paths))
                raise RunDirectoryError(f"{changed} is not what line {number + 1} of {JOURNAL} committed; {again}")
    return commits


def check_journals(directory: Path) -> int:
    """Look at the data of all journals within a directory; returns the number of their commits.

    Raises:
        RunDirectoryError: data are missing, or are not what was committed.
    """
    commits = 0
    for journal in sorted(directory.rglob(JOURNAL)):
        whole, found = len(_lines(journal)), len(committed(journal))
        if found < whole:
            raise RunDirectoryError(
                f"{journal} knows {whole} commits, and the data of the last {whole - found} are not there; restore the "
                f"files, or delete {journal.parent} to do its work again"
            )
        commits += found
    return commits


def _lines(journal: Path) -> list[bytes]:
    """The lines of a journal without a torn end."""
    whole, _, _ = journal.read_bytes().partition(b"\0")
    return whole.splitlines(keepends=True)[: whole.count(b"\n")]


def _length(size: object, before: int) -> int | None:
    """How many bytes a commit has appended to a file; none of what is no size."""
    return size - before if isinstance(size, int) and size >= before else None


def _truncate(path: Path, size: int) -> None:
    if path.stat().st_size > size:
        os.truncate(path, size)
        sync(path)
