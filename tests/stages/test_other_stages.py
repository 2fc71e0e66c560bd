"""The small stages: recorded examples, pairs and evaluation; and training stages that have nothing to learn."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stage_runs import quiet_trainer, stage_context, write
from tiny_models import save_tiny_model, tiny_tokenizer

from callbacks import InfluenceProbeCallback
from montessori_pl import stages
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, PreferencePair, Rejection, Score, read_lines, read_records
from montessori_pl.evaluation import Evaluator, ExactMatch, ResponseLoss
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, save_weights
from montessori_pl.models.student import StudentModule
from montessori_pl.models.teacher import TeacherDPOModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.stages import (
    AlignTeacher,
    BuildPreferences,
    Evaluate,
    RecordedExamples,
    StageContext,
    StageError,
    TrainStudent,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def context(tmp_path: Path, backbone: str) -> Callable[..., StageContext]:
    """A context for a stage called `it`, with inputs and whatever else a test replaces."""

    def make(directory: Path = tmp_path / "iteration_1" / "it", **changes: Any) -> StageContext:
        settings: dict[str, Any] = {
            "student": lambda: StudentModule(backbone, lora=LoraSettings(r=2, alpha=4)),
            "teacher": lambda: TeacherDPOModule(backbone),
        }
        return stage_context(directory, **{**settings, **changes})

    return make


class TestRecordedExamples:
    def test_rows_become_examples_or_rejections(self, tmp_path: Path, context: Callable[..., StageContext]) -> None:
        source = tmp_path / "rows.jsonl"
        rows = [
            {"instruction": "q1", "output": "a1"},
            {"instruction": "q2", "input": "i", "output": "a2"},
            {"instruction": "q3", "output": " "},
            {"instruction": "q1", "output": "a1"},
        ]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        here = context()
        metrics = RecordedExamples(str(source)).run(here)
        examples = read_records(here.directory / "examples.jsonl", Example)
        assert [(example.instruction, example.response) for example in examples] == [("q1", "a1"), ("q2\ni", "a2")]
        rejections = read_records(here.directory / "rejections.jsonl", Rejection)
        assert {rejection.reason for rejection in rejections} == {"empty response", "duplicate"}
        assert metrics["accepted"] == 2
        assert metrics["rejected"] == {"empty response": 1, "duplicate": 1}
        assert metrics["diversity"]["distinct_rate"] == 1
        before = (here.directory / "examples.jsonl").read_bytes()
        assert RecordedExamples(str(source)).run(here) == metrics
        assert (here.directory / "examples.jsonl").read_bytes() == before

    def test_slices_and_missing_files(self, tmp_path: Path, context: Callable[..., StageContext]) -> None:
        source = tmp_path / "rows.jsonl"
        write(source, [Example(id=str(n), instruction=f"q{n}", response="a") for n in range(5)])
        assert RecordedExamples(f"{source}[1:3]").run(context())["accepted"] == 2
        with pytest.raises(FileNotFoundError, match=r"no file .*rowz\.jsonl; .* holds rows\.jsonl; correct the path"):
            RecordedExamples(str(tmp_path / "rowz.jsonl")).run(context())


class TestPair:
    @pytest.fixture
    def scored(self, tmp_path: Path) -> dict[str, Path]:
        """One prompt with three samples of values -1, 1 and 3, and a prompt with one sample."""
        values = {"a": -1.0, "b": 1.0, "c": 3.0, "d": 2.0}
        examples = [
            Example(
                id=id_,
                instruction=id_,
                response="r",
                prompt_id="q" if id_ == "d" else "p",
                prompt="ask q" if id_ == "d" else "ask p",
                completion=f"I write {id_}",
                completion_finished=id_ != "a",
            )
            for id_ in values
        ]
        scores = [
            Score(id=id_, value=value, standard_error=1.0, terms=(value - 2, value + 2))
            for id_, value in values.items()
        ]
        return {
            "examples": write(tmp_path / "data" / "examples.jsonl", examples),
            "scores": write(tmp_path / "influence" / "scores.jsonl", scores),
        }

    def test_best_against_worst(self, scored: dict[str, Path], context: Callable[..., StageContext]) -> None:
        """Margin 3 - -1 = 4."""
        here = context(inputs=scored)
        metrics = BuildPreferences("data", "influence", rule="best_worst").run(here)
        (pair,) = read_records(here.directory / "pairs.jsonl", PreferencePair)
        assert (pair.chosen, pair.rejected, pair.margin) == ("I write c", "I write a", 4.0)
        assert (pair.chosen_finished, pair.rejected_finished) == (True, False)
        assert pair.prompt == "ask p"
        assert metrics == {"prompts": 2, "pairs": 1, "prompts_with_pairs": 1, "mean_margin": 4.0}

    def test_each_positive_against_each_negative(
        self, scored: dict[str, Path], context: Callable[..., StageContext]
    ) -> None:
        """Margins 3 - -1 = 4 and 1 - -1 = 2, the largest first; one of them when one is asked for."""
        metrics = BuildPreferences("data", "influence").run(context(inputs=scored))
        assert (metrics["pairs"], metrics["mean_margin"]) == (2, 3.0)
        metrics = BuildPreferences("data", "influence", max_pairs_per_prompt=1).run(context(inputs=scored))
        assert (metrics["pairs"], metrics["mean_margin"]) == (1, 4.0)

    def test_pairs_weigh_by_their_margins_on_demand(
        self, scored: dict[str, Path], context: Callable[..., StageContext]
    ) -> None:
        """Margins 4 and 2, mean 3."""
        here = context(inputs=scored)
        for weights, expected in (("equal", [1.0, 1.0]), ("margin", [4 / 3, 2 / 3])):
            metrics = BuildPreferences("data", "influence", weights=weights).run(here)  # type: ignore[arg-type]
            pairs = read_records(here.directory / "pairs.jsonl", PreferencePair)
            assert [pair.weight for pair in pairs] == pytest.approx(expected)
            assert (metrics["pairs"], metrics["mean_margin"]) == (2, 3.0)

    def test_several_judges_are_averaged(
        self, tmp_path: Path, scored: dict[str, Path], context: Callable[..., StageContext]
    ) -> None:
        """Another judge, twice as sure and of another mind on `a`: what it puts last is the worst of both.

        Root mean squares sqrt(15 / 4) and sqrt(24 / 4) of (-1, 1, 3, 2) and (2, -2, 4, 0).
        """
        values = {"a": 2.0, "b": -2.0, "c": 4.0, "d": 0.0}
        other = write(tmp_path / "other" / "scores.jsonl", [Score(id=id_, value=v) for id_, v in values.items()])
        stage = BuildPreferences("data", ["influence", "other"], rule="best_worst")
        assert [(one.setting, one.name) for one in stage.reads()] == [
            ("examples", "data"),
            ("scores.influence", "influence"),
            ("scores.other", "other"),
        ]
        inputs = {"examples": scored["examples"], "scores.influence": scored["scores"], "scores.other": other}
        here = context(inputs=inputs)
        metrics = stage.run(here)
        (pair,) = read_records(here.directory / "pairs.jsonl", PreferencePair)
        assert (pair.chosen, pair.rejected) == ("I write c", "I write b")
        first, second = math.sqrt(15 / 4), math.sqrt(24 / 4)
        assert metrics["mean_margin"] == pytest.approx((3 / first + 4 / second) / 2 - (1 / first - 2 / second) / 2)

    def test_a_judge_that_says_nothing(
        self, tmp_path: Path, scored: dict[str, Path], context: Callable[..., StageContext]
    ) -> None:
        silent = write(tmp_path / "silent" / "scores.jsonl", [Score(id=id_, value=0.0) for id_ in "abcd"])
        inputs = {"examples": scored["examples"], "scores.influence": scored["scores"], "scores.silent": silent}
        with pytest.raises(StageError) as error:
            BuildPreferences("data", ["influence", "silent"]).run(context(inputs=inputs))
        assert str(error.value) == (
            "iteration_1/it, scores influence, silent: scores cannot be averaged with others when all of them are zero"
        )

    @pytest.mark.parametrize("scores", [[], ["influence", "influence"]])
    def test_judges_are_named_once(self, scores: list[str]) -> None:
        with pytest.raises(ValueError, match="scores must name at least one stage, and none twice"):
            BuildPreferences("data", scores)

    def test_a_share_is_a_share(self) -> None:
        with pytest.raises(ValueError, match="max_first_word_rate must be above 0 and at most 1, found 0"):
            BuildPreferences("data", "influence", max_first_word_rate=0.0)

    def test_noise_is_paired_over_reference_examples(
        self, scored: dict[str, Path], context: Callable[..., StageContext]
    ) -> None:
        """Terms of two examples differ by the same amount on every reference: the margins have no noise at all."""
        assert BuildPreferences("data", "influence", noise_margin=100.0).run(context(inputs=scored))["pairs"] == 2

    def test_where_terms_are_missing_standard_errors_count(
        self, tmp_path: Path, scored: dict[str, Path], context: Callable[..., StageContext]
    ) -> None:
        """Some scores are approximate, without terms: margins 4 and 2, errors sqrt(2); 2 is not clear of 2 errors."""
        values = {"a": -1.0, "b": 1.0, "c": 3.0}
        mixed = [
            Score(id=id_, value=value, standard_error=1.0, terms=() if id_ == "b" else (value - 2, value + 2))
            for id_, value in values.items()
        ]
        inputs = {**scored, "scores": write(tmp_path / "mixed" / "scores.jsonl", mixed)}
        metrics = BuildPreferences("data", "influence", noise_margin=2.0).run(context(inputs=inputs))
        assert (metrics["pairs"], metrics["mean_margin"]) == (1, 4.0)

    def test_control_draws_as_many_at_random(
        self, scored: dict[str, Path], context: Callable[..., StageContext]
    ) -> None:
        here = context(inputs=scored)
        metrics = BuildPreferences("data", "influence", at_random=True).run(here)
        assert metrics["pairs"] == 2
        assert BuildPreferences("data", "influence", at_random=True).run(context(inputs=scored)) == metrics

    def test_no_pair_is_said_with_what_was_there(self, tmp_path: Path, context: Callable[..., StageContext]) -> None:
        examples = [
            Example(id=str(n), instruction="q", response="r", prompt_id=str(n), completion="c") for n in range(3)
        ]
        inputs = {
            "examples": write(tmp_path / "data" / "examples.jsonl", examples),
            "scores": write(tmp_path / "influence" / "scores.jsonl", [Score(id=str(n), value=n) for n in range(3)]),
        }
        with pytest.raises(StageError) as error:
            BuildPreferences("data", "influence", rule="best_worst").run(context(inputs=inputs))
        assert str(error.value) == (
            "iteration_1/it found no pair in 3 prompts with 3 scored examples under rule 'best_worst' with "
            "noise_margin 0; pairs need two scored completions of one prompt that the rule tells apart: "
            "ask more samples of each prompt, or choose another rule"
        )

    def test_noise_margin_without_standard_errors(self, tmp_path: Path, context: Callable[..., StageContext]) -> None:
        """A signal that knows neither terms nor standard errors."""
        examples = [Example(id=n, instruction=n, response="r", prompt_id="p", completion=n) for n in "ab"]
        scores = [Score(id=id_, value=value, method="a judge") for id_, value in zip("ab", (1.0, -1.0), strict=True)]
        inputs = {
            "examples": write(tmp_path / "data" / "examples.jsonl", examples),
            "scores": write(tmp_path / "influence" / "scores.jsonl", scores),
        }
        with pytest.raises(
            ValueError, match=r"a noise margin needs standard errors, but the score of example a has none \(a"
        ):
            BuildPreferences("data", "influence", noise_margin=1.0).run(context(inputs=inputs))


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


class TestEvaluate:
    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSources:
        sets = {
            "reference": [("why?", "nobody knows."), ("is it?", "it is"), ("so", "a")],
            "test": [("who?", "me"), ("what?", "that is."), ("where?", "here"), ("when?", "now")],
        }
        for role, texts in sets.items():
            rows = [
                Example(id=f"{role}{n}", instruction=text, response=answer) for n, (text, answer) in enumerate(texts)
            ]
            write(tmp_path / "sets" / f"{role}.jsonl", rows)
        return DataSources("none", *(str(tmp_path / "sets" / f"{role}.jsonl") for role in sets))

    @pytest.fixture
    def trained(self, tmp_path: Path, backbone: str) -> Path:
        """A student that a stage has trained: here, an adapter with other weights."""
        student = StudentModule(backbone, lora=LoraSettings(r=2, alpha=4))
        student.configure_model()
        for parameter in student.optimized().values():
            parameter.data.add_(0.3)
        save_weights(student.network, tmp_path / "trained" / "weights")  # type: ignore[arg-type]
        return tmp_path / "trained"

    def test_each_student_by_each_evaluator(
        self, data: DataSources, trained: Path, backbone: str, context: Callable[..., StageContext]
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
        self, tmp_path: Path, backbone: str, context: Callable[..., StageContext]
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

    def test_batches_change_nothing(
        self, data: DataSources, backbone: str, context: Callable[..., StageContext]
    ) -> None:
        source, backend = ModelSource(backbone), context().backend
        one_by_one = ResponseLoss(batch_tokens=1).evaluate(source, data, backend)
        assert one_by_one == pytest.approx(ResponseLoss().evaluate(source, data, backend), rel=1e-5)

    def test_without_a_test_set_there_is_no_test_loss(
        self, data: DataSources, backbone: str, context: Callable[..., StageContext]
    ) -> None:
        metrics = ResponseLoss().evaluate(ModelSource(backbone), DataSources("none", data.reference), context().backend)
        assert metrics.keys() == {"reference_loss", "reference_loss_standard_error"}
        with pytest.raises(ValueError, match=r"data\.test is not set, and a stage of the recipe needs it"):
            ExactMatch().evaluate(ModelSource(backbone), DataSources("none", data.reference), context().backend)

    def test_results_are_kept_as_soon_as_they_are_there(
        self, data: DataSources, context: Callable[..., StageContext]
    ) -> None:
        """Done once, it is not done again; and it is written in the order of the students."""
        Counting.calls = 0
        here = context(data=data, inputs={"students.base": None})
        stage = Evaluate(["base"], [Counting()])
        assert stage.run(here) == {"students": {"base": {"calls": 1.0}}}
        assert stage.run(here) == {"students": {"base": {"calls": 1.0}}}
        assert Counting.calls == 1

    def test_answers_are_kept_by_student_and_evaluator(
        self, data: DataSources, trained: Path, context: Callable[..., StageContext]
    ) -> None:
        """As artifacts; two evaluators of a kind do not write over each other."""
        backend = Answers({"who?": "#### me", "what?": "that is.", "where?": "there", "when?": "now"})
        here = context(data=data, inputs={"students.base": None, "students.trained": trained}, backend=lambda: backend)
        stage = Evaluate(["base", "trained"], [ExactMatch(), ResponseLoss(), ExactMatch(answers="final")])
        stage.run(here)
        kept = sorted(path for pattern in stage.artifacts for path in here.directory.glob(pattern))
        assert [str(path.relative_to(here.directory)) for path in kept] == [
            *(f"base/{name}/answers.jsonl" for name in ("ExactMatch", "ExactMatch_2")),
            "evaluations.jsonl",
            *(f"trained/{name}/answers.jsonl" for name in ("ExactMatch", "ExactMatch_2")),
        ]
        right = [[row["right"] for row in read_lines(path)] for path in (kept[0], kept[1])]
        assert right == [[False, True, False, True], [True, True, False, True]]

    def test_responses_that_are_too_long(
        self, data: DataSources, backbone: str, context: Callable[..., StageContext]
    ) -> None:
        with pytest.raises(
            ValueError, match=r"data\.reference: none of the 3 examples has a response within max_length 2 tok"
        ):
            ResponseLoss(max_length=2).evaluate(ModelSource(backbone), data, context().backend)


def slow_losses(source: ModelSource, examples: Sequence[Example]) -> list[float]:
    """Transformers' own loss, one example at a time."""
    import torch

    model, chat_template = load_model(source), ChatTemplate(tiny_tokenizer())
    losses = []
    for example in examples:
        rendered = chat_template.render(example.messages())
        ids = torch.tensor([rendered.input_ids])
        labels = ids.masked_fill(~torch.tensor([rendered.completion_mask]), -100)
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    return losses


