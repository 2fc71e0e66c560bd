"""The questions of a run's test set, which a report shows beside the answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from montessori_pl.cli.questions import read_questions
from montessori_pl.worlds.gym.tasks import solve
from montessori_pl.worlds.names import with_versions


def run_on(source: str, pinned: str) -> Any:
    """As much of a run as says what it was tested on."""
    return SimpleNamespace(test_set=source, pinned_test_set=pinned)


def test_those_of_the_gym_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path))
    source = "gym-easy/test[:6]"
    found = read_questions(run_on(source, with_versions(source)))
    assert len(found) == 6
    assert all(solve(question) == expected for question, expected in found.values())


@pytest.mark.parametrize("source", ["gym/test", "gym-of-another-version/test", "classroom@77/test", "gone.jsonl"])
def test_a_set_that_is_gone_or_another_by_now_has_none(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONTESSORI_PL_CACHE", str(tmp_path))
    assert read_questions(run_on(source, f"{source} (version 0)")) == {}
