"""MT-Bench with files made here, a scripted student and a scripted judge, by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from stage_runs import Killed
from tiny_models import tiny_tokenizer

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.evaluation import MTBench
from montessori_pl.evaluation.mt_bench import parse_rating
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource

DATA = DataSources("none", "none")
STUDENT, JUDGE = ModelSource("mine"), ModelSource("the-judge")


class Student(GenerationBackend):
    """Answers `<last question>!`, and says at which temperature it was asked."""

    def __init__(self) -> None:
        self.temperatures: dict[str, float] = {}
        self.asked: list[list[Message]] = []

    def load(self, source: ModelSource) -> None:
        assert source in (STUDENT, JUDGE)

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return messages[-1]["content"] != "too long"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.asked += [list(request.messages) for request in requests]
        self.temperatures |= {request.messages[-1]["content"]: sampling.temperature for request in requests}
        return [
            Completion(text=f"{request.messages[-1]['content']}!", finished=True, num_tokens=1) for request in requests
        ]

    def close(self) -> None:
        pass


class Judge(Student):
    """Rates by a table of the judged answer, and keeps what it was asked."""

    table: ClassVar = {
        "w1!": "[[8]]",
        "w2!": "[[6.5]]",
        "m1!": "[[10]]",
        "m2!": "no idea",
        "x1!": "[[1]]",
    }

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        super().generate(requests, sampling)
        answers = [request.messages[-1]["content"].split("|")[-1] for request in requests]
        return [Completion(text=f"So\n{self.table[one]}", finished=True, num_tokens=1) for one in answers]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three questions, in FastChat's form; `reference_answer` is a directory there."""
    files = tmp_path / "mt_bench"
    (files / "reference_answer").mkdir(parents=True)
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["w1", "w2"]},
        {"question_id": 111, "category": "math", "turns": ["m1", "m2"]},
        {"question_id": 131, "category": "extraction", "turns": ["x1", "too long"]},
    ]
    references = [{"question_id": 111, "choices": [{"index": 0, "turns": ["r1", "r2"]}]}]
    multi = "{question_1}|{answer_1}|{question_2}|"
    prompts = {
        "single-v1": "1|{question}|{answer}",
        "single-math-v1": "m1|{ref_answer_1}|{question}|{answer}",
        "single-v1-multi-turn": f"2|{multi}{{answer_2}}",
        "single-math-v1-multi-turn": f"m2|{{ref_answer_1}}|{{ref_answer_2}}|{multi}{{answer_2}}",
    }
    rows = [{"name": name, "system_prompt": f"be {name}", "prompt_template": text} for name, text in prompts.items()]
    for name, content in {
        "question.jsonl": questions,
        "judge_prompts.jsonl": rows,
        "reference_answer/gpt-4.jsonl": references,
    }.items():
        (files / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return files


def test_two_turns_by_hand(directory: Path) -> None:
    """Ratings 8, 6.5, 10 and 1; `no idea` is left out, and so is the answer that has no room."""
    student, judge = Student(), Judge()
    evaluator = MTBench(str(directory), JUDGE, judge)
    evaluator.check_inputs(DATA, None)  # type: ignore[arg-type]
    found = evaluator.evaluate(STUDENT, DATA, lambda: student)
    assert student.temperatures == {"w1": 0.7, "w2": 0.7, "m1": 0.0, "m2": 0.0, "x1": 0.0}
    second = next(messages for messages in student.asked if messages[-1]["content"] == "w2")
    assert [(one["role"], one["content"]) for one in second] == [("user", "w1"), ("assistant", "w1!"), ("user", "w2")]
    assert [messages[-1]["content"] for messages in judge.asked] == [
        *("1|w1|w1!", "2|w1|w1!|w2|w2!"),
        *("m1|r1|m1|m1!", "m2|r1|r2|m1|m1!|m2|m2!"),
        "1|x1|x1!",
    ]
    assert judge.asked[0][0] == {"role": "system", "content": "be single-v1"}
    low, high = found.pop("mt_bench_low"), found.pop("mt_bench_high")
    assert 1 <= low < found["mt_bench"] < high <= 10
    assert found == {
        "mt_bench": (8 + 6.5 + 10 + 1) / 4,
        "mt_bench_turn_1": pytest.approx((8 + 10 + 1) / 3),
        "mt_bench_turn_2": 6.5,
        "mt_bench_writing": 7.25,
        "mt_bench_math": 10,
        "mt_bench_extraction": 1,
        "mt_bench_unparsed": 1,
        "mt_bench_unanswered": 1,
    }


def test_without_room(directory: Path) -> None:
    """Neither turn of such a question is judged; a student that has room for none is refused before and after."""

    class Narrow(Student):
        def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
            return messages[0]["content"] in self.fitting

        fitting: ClassVar = ("w1", "m1")

    class Full(Narrow):
        fitting: ClassVar = ()

    judge = Judge()
    found = MTBench(str(directory), JUDGE, judge).evaluate(STUDENT, DATA, Narrow)
    assert (len(judge.asked), found["mt_bench_unanswered"], found["mt_bench_unparsed"]) == (4, 2, 1)
    with pytest.raises(
        ValueError, match="leaves room for an answer of max_tokens 1024 in the student's context; lower"
    ):
        MTBench(str(directory), JUDGE, judge).evaluate(STUDENT, DATA, Full)
    assert len(judge.asked) == 4
    template = ChatTemplate(tiny_tokenizer(), context=50)
    with pytest.raises(ValueError, match="no prompt has room: the shortest of 3 takes"):
        MTBench(str(directory), JUDGE, judge).check_inputs(DATA, template)


def test_estimate(directory: Path, tmp_path: Path) -> None:
    """Two answers and two judgements to a question, less what is there."""
    evaluator = MTBench(str(directory), JUDGE, Judge(), Sampling(max_tokens=30), max_tokens=20)
    evaluator.directory = tmp_path / "kept"
    template = ChatTemplate(tiny_tokenizer())
    answers, judgements = evaluator.estimate(DATA, template, Student)
    assert (answers.what, answers.requests, answers.max_completion_tokens) == ("answers", 6, 6 * 20)
    assert (judgements.what, judgements.requests, judgements.max_completion_tokens) == ("judgements", 6, 6 * 30)
    assert 0 < answers.prompt_tokens < judgements.prompt_tokens
    evaluator.evaluate(STUDENT, DATA, Student)
    assert [work.requests for work in evaluator.estimate(DATA, template, Student)] == [0, 0]


def test_goes_on_after_a_kill(directory: Path, tmp_path: Path) -> None:
    class Dying(Judge):
        def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
            if self.asked:
                raise Killed
            return super().generate(requests, sampling)

    def evaluator(name: str, judge: Judge) -> MTBench:
        made = MTBench(str(directory), JUDGE, judge, questions_per_batch=2)
        made.directory = tmp_path / name
        return made

    expected = evaluator("whole", Judge()).evaluate(STUDENT, DATA, Student)
    with pytest.raises(Killed):
        evaluator("killed", Dying()).evaluate(STUDENT, DATA, Student)
    student, judge = Student(), Judge()
    assert evaluator("killed", judge).evaluate(STUDENT, DATA, lambda: student) == expected
    assert (len(student.asked), len(judge.asked)) == (0, 1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()}


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7),
        ("[[7.5]]", 7.5),
        ("not [[3]] but [[4]]", 4),
        ("<think>[[3]]</think>[[4]]", 4),
        ("<think>[[3]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[7]", None),
        ("[[rating]]", None),
        ("", None),
    ],
)
def test_ratings(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating


def test_files_that_do_not_fit(directory: Path) -> None:
    def said() -> str:
        with pytest.raises(ValueError, match=r"\w") as raised:
            MTBench(str(directory), JUDGE, Judge()).check_inputs(DATA, None)  # type: ignore[arg-type]
        return str(raised.value)

    (directory / "judge_prompts.jsonl").write_text('{"name": "a", "system_prompt": "", "prompt_template": ""}\n')
    assert "has no judge prompt single-v1, single-math-v1, single-v1-multi-turn, single-math" in said()
    (directory / "judge_prompts.jsonl").unlink()
    assert "no file" in said()
    (directory / "reference_answer" / "gpt-4.jsonl").unlink()
    assert "question 111 of" in said()
    assert "no reference_answer*.jsonl has an answer of two turns to it" in said()
    (directory / "question.jsonl").write_text('{"question_id": 1, "category": "writing"}\n')
    assert "question.jsonl, row 1: expected the fields question_id, category, turns" in said()


def test_a_judge_that_never_rates(directory: Path) -> None:
    class Silent(Judge):
        table: ClassVar = dict.fromkeys(Judge.table, "[[12]]")

    with pytest.raises(ValueError, match=r"the-judge gave no answer a rating \[\[1\]\] to \[\[10\]\] .*\[\[12\]\]"):
        MTBench(str(directory), JUDGE, Silent()).evaluate(STUDENT, DATA, Student)
