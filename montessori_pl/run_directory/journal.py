"""Append-only records that move forward together, one commit at a time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Record, append_records, json_text, read_lines


class Journal:
    """Append-only JSON-lines files that move forward together, one commit at a time.

    Each commit appends to the files and then writes their sizes as one line of `journal.jsonl`. What lies behind the
    last whole line of the journal was never committed; opening the journal cuts it off.

    Args:
        directory: where the files lie.
        names: the files, for example `examples.jsonl`.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self._paths = {name: directory / name for name in names}
        self._journal = directory / "journal.jsonl"
        self.commits: list[dict[str, Any]] = list(read_lines(self._journal)) if self._journal.exists() else []
        """The sizes in bytes after each commit, and what the commits remember."""
        sizes = self.commits[-1] if self.commits else {}
        for name, path in self._paths.items():
            _truncate(path, sizes.get(name, 0))
        _truncate(self._journal, sum(len(_line(commit)) for commit in self.commits))

    def commit(self, records: Mapping[str, Sequence[Record]], **notes: float) -> None:
        """Append records to the files, all or none, with numbers to remember."""
        for name, path in self._paths.items():
            append_records(path, records.get(name, ()))
        sizes = {name: path.stat().st_size for name, path in self._paths.items()}
        self.commits.append({**sizes, **notes})
        with open(self._journal, "ab") as file:
            file.write(_line(self.commits[-1]))
            file.flush()
            os.fsync(file.fileno())


def _line(row: Mapping[str, float]) -> bytes:
    return (json_text(row) + "\n").encode()


def _truncate(path: Path, size: int) -> None:
    path.touch()
    if path.stat().st_size > size:
        os.truncate(path, size)