@pytest.mark.filterwarnings("ignore:.*custom batch sampler", "ignore:.*does not have many workers")
class TestAllWeights:
    """The warm-up may train an adapter and the last training the model itself, under one student section."""

    @pytest.fixture
    def trained(self, tmp_path: Path, context: Callable[..., StageContext]) -> Path:
        examples = [Example(id=str(n), instruction=f"why {n}?", response="it is so") for n in range(4)]
        directory = write(tmp_path / "data" / "examples.jsonl", examples)
        stage = TrainStudent("data", TrainingSettings(lr=1e-2, batch_size=2), all_weights=True)
        here = context(inputs={"examples": directory}, trainer=quiet_trainer)
        assert stage.run(here)["steps"] == 2
        return here.directory

    def test_the_model_itself_is_saved(self, trained: Path, backbone: str) -> None:
        assert not (trained / "weights" / "adapter_config.json").exists()
        before = load_model(ModelSource(backbone)).state_dict()
        after = load_model(ModelSource(backbone, trained / "weights")).state_dict()
        assert before.keys() == after.keys()
        assert sum(not before[name].equal(after[name]) for name in before) > len(before) // 2

    def test_influence_is_measured_on_what_was_trained(
        self, trained: Path, tmp_path: Path, context: Callable[..., StageContext]
    ) -> None:
        """The student section still names an adapter; the probe moves all weights, with their moments."""
        example = Example(id="1", instruction="so", response="a", prompt_id="p")
        moved: list[int] = []

        class Counting(InfluenceProbeCallback):
            def prepare(self, student: StudentModule, data: ScoringData) -> None:
                super().prepare(student, data)
                moved.append(len(student.optimized()))

        here = context(
            directory=tmp_path,
            inputs={"examples": write(tmp_path / "new" / "examples.jsonl", [example]), "student": trained},
            data=DataSources("none", str(write(tmp_path / "set" / "reference.jsonl", [example]) / "reference.jsonl")),
            trainer=quiet_trainer,
        )
        metrics = stages.Score("new", Counting(method="exact")).run(here)
        assert moved == [len(list(load_model(ModelSource(str(trained / "weights"))).parameters()))]
        assert metrics["mean"] > 0, "a step on the only reference lowers its loss"


