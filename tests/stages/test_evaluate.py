"""Evaluate: each student by each evaluator, against slow losses and answers from a table."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from stage_runs import write
from tiny_models import tiny_tokenizer

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, read_lines
from montessori_pl.evaluation import Evaluator, ExactMatch, ResponseLoss
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, save_weights
from montessori_pl.models.student import StudentModule
from montessori_pl.stages import Evaluate, StageContext, StageError


class Answers(GenerationBackend):
    """Answers from a table."""

    def __init__(self, table: dict[str, str]) -> None:
        self.table = table
        self.loaded: list[ModelSource] = []

    def load(self, source: ModelSource) -> None:
        self.loaded.append(source)

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        assert sampling.temperature == 0
        texts = [self.table[request.messages[-1]["content"]] for request in requests]
        return [Completion(text=text, finished=True, num_tokens=1) for text in texts]

    def close(self) -> None:
        pass


class Counting(Evaluator):
    """Says how often it was asked."""

    calls = 0

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        type(self).calls += 1
        return {"calls": float(self.calls)}


@pytest.fixture
def data(tmp_path: Path) -> DataSources:
    sets = {
        "reference": [("why?", "nobody knows."), ("is it?", "it is"), ("so", "a")],
        "test": [("who?", "me"), ("what?", "that is."), ("where?", "here"), ("when?", "now")],
    }
    for role, texts in sets.items():
        rows = [Example(id=f"{role}{n}", instruction=text, response=answer) for n, (text, answer) in enumerate(texts)]
        write(tmp_path / "sets" / f"{role}.jsonl", rows)
    return DataSources("none", *(str(tmp_path / "sets" / f"{role}.jsonl") for role in sets))


@pytest.fixture
def trained(tmp_path: Path, backbone: str) -> Path:
    """A student that a stage has trained: here, an adapter with other weights."""
    student = StudentModule(backbone, lora=LoraSettings(r=2, alpha=4))
    student.configure_model()
    for parameter in student.optimized().values():
        parameter.data.add_(0.3)
    save_weights(student.network, tmp_path / "trained" / "weights")  # type: ignore[arg-type]
    return tmp_path / "trained"


def test_each_student_by_each_evaluator(
    data: DataSources, trained: Path, backbone: str, context: Callable[..., StageContext]
) -> None:
    """Accuracy by hand: three of four answers agree but for case and blanks: .75 +- sqrt(.75 * .25 / 4) = .2165."""
    backend = Answers({"who?": "me", "what?": " THAT is. ", "where?": "there", "when?": "now"})
    here = context(data=data, inputs={"students.base": None, "students.trained": trained}, backend=lambda: backend)
    stage = Evaluate(["base", "trained"], [ResponseLoss(), ExactMatch(max_tokens=8)])
    assert [(one.setting, one.name) for one in stage.reads()] == [
        ("students.base", "base"),
        ("students.trained", "trained"),
    ]
    students = stage.run(here)["students"]
    assert list(students) == ["base", "trained"]
    assert [source.weights for source in backend.loaded] == [None, trained / "weights"]
    for metrics in students.values():
        assert metrics["accuracy"] == 0.75
        assert metrics["accuracy_standard_error"] == pytest.approx(0.2165, abs=1e-4)
    for name, weights in (("base", None), ("trained", trained / "weights")):
        for role in ("reference", "test"):
            losses = slow_losses(ModelSource(backbone, weights), data.read(role))
            mean = sum(losses) / len(losses)
            spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1))
            assert students[name][f"{role}_loss"] == pytest.approx(mean, rel=1e-5)
            error = students[name][f"{role}_loss_standard_error"]
            assert error == pytest.approx(spread / math.sqrt(len(losses)), rel=1e-4)
    assert students["base"]["test_loss"] != students["trained"]["test_loss"]


def test_final_answers_are_compared_as_numbers(
    tmp_path: Path, backbone: str, context: Callable[..., StageContext]
) -> None:
    rows = [("who?", "so\n#### 1,000"), ("what?", "so\n#### -5"), ("where?", "here")]
    write(
        tmp_path / "test.jsonl",
        [Example(id=question, instruction=question, response=answer) for question, answer in rows],
    )
    data = DataSources("none", "none", str(tmp_path / "test.jsonl"))
    backend = Answers({"who?": "it is 1000", "what?": "#### 5", "where?": "Here"})
    for answers, accuracy in (("text", 1 / 3), ("final", 2 / 3)):
        metrics = ExactMatch(answers=answers).evaluate(ModelSource(backbone), data, lambda: backend)
        assert metrics["accuracy"] == pytest.approx(accuracy)


def test_batches_change_nothing(data: DataSources, backbone: str, context: Callable[..., StageContext]) -> None:
    source, backend = ModelSource(backbone), context().backend
    one_by_one = ResponseLoss(batch_tokens=1).evaluate(source, data, backend)
    assert one_by_one == pytest.approx(ResponseLoss().evaluate(source, data, backend), rel=1e-5)


def test_without_a_test_set_there_is_no_test_loss(
    data: DataSources, backbone: str, context: Callable[..., StageContext]
) -> None:
    metrics = ResponseLoss().evaluate(ModelSource(backbone), DataSources("none", data.reference), context().backend)
    assert metrics.keys() == {"reference_loss", "reference_loss_standard_error"}
    with pytest.raises(ValueError, match=r"data\.test is not set, and a stage of the recipe needs it"):
        ExactMatch().evaluate(ModelSource(backbone), DataSources("none", data.reference), context().backend)


def test_results_are_kept_as_soon_as_they_are_there(data: DataSources, context: Callable[..., StageContext]) -> None:
    """Done once, it is not done again; and it is written in the order of the students."""
    Counting.calls = 0
    here = context(data=data, inputs={"students.base": None})
    stage = Evaluate(["base"], [Counting()])
    assert stage.run(here) == {"students": {"base": {"calls": 1.0}}}
    assert stage.run(here) == {"students": {"base": {"calls": 1.0}}}
    assert Counting.calls == 1


def test_answers_are_kept_by_student_and_evaluator(
    data: DataSources, trained: Path, context: Callable[..., StageContext]
) -> None:
    """As artifacts; two evaluators of a kind do not write over each other, nor do their numbers."""
    backend = Answers({"who?": "#### me", "what?": "that is.", "where?": "there", "when?": "now"})
    here = context(data=data, inputs={"students.base": None, "students.trained": trained}, backend=lambda: backend)
    stage = Evaluate(["base", "trained"], [ExactMatch(), ResponseLoss(), ExactMatch(answers="final")])
    numbers = stage.run(here)["students"]
    assert {name: (one["accuracy"], one["ExactMatch_2_accuracy"]) for name, one in numbers.items()} == {
        "base": (0.5, 0.75),
        "trained": (0.5, 0.75),
    }
    kept = sorted(path for pattern in stage.artifacts for path in here.directory.glob(pattern))
    assert [str(path.relative_to(here.directory)) for path in kept] == [
        *(f"base/{name}/answers.jsonl" for name in ("ExactMatch", "ExactMatch_2")),
        "evaluations.jsonl",
        *(f"trained/{name}/answers.jsonl" for name in ("ExactMatch", "ExactMatch_2")),
    ]
    right = [[row["right"] for row in read_lines(path)] for path in (kept[0], kept[1])]
    assert right == [[False, True, False, True], [True, True, False, True]]


class Beside(Evaluator):
    """Says whose weights are compared."""

    artifacts = ("found.txt",)

    def other_students(self) -> list[str]:
        return ["base", "trained"]

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        return {f"beside_{name}": float(one.weights == student.weights) for name, one in self.other_sources.items()}


def test_an_evaluator_may_compare_students(
    data: DataSources, trained: Path, context: Callable[..., StageContext]
) -> None:
    stage = Evaluate(["trained"], [Beside(), ResponseLoss(), Beside()])
    assert [(one.setting, one.name) for one in stage.reads()] == [
        ("students.trained", "trained"),
        ("evaluators.base", "base"),
        ("evaluators.trained", "trained"),
    ]
    assert stage.artifacts == ("evaluations.jsonl", "*/*/found.txt", "*/*/answers.jsonl")
    inputs = {"students.trained": trained, "evaluators.base": None, "evaluators.trained": trained}
    found = Evaluate(["trained"], [Beside()]).run(context(data=data, inputs=inputs))
    assert found["students"]["trained"] == {"beside_base": 0.0, "beside_trained": 1.0}


def test_responses_that_are_too_long(data: DataSources, backbone: str, context: Callable[..., StageContext]) -> None:
    with pytest.raises(
        ValueError, match=r"data\.reference: none of the 3 examples has a response within max_length 2 tok"
    ):
        ResponseLoss(max_length=2).evaluate(ModelSource(backbone), data, context().backend)


def slow_losses(source: ModelSource, examples: Sequence[Example]) -> list[float]:
    """Transformers' own loss, one example at a time."""

    model, chat_template = load_model(source), ChatTemplate(tiny_tokenizer())
    losses = []
    for example in examples:
        rendered = chat_template.render(example.messages())
        ids = torch.tensor([rendered.input_ids])
        labels = ids.masked_fill(~torch.tensor([rendered.completion_mask]), -100)
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    return losses


