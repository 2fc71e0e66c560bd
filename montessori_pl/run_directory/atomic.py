"""Files and directories that are replaced as a whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content; a reader, or a kill, sees the old content or the new one."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


@contextmanager
def directory_written_atomically(path: Path) -> Iterator[Path]:
    """A draft directory that takes the place of `path` when the block ends without an error."""
    draft = path.with_name(path.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    shutil.rmtree(path, ignore_errors=True)
    os.replace(draft, path)
