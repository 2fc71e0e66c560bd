"""Score: signals that need the student and signals that do not, examples that are too long, kills, and estimates."""

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_runs import Killed, quiet_trainer, write
from tiny_models import save_tiny_reward_model, tiny_tokenizer
from torch import Tensor, nn

from callbacks import (
    GradientCosineSignal,
    IFDSignal,
    InfluenceProbeCallback,
    JudgeSignal,
    RandomSignal,
    RankSurprisalSignal,
    RecordedQualitySignal,
    ResponseLengthSignal,
    RewardModelSignal,
    SolveRateSignal,
    TrainingLossSignal,
)
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Rejection, read_records
from montessori_pl.data.records import Score as ScoreRecord
from montessori_pl.generation import ClassroomJudge
from montessori_pl.models.loading import ModelSource, load_model
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.signals import Columns, ScoringData, SignalCallback
from montessori_pl.stages import ScoreExamples, StageContext, StageError, TrainStudent

# Lightning's advice on loaders, which the command line silences too.
pytestmark = pytest.mark.filterwarnings("ignore:.*custom batch sampler", "ignore:.*does not have many workers")

Context = Callable[..., StageContext]

POOL = [
    Example(id="short", instruction="so", response="it is", quality=0.5, prompt_id="p"),
    Example(id="cut", instruction="why", response="a" * 120, quality=0.25, prompt_id="p"),
    Example(id="long", instruction="b" * 100, response="c", quality=1.0, prompt_id="q"),
]
"""For a student of 96 positions: the response of the second is cut, and of the third's nothing is left."""

WITHOUT_STUDENT: dict[str, Callable[[str], SignalCallback]] = {
    "random": lambda reward_model: RandomSignal(),
    "length": lambda reward_model: ResponseLengthSignal("high"),
    "recorded quality": lambda reward_model: RecordedQualitySignal(),
    "reward model": lambda reward_model: RewardModelSignal(reward_model),
    "judge": lambda reward_model: JudgeSignal(
        judge=ModelSource("classroom/judge"), engine=ClassroomJudge(), max_same_rate=1, max_failed_rate=1
    ),
}
WITH_STUDENT: dict[str, Callable[[], SignalCallback]] = {
    "loss": lambda: TrainingLossSignal("low"),
    "ifd": IFDSignal,
    "rank surprisal": RankSurprisalSignal,
    "cosine": lambda: GradientCosineSignal(preconditioned=False),
    "influence": lambda: InfluenceProbeCallback(lr=1e-3),
}


class Poisoned(StudentModule):
    """Dies of being loaded."""

    def load(self) -> nn.Module:
        raise AssertionError("the student was loaded")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data" / "examples.jsonl", POOL)


@pytest.fixture
def reference(tmp_path: Path) -> DataSources:
    return DataSources("none", str(write(tmp_path / "set" / "reference.jsonl", POOL[:1]) / "reference.jsonl"))


def read_scores(context: StageContext) -> list[ScoreRecord]:
    return read_records(context.directory / "scores.jsonl", ScoreRecord)


@pytest.mark.parametrize("name", WITHOUT_STUDENT)
def test_what_looks_at_examples_alone_needs_no_student(
    name: str, data: Path, backbone: str, reward_model: str, context: Context
) -> None:
    """Neither a student nor a reference set is read, and each example is scored, however long."""
    here = context(inputs={"examples": data}, student=lambda: Poisoned(backbone), trainer=quiet_trainer)
    stage = ScoreExamples("data", WITHOUT_STUDENT[name](reward_model))
    metrics = stage.run(here)
    assert [one.setting for one in stage.reads()] == ["examples"]
    assert stage.uses == ("student",), "whose tokenizer makes the batches"
    assert [score.id for score in read_scores(here)] == ["short", "cut", "long"]
    assert metrics["left_out_as_too_long"] == 0
    assert metrics.keys().isdisjoint({"references", "references_left_out_as_too_long", "reference_loss"})


@pytest.mark.parametrize("name", WITH_STUDENT)
def test_what_looks_at_the_student_leaves_out_what_it_cannot_see(
    name: str, data: Path, reference: DataSources, backbone: str, context: Context
) -> None:
    settings: dict[str, Any] = {
        "inputs": {"examples": data, "student": None},
        "data": reference,
        "trainer": quiet_trainer,
    }
    with pytest.raises(AssertionError, match="the student was loaded"):
        ScoreExamples("data", WITH_STUDENT[name]()).run(context(student=lambda: Poisoned(backbone), **settings))
    here, stage = context(**settings), ScoreExamples("data", WITH_STUDENT[name]())
    metrics = stage.run(here)
    assert [one.setting for one in stage.reads()] == ["examples", "student"]
    assert stage.uses == ("student", "data", "trainer")
    assert [score.id for score in read_scores(here)] == ["short", "cut"]
    assert (metrics["left_out_as_too_long"], metrics["references"]) == (1, 1)
    assert metrics["reference_loss"] > 0


