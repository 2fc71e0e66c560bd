"""Files and directories that are replaced as a whole or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Record, json_text


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content; a reader, or a kill, sees the old content or the new one."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


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
    draft.mkdir(parents=True)
    yield draft
    shutil.rmtree(path, ignore_errors=True)
    os.replace(draft, path)
