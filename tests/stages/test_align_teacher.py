"""AlignTeacher: pairs that are too long to be learned."""

from collections.abc import Callable
from pathlib import Path

import pytest
from stage_runs import write

from montessori_pl.data.records import PreferencePair
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import AlignTeacher, StageContext, StageError


def test_pairs_that_are_too_long(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    pair = PreferencePair(id="p", prompt="a" * 30, chosen="b", rejected="c", chosen_id="1", rejected_id="2", margin=1.0)
    directory = write(tmp_path / "pairs" / "pairs.jsonl", [pair])
    with pytest.raises(StageError, match=r"it has nothing to learn: of 1 pairs in .*, none fits within max_length 20"):
        AlignTeacher("pairs", TrainingSettings(lr=1e-3, max_length=20)).run(
            context(inputs={"pairs": directory, "teacher": None})
        )


def test_pairs_that_were_asked_for_in_another_way(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    """The monitor would find no instruction in what the teacher goes on to write."""
    pair = PreferencePair(
        id="p", prompt="a", chosen="b", rejected="c", chosen_id="1", rejected_id="2", margin=1.0, prefill="x"
    )
    directory = write(tmp_path / "pairs" / "pairs.jsonl", [pair])
    with pytest.raises(
        StageError, match=r"it: the completions were asked for in another way .* give it the synthesizer"
    ):
        AlignTeacher("pairs", TrainingSettings(lr=1e-3)).run(context(inputs={"pairs": directory, "teacher": None}))
