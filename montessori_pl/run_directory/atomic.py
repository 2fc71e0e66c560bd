"""Files and directories that are replaced as a whole or not at all, when a program is killed or the power fails."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Record
from montessori_pl.run_directory.durable import make_directory, replace


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content; a reader, a kill or a power loss sees the old content or the new one."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
    replace(draft, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file's content by one JSON object, indented for people."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file's content by JSON lines, one for each row."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace a file's content by JSON lines, one for each record, as `append_records` writes them."""
    write_atomically(path, "".join(record.to_json() + "\n" for record in records))


@contextmanager
def directory_written_atomically(path: Path) -> Iterator[Path]:
    """A draft directory that takes the place of `path` when the block ends without an error."""
    draft = path.with_name(path.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    make_directory(draft)
    yield draft
    shutil.rmtree(path, ignore_errors=True)
    replace(draft, path)
