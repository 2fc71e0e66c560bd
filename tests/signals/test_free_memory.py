"""What a signal finds free when it begins decides the last digits of its scores: it goes on with the same."""

from pathlib import Path

import pytest
import torch

from montessori_pl.signals import base
from montessori_pl.signals.base import SignalCallback
from montessori_pl.stages.scoring.score_files import ScoreFiles

CPU = torch.device("cpu")


class AnySignal(SignalCallback):
    """Scores nothing."""


def test_scoring_goes_on_with_what_was_free_at_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1000, 500, 400, 300])
    monkeypatch.setattr(base, "default_budget", lambda device: next(free))
    first, second, alone = AnySignal(), AnySignal(), AnySignal()
    first.directory = second.directory = tmp_path
    assert (first.free_memory(CPU), second.free_memory(CPU)) == (1000, 1000)
    assert alone.free_memory(CPU) == 500, "without a stage there is nothing to go on with"

    ScoreFiles(tmp_path).finish([])
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]
    assert first.free_memory(CPU) == 400
