"""The quality that stands in an example becomes its score, or a sentence says where it is missing."""

from collections.abc import Sequence

import pytest
import torch
from tiny_models import tiny_tokenizer

from callbacks import RecordedQualitySignal
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.scoring_data import ScoringData


def examples(qualities: Sequence[float | None]) -> list[Example]:
    return [
        Example(id=f"e{n}", instruction=f"say {n}", response="a", quality=quality)
        for n, quality in enumerate(qualities)
    ]


def scoring_data(found: Sequence[Example]) -> ScoringData:
    chat_template = ChatTemplate(tiny_tokenizer())
    return ScoringData(found, [chat_template.render(example.messages()) for example in found], [], pad_id=0)


def test_the_score_is_what_was_recorded() -> None:
    signal, found, student = RecordedQualitySignal(), examples([2, -0.5, 0.0]), StudentModule("none")
    signal.prepare(student, scoring_data(found))
    scores = signal.score_batch(student, found, {}, torch.zeros(3))
    assert [(score.id, score.value, score.details) for score in scores] == [
        ("e0", 2, {"quality": 2}),
        ("e1", -0.5, {"quality": -0.5}),
        ("e2", 0.0, {"quality": 0.0}),
    ]
    assert scores[0].method == "quality, high is better"
    assert signal.summary(scores)["quantiles"]["1"] == 2


def test_what_is_missing_is_said_before_anything_is_scored() -> None:
    data = scoring_data(examples([1.0, None, 0.0, None]))
    with pytest.raises(
        ValueError, match=r"example e1 \('say 1'\) has no recorded quality, and so it is with 2 of 4 exa"
    ):
        RecordedQualitySignal().prepare(StudentModule("none"), data)
