"""A run that is written by hand in an empty working directory, and what `export` says of it."""

from pathlib import Path

import pytest
from hand_made import Export, HandMade, write_run

from montessori_pl.__main__ import main


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run() -> HandMade:
    """A run in `iter1`."""
    return write_run()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Export:
    """Run `export` and return what it prints."""

    def export(*arguments: str) -> str:
        main(["export", *arguments])
        printed = capsys.readouterr()
        assert not printed.err
        return printed.out

    return export


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Export:
    """Run `export` and return the sentence with which it ends."""

    def export(*arguments: str) -> str:
        before = sorted(Path.cwd().rglob("*"))
        with pytest.raises(SystemExit) as exit_info:
            main(["export", *arguments])
        printed = capsys.readouterr()
        assert exit_info.value.code == 2
        assert not printed.out
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1, "one sentence on one line"
        assert sorted(Path.cwd().rglob("*")) == before, "nothing was written"
        return printed.err.removeprefix("error: ").rstrip("\n")

    return export
