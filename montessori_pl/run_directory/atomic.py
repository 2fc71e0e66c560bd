"""Files and directories that are replaced as a whole or not at all, when a program is killed or the power fails."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Record, json_text
from montessori_pl.run_directory.durable import make_directory, replace


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content; a reader, a kill or a power loss sees the old content or the new one."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
    replace(draft, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file's content by one JSON object, indented for people.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    with _named(path):
        text = json_text(value, indent=1)
    write_atomically(path, text + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file's content by JSON lines, one for each row.

    Raises:
        ValueError: a row holds NaN or infinity.
    """
    with _named(path):
        text = "".join(json_text(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, text)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace a file's content by JSON lines, one for each record, as `append_records` writes them."""
    write_atomically(path, "".join(record.to_json() + "\n" for record in records))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} cannot be written: {error}") from error


@contextmanager
def directory_written_atomically(path: Path) -> Iterator[Path]:
    """A draft directory that takes the place of `path` when the block ends without an error."""
    draft = path.with_name(path.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    make_directory(draft)
    yield draft
    shutil.rmtree(path, ignore_errors=True)
    replace(draft, path)
