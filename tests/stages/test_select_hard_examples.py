"""SelectHardExamples: answers from a table, losses of a tiny model, and scores that are written by hand."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import never, stage_context
from tiny_models import save_tiny_model, tiny_tokenizer

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, Record, Score, append_records, read_records
from montessori_pl.evaluation import ResponseLoss
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource, load_model
from montessori_pl.models.student import StudentModule
from montessori_pl.stages import SelectHardExamples, StageError
from montessori_pl.stages.select_hard_examples import Finding

QUESTIONS = {
    "what is 2 - 7 ?": "-5",
    "what is 2 + 3 ?": "5",
    "which city is it ?": "Paris",
    "what comes next ?": "the end",
}
ANSWERS = {
    "what is 2 - 7 ?": "5",
    "what is 2 + 3 ?": "5",
    "which city is it ?": " paris ",
    "what comes next ?": "nothing",
}


class Power(Exception):
    """The power is cut."""


@dataclasses.dataclass
class Answers(GenerationBackend):
    """Answers from a table, takes short prompts only, and fails at one call of `generate`."""

    table: dict[str, str]
    longest: int = 10_000
    fails_at: int | None = None
    asked: list[str] = dataclasses.field(default_factory=list)
    events: list[str] = dataclasses.field(default_factory=list)
    calls: int = 0

    def load(self, source: ModelSource) -> None:
        self.events.append(f"load {source.weights.parent.name if source.weights else 'base'}")

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return len(messages[0]["content"]) <= self.longest

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        assert sampling.temperature == 0
        self.calls += 1
        if self.calls == self.fails_at:
            raise Power
        asked = [request.messages[-1]["content"] for request in requests]
        self.asked += asked
        return [Completion(text=self.table[text], finished=True, num_tokens=2, num_prompt_tokens=3) for text in asked]

    def close(self) -> None:
        self.events.append("close")


@dataclasses.dataclass
class Desk:
    """Runs `SelectHardExamples` in one directory, on examples and scores that lie beside it."""

    root: Path
    backbone: str

    def put(self, stage: str, file: str, records: Sequence[Record]) -> None:
        """Records of an earlier stage."""
        (self.root / stage).mkdir(parents=True)
        append_records(self.root / stage / file, records)

    def run(self, stage: SelectHardExamples, backend: GenerationBackend | None = None, **inputs: Path | None) -> Any:
        """Run the stage, or go on with it."""
        paths = {"examples": self.root / "data", "student": None, "scores": self.root / "judge"}
        context = stage_context(
            self.directory,
            inputs={one.setting: {**paths, **inputs}[one.setting] for one in stage.reads()},
            student=lambda: StudentModule(self.backbone, lora=None),
            backend=(lambda: backend) if backend is not None else never,
        )
        return stage.run(context)

    @property
    def directory(self) -> Path:
        return self.root / "mistakes"

    @property
    def mistakes(self) -> list[Example]:
        return read_records(self.directory / "examples.jsonl", Example)

    @property
    def findings(self) -> list[Finding]:
        return read_records(self.directory / "findings.jsonl", Finding)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.directory.iterdir())}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def new_desk(tmp_path: Path, backbone: str) -> Callable[..., Desk]:
    """Makes desks of their own."""

    def make(name: str = "desk", questions: dict[str, str] = QUESTIONS) -> Desk:
        desk = Desk(tmp_path / name, backbone)
        pairs = enumerate(questions.items())
        desk.put("data", "examples.jsonl", [Example(id=f"q{n}", instruction=q, response=a) for n, (q, a) in pairs])
        return desk

    return make


class TestAnswers:
    def test_what_is_answered_otherwise_is_a_mistake(self, new_desk: Callable[..., Desk]) -> None:
        """Two of four: case and blanks do not count, and the sign of a number does."""
        desk, backend = new_desk(), Answers(ANSWERS)
        metrics = desk.run(SelectHardExamples("data"), backend)
        assert [mistake.id for mistake in desk.mistakes] == ["q0", "q3"]
        assert desk.mistakes == [
            one for one in read_records(desk.root / "data" / "examples.jsonl", Example) if one.id in ("q0", "q3")
        ], "examples are handed on as they are"
        assert desk.findings == [
            Finding(id=f"q{n}", mistake=n in (0, 3), answer=answer) for n, answer in enumerate(ANSWERS.values())
        ]
        assert metrics == {
            "looked_at": 4,
            "left_out": 0,
            "mistakes": 2,
            "shown": [
                {"instruction": "what is 2 - 7 ?", "response": "-5", "answer": "5"},
                {"instruction": "what comes next ?", "response": "the end", "answer": "nothing"},
            ],
            "accuracy": 0.5,
            "prompt_tokens": 12,
            "generated_tokens": 8,
        }
        assert backend.events == ["load base", "close"]

    def test_the_student_that_a_stage_has_trained(self, new_desk: Callable[..., Desk], tmp_path: Path) -> None:
        backend = Answers(ANSWERS)
        new_desk().run(SelectHardExamples("data", student="trained"), backend, student=tmp_path / "trained")
        assert backend.events == ["load trained", "close"]

    def test_a_student_without_a_mistake(self, new_desk: Callable[..., Desk]) -> None:
        """No error: the stage is empty, and says why."""
        desk = new_desk()
        metrics = desk.run(SelectHardExamples("data"), Answers(QUESTIONS))
        assert desk.mistakes == []
        assert (metrics["mistakes"], metrics["accuracy"], metrics["shown"]) == (0, 1.0, [])
        assert metrics["warnings"] == ["of 4 examples none is a mistake: there is nothing to augment"]

    def test_what_does_not_fit_is_left_out(self, new_desk: Callable[..., Desk]) -> None:
        """Two questions have 15 characters; one of them is answered wrong."""
        desk, backend = new_desk(), Answers(ANSWERS, longest=15)
        metrics = desk.run(SelectHardExamples("data"), backend)
        assert backend.asked == ["what is 2 - 7 ?", "what is 2 + 3 ?"]
        assert (metrics["looked_at"], metrics["left_out"], metrics["accuracy"]) == (2, 2, 0.5)

    @pytest.mark.parametrize("fails_at", [1, 2, 3])
    def test_killed_and_resumed(self, new_desk: Callable[..., Desk], fails_at: int) -> None:
        """Batches of two, of which what was not committed is done again; the bytes are those of an undisturbed run."""
        questions = {f"{text} ({n})": answer for n in range(2) for text, answer in QUESTIONS.items()}
        table = {question: ANSWERS[question[:-4]] for question in questions}
        straight, desk = new_desk("straight", questions), new_desk("killed", questions)
        stage = SelectHardExamples("data", examples_per_batch=3)
        expected = straight.run(stage, Answers(table))
        with pytest.raises(Power):
            desk.run(stage, Answers(table, fails_at=fails_at))
        with open(desk.directory / "findings.jsonl", "a") as file:
            file.write('{"id": "never committed')
        backend = Answers(table)
        assert desk.run(stage, backend) == expected
        assert backend.asked == list(questions)[3 * (fails_at - 1) :]
        assert desk.files() == straight.files()
        idle = Answers(table)
        assert desk.run(stage, idle) == expected
        assert (idle.asked, idle.events) == ([], []), "a finished stage loads no model"


SPOKEN = {
    "why is it so late in the day?": "nobody knows.",
    "is it?": "it is",
    "so": "a",
    "what is there to be seen?": "a bird and a fish",
}
"""For the tiny model, which knows letters only; not sorted by length."""


class TestLosses:
    def slow_losses(self, backbone: str) -> list[float]:
        """Transformers' own loss, one example at a time."""
        model, chat_template = load_model(ModelSource(backbone)), ChatTemplate(tiny_tokenizer())
        losses = []
        for question, answer in SPOKEN.items():
            rendered = chat_template.render(Example(id="-", instruction=question, response=answer).messages())
            ids = torch.tensor([rendered.input_ids])
            labels = ids.masked_fill(~torch.tensor([rendered.completion_mask]), -100)
            with torch.no_grad():
                losses.append(model(input_ids=ids, labels=labels).loss.item())
        return losses

    @pytest.mark.parametrize(("share", "number"), [(0.25, 1), (0.5, 2), (1.0, 4)])
    def test_the_share_with_the_highest_losses(
        self, new_desk: Callable[..., Desk], backbone: str, share: float, number: int
    ) -> None:
        desk = new_desk(questions=SPOKEN)
        metrics = desk.run(SelectHardExamples("data", by="loss", share=share))
        losses = self.slow_losses(backbone)
        assert [finding.value for finding in desk.findings] == pytest.approx(losses, rel=1e-5)
        highest = sorted(range(4), key=losses.__getitem__)[-number:]
        assert [mistake.id for mistake in desk.mistakes] == [f"q{n}" for n in sorted(highest)]
        assert metrics["mean_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
        assert "accuracy" not in metrics
        files = desk.files()
        assert desk.run(SelectHardExamples("data", by="loss", share=share)) == metrics
        assert desk.files() == files

    def test_losses_come_in_the_order_of_the_examples(self, backbone: str) -> None:
        """Batches are made by length."""
        examples = [Example(id=q, instruction=q, response=a) for q, a in SPOKEN.items()]
        for batch_tokens in (1, 60, 8192):
            losses = ResponseLoss(batch_tokens=batch_tokens).losses(ModelSource(backbone), examples)
            assert losses.tolist() == pytest.approx(self.slow_losses(backbone), rel=1e-5)

    def test_responses_that_do_not_fit_are_left_out(self, new_desk: Callable[..., Desk]) -> None:
        """The conversations begin with 31, 8, 4 and 27 tokens; within 20 two of them have a response."""
        desk = new_desk(questions=SPOKEN)
        metrics = desk.run(SelectHardExamples("data", by="loss", max_length=20))
        assert [finding.id for finding in desk.findings] == ["q1", "q2"]
        assert (metrics["looked_at"], metrics["left_out"], metrics["mistakes"]) == (2, 2, 1)


class TestScores:
    def test_what_scores_too_low_is_a_mistake(self, new_desk: Callable[..., Desk]) -> None:
        """Below 3, and not 3 itself; what nobody has scored is left out. No model is loaded."""
        desk = new_desk()
        scores = {"q0": 3.0, "q1": 2.5, "q3": -1.0, "another": 0.0}
        desk.put("judge", "scores.jsonl", [Score(id=id_, value=value) for id_, value in scores.items()])
        stage = SelectHardExamples("data", by="score", scores="judge", below=3.0)
        assert [(one.setting, one.name) for one in stage.reads()] == [("examples", "data"), ("scores", "judge")]
        metrics = desk.run(stage)
        assert [mistake.id for mistake in desk.mistakes] == ["q1", "q3"]
        assert (metrics["looked_at"], metrics["left_out"], metrics["mistakes"]) == (3, 1, 2)
        assert metrics["mean_score"] == pytest.approx(4.5 / 3)
        assert metrics["shown"][1] == {"instruction": "what comes next ?", "response": "the end", "value": -1.0}

    def test_scores_of_other_examples(self, new_desk: Callable[..., Desk]) -> None:
        desk = new_desk()
        desk.put("judge", "scores.jsonl", [Score(id="another", value=0.0)])
        with pytest.raises(StageError) as error:
            desk.run(SelectHardExamples("data", by="score", scores="judge", below=3.0))
        assert str(error.value) == (
            "iteration_1/mistakes: stage 'judge' has scored none of the 4 examples of stage 'data'; let it score that "
            "stage's examples"
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"by": "score"}, "found by score, scores None and below None"),
        ({"by": "score", "scores": "judge"}, "found by score, scores judge and below None"),
        ({"below": 1.0}, "found by exact_match, scores None and below 1.0"),
        ({"by": "loss", "share": 0.0}, "share: expected float > 0 and <= 1, found 0.0"),
        ({"examples_per_batch": 0}, "examples_per_batch: expected int >= 1, found 0"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^SelectHardExamples") as error:
        SelectHardExamples("data", **settings)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({}, ("student", "generation")),
        ({"by": "loss"}, ("student",)),
        ({"by": "score", "scores": "judged", "below": 3.0}, ()),
    ],
)
def test_only_answers_take_an_engine(settings: dict[str, Any], uses: tuple[str, ...]) -> None:
    """And scores not even the student."""
    assert SelectHardExamples("examples", **settings).uses == uses