@pytest.mark.parametrize("max_length", [4, 1024])
def test_a_response_is_as_long_as_it_is(data: Path, context: Context, max_length: int) -> None:
    """A token for each character and one for the end, whatever the student sees of it."""
    here = context(inputs={"examples": data}, trainer=quiet_trainer)
    ScoreExamples("data", ResponseLengthSignal("high"), max_length=max_length).run(here)
    assert [score.value for score in read_scores(here)] == [6, 121, 2]


class Dying(RandomSignal):
    """Dies at its nth batch, and remembers what it has measured."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.batches = at, 0
        self.measured: list[str] = []

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        self.batches += 1
        if self.batches == self.at:
            raise Killed
        self.measured += [example.id for example in examples]
        return super().measure(student, examples, batch, losses)


def test_without_a_student_a_killed_run_goes_on_too(tmp_path: Path, backbone: str, context: Context) -> None:
    """Killed at each of three batches, of which the last is of what no student would see."""
    data = write(tmp_path / "data" / "examples.jsonl", [*POOL, Example(id="more", instruction="x", response="y")])

    def score(name: str, signal: SignalCallback) -> tuple[dict[str, Any], bytes]:
        here = context(
            tmp_path / name,
            key="iteration_1/it",
            inputs={"examples": data},
            student=lambda: Poisoned(backbone),
            trainer=quiet_trainer,
        )
        metrics = ScoreExamples("data", signal, batch_tokens=1).run(here)
        assert sorted(path.name for path in here.directory.iterdir()) == ["scores.jsonl", "signal.json"]
        return metrics, (here.directory / "scores.jsonl").read_bytes()

    whole = Dying(at=0)
    expected = score("whole", whole)
    assert (whole.batches, whole.measured) == (3, ["short", "cut", "more", "long"])
    for at in (1, 2, 3):
        killed, resumed = Dying(at=at), Dying(at=0)
        with pytest.raises(Killed):
            score(f"killed_{at}", killed)
        assert score(f"killed_{at}", resumed) == expected
        assert killed.measured + resumed.measured == whole.measured


def test_a_sample_is_of_whole_prompts_and_the_same_for_all_signals(tmp_path: Path, context: Context) -> None:
    """Pairs need several samples of a prompt, and a sum of signals needs the scores of both; more goes on from less."""
    examples = [
        Example(id=f"{prompt}-{n}", instruction=f"{prompt} {n}", response="a", prompt_id=f"prompt {prompt}")
        for n in range(4)
        for prompt in range(50)
    ]
    data = write(tmp_path / "data" / "examples.jsonl", examples)

    def scored(name: str, most: int, seed: int = 1) -> list[str]:
        here = context(
            tmp_path / name / str(most), key=f"iteration_1/{name}", inputs={"examples": data}, trainer=quiet_trainer
        )
        here = dataclasses.replace(here, seed=len(name), run_seed=seed)
        ScoreExamples("data", RandomSignal(), max_examples=most).run(here)
        return [score.id for score in read_scores(here)]

    some = scored("influence", 40)
    assert Counter(Counter(id_.split("-")[0] for id_ in some).values()) == {4: 10}
    assert some == [example.id for example in examples if example.id in some], "in their order"
    assert scored("judged", 40) == some
    assert set(scored("judged", 42)) > set(some)
    assert scored("influence_2", 40, seed=2) != some


class Confused(RandomSignal):
    """Says that it needs no student, and looks at one."""

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        student.network.eval()


def test_a_student_that_was_not_asked_for_is_not_there(data: Path, context: Context) -> None:
    with pytest.raises(ValueError, match="asks for the student's weights, and says by needs_student = False"):
        ScoreExamples("data", Confused()).run(context(inputs={"examples": data}, trainer=quiet_trainer))


def test_estimates_count_passes_of_the_student_only_where_it_makes_some(reward_model: str) -> None:
    """Three examples like these two, of 1 + 2 + 1 + 5 + 1 and of 1 + 3 + 1 + 1 + 1 tokens: 8.5 in the mean."""
    chat_template = ChatTemplate(tiny_tokenizer())
    examples = [POOL[0], Example(id="why", instruction="why", response="a")]
    scored = ScoringData(examples, [chat_template.render(example.messages()) for example in examples], [], pad_id=0)
    work = {
        name: [
            (one.what, one.tokens, one.max_tokens)
            for one in make(reward_model).estimate(2, 4, scored, chat_template).work
        ]
        for name, make in WITHOUT_STUDENT.items()
    }
    assert work == {
        "random": [],
        "length": [],
        "recorded quality": [],
        "reward model": [("rewards", 17, 34)],
        "judge": [("judgements", 0, 0)],
    }
    (loss,) = TrainingLossSignal("low").estimate(2, 4, scored, chat_template).work
    assert (loss.what, loss.tokens, loss.max_tokens) == ("scoring", 17, 34)


def test_influence_is_measured_on_what_was_trained(
    tmp_path: Path, data: Path, reference: DataSources, context: Context
) -> None:
    """The student section still names an adapter; the probe moves all weights, with their moments."""
    training = context(inputs={"examples": write(tmp_path / "few" / "examples.jsonl", POOL[:2])}, trainer=quiet_trainer)
    TrainStudent("few", TrainingSettings(lr=1e-2, batch_size=2), all_weights=True).run(training)
    moved: list[int] = []

    class Counting(InfluenceProbeCallback):
        def prepare(self, student: StudentModule, data: ScoringData) -> None:
            super().prepare(student, data)
            moved.append(len(student.optimized()))

    here = context(
        tmp_path / "scores",
        inputs={
            "examples": write(tmp_path / "new" / "examples.jsonl", POOL[:1]),
            "student": training.directory,
        },
        data=reference,
        trainer=quiet_trainer,
    )
    metrics = ScoreExamples("new", Counting(method="exact")).run(here)
    assert moved == [len(list(load_model(ModelSource(str(training.directory / "weights"))).parameters()))]
    assert metrics["mean"] > 0, "a step on the only reference lowers its loss"


class Sometimes(SignalCallback):
    """A number for the examples of these ids, and none for others."""

    needs_student = False

    def __init__(self, *ids: str) -> None:
        self.ids = ids

    def score(
        self, student: StudentModule, example: Example, batch: dict[str, Tensor], loss: Tensor
    ) -> ScoreRecord | Rejection:
        return ScoreRecord(id=example.id, value=1.0 if example.id in self.ids else math.inf, method="of a test")


@pytest.fixture
def scoring(backbone: str, reference: DataSources, tmp_path: Path, context: Context) -> Callable[..., StageContext]:
    """The context of a stage that scores these examples with the base."""

    def scoring(name: str, *examples: Example) -> StageContext:
        data = write(tmp_path / f"{name}-data" / "examples.jsonl", examples)
        return context(
            tmp_path / name,
            inputs={"examples": data, "student": None},
            student=lambda: StudentModule(backbone),
            data=reference,
            trainer=quiet_trainer,
        )

    return scoring


def test_instructions_without_a_response_are_not_scored_as_if_they_were_answered(scoring: Context) -> None:
    asked = [Example(id=f"asked-{n}", instruction="so", response="", prompt_id="p") for n in range(2)]
    for name, signal in (("student", TrainingLossSignal("low")), ("alone", ResponseLengthSignal("high"))):
        here = scoring(name, asked[0], POOL[0], asked[1])
        metrics = ScoreExamples("pool", signal).run(here)
        assert metrics["unscored"] == {"no response": 2}
        assert [one.id for one in read_scores(here)] == ["short"]
        unscored = read_records(here.directory / "unscored.jsonl", Rejection)
        assert [(one.id, one.prompt_id) for one in unscored] == [("asked-0", "p"), ("asked-1", "p")]
        assert ScoreExamples("pool", signal).run(here) == metrics, "once more, of what is finished"


def test_instructions_alone_are_scored_by_what_looks_at_no_response(scoring: Context) -> None:
    asked = dataclasses.replace(POOL[0], response="")
    with pytest.raises(StageError, match="TrainingLossSignal looks at responses, and none of 1 examples of pool has"):
        ScoreExamples("pool", TrainingLossSignal("low")).run(scoring("losses", asked))
    assert ScoreExamples("pool", RandomSignal()).run(scoring("random", asked))["count"] == 1
    assert not SolveRateSignal(against="majority").needs_response
    assert SolveRateSignal(against="response").needs_response


def test_scores_that_are_no_numbers(data: Path, backbone: str, context: Context) -> None:
    """One example without a number stays unscored; without any there is nothing to go on with."""
    here = context(inputs={"examples": data}, student=lambda: Poisoned(backbone), trainer=quiet_trainer)
    assert ScoreExamples("data", Sometimes("short", "long")).run(here)["unscored"] == {"score is no number": 1}
    (lost,) = read_records(here.directory / "unscored.jsonl", Rejection)
    assert (lost.id, lost.detail) == ("cut", "it is inf (of a test)")
    shutil.rmtree(here.directory)
    here.directory.mkdir()
    for _ in range(2):
        with pytest.raises(StageError, match="none of 3 scores is a number, for short it is inf"):
            ScoreExamples("data", Sometimes()).run(here)