class TestNothingToLearn:
    def test_student(self, tmp_path: Path, context: Callable[..., StageContext]) -> None:
        examples = [Example(id=str(n), instruction="a" * 30, response="b") for n in range(3)]
        directory = write(tmp_path / "data" / "examples.jsonl", examples)
        with pytest.raises(StageError) as error:
            TrainStudent("data", TrainingSettings(lr=1e-3, max_length=20)).run(context(inputs={"examples": directory}))
        assert str(error.value) == (
            f"iteration_1/it has nothing to learn: of 3 examples in {directory}, none has a response within "
            "max_length 20 tokens"
        )

    def test_instructions_that_nobody_has_answered(self, tmp_path: Path, context: Callable[..., StageContext]) -> None:
        """A student that learned them would learn to say nothing."""
        examples = [Example(id=str(n), instruction="ab", response="c" * n) for n in range(3)]
        directory = write(tmp_path / "data" / "examples.jsonl", examples)
        with pytest.raises(
            StageError, match="1 of 3 examples have no response; let a stage `GenerateResponses` answer them first"
        ):
            TrainStudent("data", TrainingSettings(lr=1e-3)).run(context(inputs={"examples": directory}))

    def test_teacher(self, tmp_path: Path, context: Callable[..., StageContext]) -> None:
        pair = PreferencePair(
            id="p", prompt="a" * 30, chosen="b", rejected="c", chosen_id="1", rejected_id="2", margin=1.0
        )
        directory = write(tmp_path / "pairs" / "pairs.jsonl", [pair])
        with pytest.raises(
            StageError, match=r"it has nothing to learn: of 1 pairs in .*, none fits within max_length 20"
        ):
            AlignTeacher("pairs", TrainingSettings(lr=1e-3, max_length=20)).run(
                context(inputs={"pairs": directory, "teacher": None})
            )