class Told(Evaluator):
    """Says what it was told of each student."""

    generates = False

    def __init__(self, **students: dict[str, float]) -> None:
        self.students = students

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        return self.students["trained" if student.weights else "base"]


@pytest.mark.parametrize(
    ("loss", "warned"),
    [(1.4, False), (1.6, True)],  # two standard errors of a difference are 2 sqrt(.15^2 + .2^2) = .5
)
def test_a_student_that_is_worse_than_the_base_is_warned_of(
    loss: float, warned: bool, trained: Path, data: DataSources, context: Callable[..., StageContext]
) -> None:
    base = {"test_loss": 1.0, "test_loss_standard_error": 0.15}
    told = Told(base=base, trained={"test_loss": loss, "test_loss_standard_error": 0.2})
    here = context(data=data, inputs={"students.base": None, "students.trained": trained})
    assert Evaluate(["base", "trained"], [told]).run(here).get("warnings", []) == (
        [
            f"the student 'trained' is worse than it was before training: its loss on the test set is {loss}, and that "
            "of the base 1"
        ]
        if warned
        else []
    )


def test_all_numbers_of_a_second_evaluator_are_told_apart(
    trained: Path, data: DataSources, context: Callable[..., StageContext]
) -> None:
    """Also those that the first one has of another student alone, or not at all."""
    first = Told(base={"rate": 1.0, "rate_low": 0.9}, trained={"rate": 2.0})
    second = Told(base={"rate": 3.0, "rate_low": 2.9}, trained={"rate": 4.0, "rate_low": 3.9, "left_out": 1.0})
    other = Told(base={"score": 5.0}, trained={"score": 6.0})
    here = context(data=data, inputs={"students.base": None, "students.trained": trained})
    assert Evaluate(["base", "trained"], [first, second, other]).run(here)["students"] == {
        "base": {"rate": 1.0, "rate_low": 0.9, "Told_2_rate": 3.0, "Told_2_rate_low": 2.9, "score": 5.0},
        "trained": {
            "rate": 2.0,
            "Told_2_rate": 4.0,
            "Told_2_rate_low": 3.9,
            "Told_2_left_out": 1.0,
            "score": 6.0,
        },
    }


def test_numbers_that_are_none_stop_the_stage(data: DataSources, context: Callable[..., StageContext]) -> None:
    here = context(data=data, inputs={"students.base": None})
    told = Told(base={"test_loss": 1.0, "reference_loss": 1.0})
    told.students["base"]["test_loss"] = math.nan
    with pytest.raises(StageError, match=r"Told finds no finite test_loss for the student 'base'; its training"):
        Evaluate(["base"], [told]).run(here)
    assert not list(read_lines(here.directory / "evaluations.jsonl"))


def test_one_example_has_no_standard_error(data: DataSources, backbone: str) -> None:
    one = DataSources("none", f"{data.reference}[:1]")
    assert ResponseLoss().evaluate(ModelSource(backbone), one, lambda: Answers({})).keys() == {"reference_loss"}
