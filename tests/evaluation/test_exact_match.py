"""Exact match item by item: what is kept, what was cut, and that a kill costs one batch at most."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, append_records, read_lines, read_records
from montessori_pl.evaluation import ExactMatch
from montessori_pl.evaluation.exact_match import ItemAnswer
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.journal import Journal

STUDENT = ModelSource("student")


class Parrot(GenerationBackend):
    """Repeats the word behind `say`, cut to three letters; to `hush` it finds no room."""

    def __init__(self, batches: int | None = None) -> None:
        self.rounds = batches
        self.asked: list[list[str]] = []
        self.closed = 0

    def load(self, source: ModelSource) -> None:
        assert source == STUDENT

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return messages[-1]["content"] != "hush"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        if len(self.asked) == self.rounds:
            raise KeyboardInterrupt
        assert (sampling.temperature, sampling.max_tokens) == (0, 3)
        self.asked.append([request.messages[-1]["content"] for request in requests])
        words = [text.removeprefix("say ") for text in self.asked[-1]]
        return [Completion(text=word[:3], finished=len(word) < 4, num_tokens=min(3, len(word))) for word in words]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def data(tmp_path: Path) -> DataSources:
    """Eight items: five are answered right, one wrong, one is cut, and one is not answered."""
    asked = ["say a", "say bb", "say ccc", "say dddd", "hush", "say f", "say g", "say h"]
    expected = ["A ", "bb", "ccc", "dddd", "e", "f", "g", "j"]
    rows = [
        Example(id=f"i{n}", instruction=one, response=other)
        for n, (one, other) in enumerate(zip(asked, expected, strict=True))
    ]
    append_records(tmp_path / "test.jsonl", rows)
    return DataSources("none", "none", str(tmp_path / "test.jsonl"))


def evaluator(directory: Path | None, size: int = 3) -> ExactMatch:
    made = ExactMatch(max_tokens=3, items_per_batch=size)
    made.directory = directory
    return made


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_kept_of_each_item(data: DataSources, tmp_path: Path) -> None:
    """Accuracy 5 / 8 with a standard error of sqrt(.625 * .375 / 8); one of eight answers is cut."""
    directory, engine = tmp_path / "kept", Parrot()
    found = evaluator(directory).evaluate(STUDENT, data, lambda: engine)
    assert found == {
        "accuracy": 0.625,
        "accuracy_standard_error": pytest.approx(0.171163, abs=1e-6),
        "answers_cut": 0.125,
    }
    assert [len(asked) for asked in engine.asked] == [3, 2, 2], "batches of three items, one of which is not asked"
    rows = list(read_lines(directory / "answers.jsonl"))
    assert rows[0] == {"id": "i0", "answer": "a", "right": True, "cut": False}
    assert rows[3] == {"id": "i3", "answer": "ddd", "right": False, "cut": True}
    assert rows[4] == {"id": "i4", "answer": None, "right": False, "cut": False}
    assert rows[7] == {"id": "i7", "answer": "h", "right": False, "cut": False}
    assert [row["id"] for row in rows] == [f"i{n}" for n in range(8)]


def test_without_a_directory_nothing_is_kept(
    data: DataSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kept = evaluator(tmp_path / "kept").evaluate(STUDENT, data, Parrot)
    assert evaluator(None).evaluate(STUDENT, data, Parrot) == kept
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_stopped_after_some_rounds(batches: int, data: DataSources, tmp_path: Path) -> None:
    """What was answered is not asked again, and files and numbers are those of an undisturbed evaluation."""
    whole = evaluator(tmp_path / "whole").evaluate(STUDENT, data, Parrot)
    directory, first, second = tmp_path / "kept", Parrot(batches), Parrot()
    if batches < 3:
        with pytest.raises(KeyboardInterrupt):
            evaluator(directory).evaluate(STUDENT, data, lambda: first)
    else:  # stopped when all was answered, and before the stage could say so
        evaluator(directory).evaluate(STUDENT, data, lambda: first)
    assert evaluator(directory).evaluate(STUDENT, data, lambda: second) == whole
    asked = [text for engine in (first, second) for part in engine.asked for text in part]
    assert asked == [example.instruction for example in data.read("test") if example.instruction != "hush"]
    assert contents(directory) == contents(tmp_path / "whole")
    assert second.closed == (batches < 3), "a model that nobody asks is not loaded"


def test_killed_at_any_byte_of_a_commit(data: DataSources, tmp_path: Path) -> None:
    """A batch that was not committed as a whole is answered again."""
    evaluator(tmp_path / "whole").evaluate(STUDENT, data, Parrot)
    whole = contents(tmp_path / "whole")
    lines = whole["answers.jsonl"].splitlines(keepends=True)
    journal = whole["journal.jsonl"].splitlines(keepends=True)
    before, after = b"".join(lines[:3]), b"".join(lines[:6])
    for size in range(len(before), len(after) + 1, 7):
        directory = tmp_path / f"killed_{size}"
        directory.mkdir()
        (directory / "answers.jsonl").write_bytes(after[:size])
        (directory / "journal.jsonl").write_bytes(journal[0] + journal[1][: len(journal[1]) // 2])
        engine = Parrot()
        evaluator(directory).evaluate(STUDENT, data, lambda engine=engine: engine)  # type: ignore[misc]
        assert [len(asked) for asked in engine.asked] == [2, 2]
        assert contents(directory) == whole


def test_size_of_a_round_may_change_between_sessions(data: DataSources, tmp_path: Path) -> None:
    whole = evaluator(tmp_path / "whole").evaluate(STUDENT, data, Parrot)
    with pytest.raises(KeyboardInterrupt):
        evaluator(tmp_path / "kept").evaluate(STUDENT, data, lambda: Parrot(1))
    assert evaluator(tmp_path / "kept", size=2).evaluate(STUDENT, data, Parrot) == whole
    answers = [read_records(tmp_path / name / "answers.jsonl", ItemAnswer) for name in ("whole", "kept")]
    assert answers[0] == answers[1]
    assert len(Journal(tmp_path / "kept", ["answers.jsonl"]).commits) == 4
    with pytest.raises(ValueError, match="items_per_batch: expected int >= 1, found 0"):
        ExactMatch(items_per_batch=0)


def test_plan_counts_what_is_left(data: DataSources, tmp_path: Path) -> None:
    chat_template = ChatTemplate(tiny_tokenizer())
    assert evaluator(None).estimate(data, chat_template, Parrot)[0].requests == 8
    assert evaluator(tmp_path / "kept").estimate(data, chat_template, Parrot)[0].requests == 8
    assert not (tmp_path / "kept").exists(), "a plan writes nothing"
    with pytest.raises(KeyboardInterrupt):
        evaluator(tmp_path / "kept").evaluate(STUDENT, data, lambda: Parrot(2))
    before = contents(tmp_path / "kept")
    (work,) = evaluator(tmp_path / "kept").estimate(data, chat_template, Parrot)
    assert (work.requests, work.max_completion_tokens) == (2, 2 * 3)
    assert contents(tmp_path / "kept") == before
