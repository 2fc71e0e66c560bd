"""The files of a scoring, while several processes look at them."""

from pathlib import Path
from typing import Any

import pytest

from montessori_pl.data.records import Example, Score, append_records
from montessori_pl.stages.base import SCORES
from montessori_pl.stages.scoring import score_files
from montessori_pl.stages.scoring.score_files import ScoreFiles

EXAMPLES = [Example(id=id_, instruction=id_, response="yes") for id_ in "abc"]


@pytest.mark.parametrize("after", range(3))
def test_nobody_misses_what_the_first_process_puts_together_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Before the first part is read, before the second, and not at all: a process sees all scores."""
    files, first = ScoreFiles(tmp_path), ScoreFiles(tmp_path)
    append_records(files.part(SCORES, 0), [Score(id="a", value=1.0, method="m"), Score(id="b", value=2.0, method="m")])
    append_records(files.part(SCORES, 1), [Score(id="c", value=3.0, method="m")])
    read, calls = score_files.read_records, 0

    def read_while_the_first_finishes(path: Path, kind: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            monkeypatch.setattr(score_files, "read_records", read)
            first.finish(EXAMPLES)
        return read(path, kind)

    if after:
        monkeypatch.setattr(score_files, "read_records", read_while_the_first_finishes)
    assert files.done() == {"a", "b", "c"}
