"""From the name of a source to its rows: JSON, CSV and Parquet files, compressed or not, and saved data sets.

A source is a path, optionally with a slice over its rows: `seeds.jsonl`, `seeds.jsonl[:64]`, `dataset_directory[64:]`.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from montessori_pl.data.text_files import GZIP, check_regular, parse_json, read_text

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""What stands between the cells of a table of text."""
OTHER_SEPARATORS = {".csv": (";", "\t"), ".tsv": (";", ",")}
"""What stands there by mistake."""
READABLE = (".jsonl", ".json", *SEPARATORS, ".parquet")
"""Kinds of files."""


def read_rows(source: str) -> tuple[Path, Sequence[Any], range]:
    """The path of a source, all rows behind it, and the numbers of those that the source names, from 0.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: the slice or the file cannot be read, or there is no such row.
    """
    path, part = _split_source(source)
    rows = _read_directory(path) if path.is_dir() else _read_file(path)
    numbers = range(len(rows))[part]
    if not numbers:
        raise ValueError(f"no row to read in {source}: it has {len(rows)} rows; correct the file or the slice")
    return path, rows, numbers


def source_path(source: str) -> Path:
    """The file or directory that a source names, without the slice over its rows."""
    return Path(_parts(source)[0])


def is_table(path: Path) -> bool:
    """Whether a file is a table of text, whose cells are text whatever they look like."""
    return path.is_file() and _kind(path) in SEPARATORS


def is_cut(source: str) -> bool:
    """Whether a source names some of its rows, and not all."""
    return _parts(source)[1] is not None


def _parts(source: str) -> tuple[str, str | None]:
    """A source's path and what stands in its brackets, if any do."""
    match = re.fullmatch(r"(?s)(.+?)\[([^\[\]]*)\]", source)
    return (source, None) if match is None or Path(source).exists() else (match[1], match[2])


def _split_source(source: str) -> tuple[Path, slice]:
    path, part = _parts(source)
    if part is None:
        return Path(path), slice(None)
    bounds = re.fullmatch(r"(-?\d+)?:(-?\d+)?", part)
    if bounds is None:
        raise ValueError(f"bad slice [{part}] in {source}; write [:64], [64:] or [10:20]")
    return Path(path), slice(*(int(bound) if bound else None for bound in bounds.groups()))


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(GZIP)).suffix


def _read_file(path: Path) -> Sequence[Any]:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; {_what_exists(path)}")
    kind = _kind(path)
    if kind not in READABLE or path.name.endswith(f".parquet{GZIP}"):
        raise ValueError(
            f"cannot read {path}: give a file of one of the kinds {', '.join(READABLE)} (all but .parquet also with "
            f"{GZIP} behind it), or a directory of a saved dataset"
        )
    check_regular(path)
    if kind == ".parquet":
        return _read_parquet(path)
    # These not through `datasets`: there a column has one type, and text that looks like a number becomes one.
    return _read_csv(path, kind) if kind in SEPARATORS else _read_json(path)


def _read_json(path: Path) -> Sequence[Any]:
    text = read_text(path)
    if text.lstrip().startswith("["):
        _refuse_lists_in_lines(text, path)
        rows = parse_json(text, path, 1)
        return rows if isinstance(rows, list) else [rows]
    # Not splitlines(), which also breaks at line separators inside a text.
    lines = enumerate(text.split("\n"), start=1)
    return [parse_json(line, path, number) for number, line in lines if line.strip()]


def _refuse_lists_in_lines(text: str, path: Path) -> None:
    lines = [line for line in text.split("\n") if line.strip()][:2]
    if len(lines) > 1 and all(_is_list(line) for line in lines):
        raise ValueError(
            f'cannot read {path}: its lines are lists; write one object per line, for a chat {{"messages": [...]}}'
        )


def _is_list(line: str) -> bool:
    try:
        return isinstance(json.loads(line), list)
    except ValueError:
        return False


def _read_csv(path: Path, kind: str) -> Sequence[Any]:
    text = read_text(path)
    limit = csv.field_size_limit(len(text) + 1)  # of a cell, for the whole process
    try:
        # Every cell is text, whatever it looks like: 007 and 1.50 are answers, and so are NA and None.
        names, *lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=SEPARATORS[kind], strict=True)) or [[]]
    except csv.Error as error:
        raise ValueError(f"cannot read {path}: {error}; put quotation marks around cells that hold some") from error
    finally:
        csv.field_size_limit(limit)
    if len(names) == 1 and (other := next((sign for sign in OTHER_SEPARATORS[kind] if sign in names[0]), "")):
        raise ValueError(
            f"cannot read {path}: its cells are separated by {other!r}, and those of a {kind} file by "
            f"{SEPARATORS[kind]!r}; save it in that way"
        )
    if not names or len(set(names)) < len(names) or not all(names):
        raise ValueError(
            f"cannot read {path}: its first line must name each column, found {', '.join(names) or 'none'}"
        )
    for number, cells in enumerate(lines, start=1):
        if len(cells) > len(names):
            raise ValueError(
                f"row {number} of {path} has {len(cells)} cells and the first line names {len(names)} columns; put "
                "quotation marks around cells that hold separators"
            )
    return [dict(zip(names, cells, strict=False)) for cells in lines if cells]


def _read_parquet(path: Path) -> Sequence[Any]:
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        # Nothing is left in the user's cache, where an edited file could be mixed up with what it was before.
        with TemporaryDirectory() as cache:
            rows: list[Any] = Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True).to_list()
    except (DatasetGenerationError, ValueError, OSError) as error:
        why = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(f"cannot read {path}: no Parquet file ({why}); write it again") from error
    finally:
        if shown:
            enable_progress_bar()
    return rows


def _read_directory(path: Path) -> Sequence[Any]:
    if (path / "dataset_dict.json").exists():
        content = parse_json(read_text(path / "dataset_dict.json"), path / "dataset_dict.json")
        splits = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise ValueError(f"{path / 'dataset_dict.json'} names no splits; save the data set again")
        if "train" not in splits:
            raise ValueError(f"{path} has no split train but {', '.join(splits)}; name one, as in {path / splits[0]}")
        path = path / "train"
    if not (path / "state.json").exists():
        raise ValueError(f"{path} is a directory but no saved dataset; {_what_exists(path / 'state.json')}")
    # Importing datasets takes longer than reading most files.
    from datasets import load_from_disk

    return load_from_disk(str(path)).to_list()


def _what_exists(missing: Path) -> str:
    if not missing.parent.is_dir():
        return f"its directory {missing.parent} does not exist either; correct the path"
    names = sorted(entry.name for entry in missing.parent.iterdir())
    similar = difflib.get_close_matches(missing.name, names, n=5, cutoff=0.5)
    kinds = tuple(f"{kind}{end}" for kind in READABLE for end in ("", GZIP))
    readable = similar or [name for name in names if name.endswith(kinds)][:5]
    if not readable:
        return f"{missing.parent} holds no {', '.join(READABLE)} file; correct the path"
    return f"{missing.parent} holds {', '.join(readable)}; correct the path"
