"""Accuracy on the gym's tasks: judged by verifiers, counted by family, kept for a session that was killed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, append_records
from montessori_pl.evaluation import GymAccuracy
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource

ANSWERS = {
    "How many of these are fruits: plum, bus, pear, hat?": "2",
    "Count the tools in this list: saw, axe, dog.": "The number is 3.",
    "Today is Friday. What day is it in 2 days?": "It is Sunday. Then comes Monday.",
    "Which day comes 3 days after Monday?": "Thursday or Friday",
    "Name the second of these: boat, lemon, axe.": "boat, lemon, axe",
}
"""What the student says: wrong at the count of tools and at the last two."""


class Canned(GenerationBackend):
    """Says what stands above."""

    def load(self, source: ModelSource) -> None: ...

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        texts = [ANSWERS[request.messages[-1]["content"]] for request in requests]
        return [Completion(text=text, finished=True, num_tokens=1) for text in texts]

    def close(self) -> None: ...


def data_of(path: Path, instructions: Sequence[str]) -> DataSources:
    rows = [Example(id=f"i{n}", instruction=one, response="not looked at") for n, one in enumerate(instructions)]
    append_records(path, rows)
    return DataSources("none", "none", str(path))


def test_answers_are_judged_by_the_verifier_of_their_family(tmp_path: Path) -> None:
    evaluator = GymAccuracy()
    evaluator.directory = tmp_path / "kept"
    data = data_of(tmp_path / "test.jsonl", list(ANSWERS))
    found = evaluator.evaluate(ModelSource("student"), data, Canned)
    assert found["accuracy"] == 2 / 5
    by_family = {name: value for name, value in found.items() if name.startswith("accuracy_") and "error" not in name}
    assert by_family == {"accuracy_count": 1 / 2, "accuracy_day": 1 / 2, "accuracy_position": 0.0}

    def asked_again() -> GenerationBackend:
        raise AssertionError("all answers are kept")

    assert evaluator.evaluate(ModelSource("student"), data, asked_again) == found


def test_other_items_are_refused_before_a_run(tmp_path: Path) -> None:
    data = data_of(tmp_path / "test.jsonl", [*ANSWERS, "Tell me a story."])
    with pytest.raises(
        ValueError, match=r"1 items of data.test are none, for example 'Tell me a story.'; set data.test"
    ):
        GymAccuracy().check_inputs(data, ChatTemplate(tiny_tokenizer()))
