"""The win rate against the test set's own answers, with a scripted judge and by hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import Message
from montessori_pl.evaluation import WinRate
from montessori_pl.generation import (
    ClassroomJudge,
    Completion,
    GenerationBackend,
    Request,
    Sampling,
    TransformersBackend,
)
from montessori_pl.models.loading import ModelSource

JUDGE = ModelSource("the-judge")


class Student(GenerationBackend):
    """Answers `mine`; has no room for what is longer than ten characters."""

    def load(self, source: ModelSource) -> None:
        self.source = source

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return len(messages[-1]["content"]) <= 10

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        assert sampling.temperature == 0
        return [Completion(text=f"mine {r.messages[-1]['content']}", finished=True, num_tokens=1) for r in requests]

    def close(self) -> None:
        del self.source


class Judge(GenerationBackend):
    """Gives each response the scores that a table has for it, one after another."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = {response: iter(scores) for response, scores in table.items()}
        self.events: list[str] = []
        self.seeds: list[int] = []

    def set_cache_dir(self, directory: Path) -> None:
        self.events.append(f"keep {directory.name}")

    def load(self, source: ModelSource) -> None:
        self.events.append(f"load {source.backbone}")

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.seeds += [request.seed for request in requests]
        return [self._judge(request.messages[-1]["content"]) for request in requests]

    def close(self) -> None:
        self.events.append("close")

    def _judge(self, prompt: str) -> Completion:
        response = prompt.partition("<response>\n")[2].partition("\n</response>")[0]
        return Completion(text=f"Hm.\nScore: {next(self.table[response])}", finished=True, num_tokens=5)


@pytest.fixture
def data(tmp_path: Path) -> DataSources:
    rows = [{"instruction": text, "response": f"theirs {text}"} for text in ("a", "b", "c", "d", "far too long")]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSources(seed_tasks=str(path), reference=str(path), test=str(path))


def test_wins_ties_and_losses_by_hand(data: DataSources, tmp_path: Path) -> None:
    judge = Judge(
        {
            "mine a": ["5", "4"], "theirs a": ["4", "4"],  # 4.5 against 4: won
            "mine b": ["3", "none"], "theirs b": ["2", "4"],  # 3 against 3, what cannot be read aside: half
            "mine c": ["1", "1"], "theirs c": ["2", "1"],  # lost
            "mine d": ["no", "no"], "theirs d": ["5", "5"],  # left out
            "": ["0", "0"], "theirs far too long": ["1", "0"],  # no room for an answer: judged as none, and lost
        }
    )  # fmt: skip
    evaluator = WinRate(JUDGE, judge, judgements=2)
    evaluator.requests = tmp_path / "requests"
    found = evaluator.evaluate(ModelSource("a-student"), data, Student)
    assert found["win_rate"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    variance = (0.625**2 + 0.125**2 + 2 * 0.375**2) / 3
    assert found["win_rate_standard_error"] == pytest.approx(math.sqrt(variance / 4))
    assert found["judged_rate"] == 4 / 5
    assert judge.events == ["keep judge", "load the-judge", "close"]
    assert len(set(judge.seeds)) == len(judge.seeds) == 20


def test_nothing_that_can_be_read(data: DataSources) -> None:
    silent = Judge({text: ["?"] for side in ("mine", "theirs") for text in [f"{side} {item}" for item in "abcd"]})
    silent.table |= {"": iter("?"), "theirs far too long": iter("?")}
    with pytest.raises(ValueError, match="the-judge gave no item of the test set a score that can be read"):
        WinRate(JUDGE, silent, judgements=1).evaluate(ModelSource("a-student"), data, Student)


def test_the_classrooms_teacher_wins_no_more_than_half_against_right_answers() -> None:
    """It answers nearly as the test set does; the student base, which knows half of the tasks, wins less often."""
    data = DataSources("classroom/seed_tasks", "classroom/reference", "classroom/test[:60]")
    evaluator = WinRate(ModelSource("classroom/judge"), ClassroomJudge(), max_tokens=24)
    rates = {
        name: evaluator.evaluate(ModelSource(f"classroom/{name}"), data, TransformersBackend)["win_rate"]
        for name in ("teacher", "student")
    }
    assert 0.4 < rates["teacher"] < 0.6
    assert rates["student"] < rates["teacher"] - 0.1
