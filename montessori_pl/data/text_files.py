"""Reading files of users: those that end, fit into memory and are not nested without end; other ones in a sentence."""

import gzip
import json
import stat
import zlib
from pathlib import Path
from typing import Any

import psutil

GZIP = ".gz"
COPIES = 4
"""A file is held about so many times while it is read: its bytes, its text, and its rows."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def check_regular(path: Path) -> None:
    """Refuse what may never end, or wait for ever.

    Raises:
        ValueError: this is no regular file.
        OSError: it is not there.
    """
    if (kind := _KINDS.get(stat.S_IFMT(path.stat().st_mode))) is not None:
        raise ValueError(f"cannot read {path}: it is {kind}; give a regular file")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, decompressed where its name ends with `.gz`.

    Raises:
        ValueError: it is no such file, or too large.
        OSError: it is not there.
    """
    check_regular(path)
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: not a whole gzip file ({error}); compress it again") from error


def parse_json(text: str, path: Path, line: int = 1) -> Any:
    """What a text in JSON says.

    Args:
        text: the file, or a line of it.
        path: of the file.
        line: at which the text begins, from 1.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line + error.lineno - 1}: not JSON from column {error.colno} on; write one object per "
            "line, or one list"
        ) from error
    except RecursionError:
        raise ValueError(f"{path}, line {line}: nested too deeply to be read; flatten it") from None
    except ValueError as error:  # Python reads no number of thousands of digits
        raise ValueError(
            f"{path}, line {line}: holds a number that is too long to be read; write it as text"
        ) from error


def _read_bytes(path: Path) -> bytes:
    most = psutil.virtual_memory().available // COPIES
    size = path.stat().st_size
    if size <= most:
        if path.suffix != GZIP:
            return path.read_bytes()
        with gzip.open(path) as file:
            content = file.read(most + 1)
        if len(content) <= most:
            return content
        size = len(content)
    raise ValueError(
        f"cannot read {path}: it holds {'at least ' * (path.suffix == GZIP)}{_gigabytes(size)}, and the memory that is "
        f"free here is enough for {_gigabytes(most)}; split it"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
