"""ScoreExamples: a signal says how good each example is for the student."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from montessori_pl.bounds import Count, PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, Rejection, drop_torn_line, stable_seed
from montessori_pl.data.records import Score as ScoreRecord
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import ExpectedRecords, StageEstimate
from montessori_pl.evaluation.losses import ResponseLoss
from montessori_pl.models.loading import holds_adapter, load_chat_template
from montessori_pl.models.student import StudentModule
from montessori_pl.run_directory.atomic import write_json
from montessori_pl.signals.base import NO_NUMBER, REPORT, UNANSWERED, SignalCallback
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.signals.unloaded_student import UnloadedStudent
from montessori_pl.stages.base import (
    CHECKPOINT,
    LATEST,
    SCORES,
    WEIGHTS,
    Input,
    Kind,
    Stage,
    StageContext,
    StageError,
)
from montessori_pl.stages.scoring.score_files import UNSCORED, ScoreFiles
from montessori_pl.stats.distribution import describe
from montessori_pl.stats.spread import spread
from montessori_pl.synthesis.diversity import diversity_metrics

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class ScoreExamples(Stage):
    """Score examples with a signal, inside `Trainer.predict`: each process its share, or the first all of them.

    A signal that needs no student scores every example, however long. Then no student is loaded, and no loss on the
    reference set is reported.

    Args:
        examples: the stage whose examples are scored.
        signal: the signal.
        student: the stage whose student the signal looks at; `latest`, or `base`. Not read where the signal needs none.
        max_examples: score so many, all samples of prompts that are drawn at random; null scores all. Stages that score
            the same examples draw the same prompts.
        max_length: longest conversation in tokens that the student sees; longer ones are cut on the right, and left out
            if no response is left, also in the reference set.
        batch_tokens: tokens of one batch of examples, padding included; the examples of a prompt stay together.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.SCORES
    artifacts = (SCORES, UNSCORED, REPORT)
    fingerprint_excludes = ("batch_tokens",)

    def __init__(
        self,
        examples: Text,
        signal: SignalCallback,
        student: Text = LATEST,
        max_examples: PositiveInt | None = None,
        max_length: Count = 1024,
        batch_tokens: PositiveInt = 4096,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.signal, self.student = examples, signal, student
        self.distributed = signal.distributed
        self.max_examples, self.max_length, self.batch_tokens = max_examples, max_length, batch_tokens
        # The student's tokenizer makes the batches of every signal.
        self.uses = ("student", "data", "trainer") if signal.needs_student else ("student",)

    def reads(self) -> list[Input]:
        """The examples, and the student where the signal needs one."""
        student = [Input("student", self.student, Kind.STUDENT)] if self.signal.needs_student else []
        return [Input("examples", self.examples, Kind.EXAMPLES), *student]

    def check_environment(self) -> None:
        """What the signal needs."""
        self.signal.check_environment()

    def check_inputs(self, context: EstimateContext) -> None:
        """Whether any reference has room in the student, and anything in what else the signal asks."""
        chat_template = context.student_template()
        references = self._references(context, chat_template)
        self._refuse_no_reference(f"recipe.{context.name}", references, chat_template)
        self.signal.check_inputs(chat_template)

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """What the signal says that it will take."""
        given, chat_template = context.expected_input("examples"), context.student_template()
        count, upper_bound = (min(number, self.max_examples or number) for number in (given.count, given.upper_bound))
        data = self._scoring_data(
            self._encode(given.some(), chat_template), self._references(context, chat_template), chat_template
        )
        expected_output = ExpectedRecords(
            count=count,
            upper_bound=upper_bound,
            prompts=given.prompts if count == given.count else -(-given.prompts * count // given.count),
            instructions=min(count, given.instructions),
            samples=given.samples,
        )
        self.signal.requests = context.requests
        return dataclasses.replace(
            self.signal.estimate(count, upper_bound, data, chat_template), expected_output=expected_output
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Score what has not been scored, then put all scores in the order of the examples."""
        student, files = self._student(context), ScoreFiles(context.directory)
        chat_template = load_chat_template(student.source)
        answered, unanswered = self._answered(context)
        examples = self._encode(answered, chat_template)
        references = self._references(context, chat_template)
        self._refuse_no_reference(context.key, references, chat_template)
        trainer = context.trainer(callbacks=[self.signal], inference_mode=False)
        data = self._scoring_data(examples, references, chat_template, files.done())
        self._score_rest(context, trainer, student, data)
        if not trainer.is_global_zero:
            return {}
        scores, unscored = files.finish(examples.examples, unanswered)
        _refuse_no_numbers(context.key, scores, unscored)
        return self._metrics(context, student, examples, references, scores, unscored, unanswered)

    def _student(self, context: StageContext) -> StudentModule:
        """The student with which the trainer predicts; without weights where the signal needs none."""
        student = context.student()
        if not self.signal.needs_student:
            return UnloadedStudent(student)
        trained = context.inputs["student"]
        if trained is not None and not holds_adapter(trained / WEIGHTS):
            student.train_all_weights()  # what the probe moves is what that stage has trained
        return student

    def _chosen(self, context: StageContext) -> list[Example]:
        """The examples that are to be scored in their order: all, or those of prompts that are drawn at random."""
        examples = context.examples("examples")
        if self.max_examples is None or self.max_examples >= len(examples):
            return examples
        order = sorted({_group(example) for example in examples})
        # What several signals score must be the same examples, whatever their stages are called.
        random.Random(stable_seed(context.run_seed, context.iteration, self.examples)).shuffle(order)
        rank = {group: place for place, group in enumerate(order)}
        chosen = sorted(range(len(examples)), key=lambda place: rank[_group(examples[place])])[: self.max_examples]
        return [examples[place] for place in sorted(chosen)]

    def _answered(self, context: StageContext) -> tuple[list[Example], list[Rejection]]:
        """The examples about which the signal is asked, and those that lack the response at which it looks."""
        chosen = self._chosen(context)
        if not self.signal.needs_response:
            return chosen, []
        answered = [example for example in chosen if example.response]
        if chosen and not answered:
            raise StageError(
                f"{context.key}: {type(self.signal).__name__} looks at responses, and none of {len(chosen)} examples "
                f"of {self.examples} has one; let a stage `GenerateResponses` answer them first"
            )
        return answered, [_without_response(example) for example in chosen if not example.response]

    def _references(self, context: StageContext | EstimateContext, chat_template: ChatTemplate) -> "_Encoded":
        """The reference set as the student sees it; empty where the signal needs no student."""
        return self._encode(context.data.read("reference") if self.signal.needs_student else [], chat_template)

    def _encode(self, examples: Sequence[Example], chat_template: ChatTemplate) -> "_Encoded":
        """Examples as the student sees them; it is not asked about those of whose response it sees nothing."""
        rendered = [chat_template.render_example(example, self.max_length).compact() for example in examples]
        kept = [
            place for place, one in enumerate(rendered) if any(one.completion_mask) or not self.signal.needs_student
        ]
        return _Encoded(
            examples=[examples[place] for place in kept],
            rendered=[rendered[place] for place in kept],
            too_long=len(examples) - len(kept),
        )

    def _refuse_no_reference(self, key: str, references: "_Encoded", chat_template: ChatTemplate) -> None:
        if self.signal.needs_student and not references.examples:
            raise StageError(
                f"{key}: none of the {references.too_long} examples of the reference set has a response "
                f"within max_length {self.max_length} tokens and the model's context ({chat_template.context} tokens)"
            )

    def _scoring_data(
        self, examples: "_Encoded", references: "_Encoded", chat_template: ChatTemplate, done: Collection[str] = ()
    ) -> ScoringData:
        """What the trainer predicts on, in batches, without those that are done."""
        pad_id = chat_template.tokenizer.pad_token_id
        return ScoringData(
            examples.examples, examples.rendered, references.rendered, pad_id, self.batch_tokens, scored=done
        )

    def _score_rest(self, context: StageContext, trainer: "Trainer", student: StudentModule, data: ScoringData) -> None:
        """Let this process score its share of what has not been scored, and wait for the others."""
        context.progress.start(len(data.items), len(data.scored))
        if len(data.scored) >= len(data.items):
            return
        files, rank = ScoreFiles(context.directory), trainer.global_rank
        self.signal.output, self.signal.unscored = files.part(SCORES, rank), files.part(UNSCORED, rank)
        self.signal.directory = context.directory
        self.signal.requests = context.requests
        for part in (self.signal.output, self.signal.unscored):
            drop_torn_line(part)
        trained = context.inputs["student"] if self.signal.needs_student else None
        trainer.predict(
            student,
            datamodule=data,
            return_predictions=False,
            ckpt_path=str(trained / CHECKPOINT) if trained is not None else None,
        )
        trainer.strategy.barrier()

    def _metrics(
        self,
        context: StageContext,
        student: StudentModule,
        examples: "_Encoded",
        references: "_Encoded",
        scores: Sequence[ScoreRecord],
        unscored: Sequence[Rejection],
        unanswered: Sequence[Rejection],
    ) -> dict[str, Any]:
        """What the signal says of all scores, how they are distributed, and on what they were measured."""
        values = [score.value for score in scores]
        reference_loss = self._reference_loss(context, student, references)
        context.log_distribution(f"{context.key}/score", values)
        report = self._report(context.directory / REPORT, scores, unscored)
        warnings = report.pop("warnings", [])
        return {
            **({"signal": report} if report else {}),
            **({"warnings": warnings} if warnings else {}),
            "left_out_as_too_long": examples.too_long,
            "unscored": dict(Counter(one.reason for one in [*unanswered, *unscored]).most_common()),
            **self._counted(references),
            **describe(values),
            **_ties(examples.examples, scores),
            **diversity_metrics(examples.examples),
            **reference_loss,
        }

    def _counted(self, references: "_Encoded") -> dict[str, int]:
        """How many references there were, where the signal needs any."""
        if not self.signal.needs_student:
            return {}
        return {"references": len(references.examples), "references_left_out_as_too_long": references.too_long}

    def _reference_loss(
        self, context: StageContext, student: StudentModule, references: "_Encoded"
    ) -> dict[str, float]:
        """The student's loss on the reference set, where the signal needs a student.

        Influence is measured on a student that has seen none of the examples: it can rise while they narrow, and says
        nothing without how varied they are and how well the student does. Loaded anew, because a resumed run that has
        all scores does not hold the student, and because the number is the evaluation's then.
        """
        if not self.signal.needs_student:
            return {}
        evaluator = ResponseLoss(max_length=self.max_length)
        losses = evaluator.losses(context.source(student, "student"), references.examples)
        return {"reference_loss": losses.mean().item()}

    def _report(self, path: Path, scores: Sequence[ScoreRecord], unscored: Sequence[Rejection]) -> dict[str, Any]:
        """What the signal said before it began, with what it says about all scores, which is added to the file."""
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if summary := self.signal.summary(scores, unscored):
            report |= summary
            write_json(path, report)
        return report


def _without_response(example: Example) -> Rejection:
    return Rejection(
        id=example.id,
        reason=UNANSWERED,
        detail="the signal looks at the response",
        text=example.instruction,
        prompt_id=example.prompt_id,
    )


def _group(example: Example) -> str:
    """What is drawn: the prompt that the example answers, or itself where nothing was asked."""
    return example.prompt_id or example.id


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Examples with their tokens."""

    examples: Sequence[Example]
    """In their order."""
    rendered: Sequence[Rendered]
    """The same as the student sees them."""
    too_long: int
    """How many more there were, which are left out."""


def _refuse_no_numbers(key: str, scores: Sequence[ScoreRecord], unscored: Sequence[Rejection]) -> None:
    """Stop where what was scored has no number: of a student that has diverged, or by far too long a step."""
    lost = [one for one in unscored if one.reason == NO_NUMBER]
    if lost and not scores:
        raise StageError(
            f"{key}: none of {len(lost)} scores is a number, for {lost[0].id} {lost[0].detail}; look whether the "
            "student's training diverged, and, of a signal that takes steps, whether its lr is far too high"
        )


def _ties(examples: Sequence[Example], scores: Sequence[ScoreRecord]) -> dict[str, int]:
    """How many prompts have several scored samples, and for how many no pair can be made: their samples score alike."""
    value = {score.id: score.value for score in scores}
    values: dict[str, list[float]] = {}
    for example in examples:
        if example.prompt_id and example.id in value:
            values.setdefault(example.prompt_id, []).append(value[example.id])
    several = [samples for samples in values.values() if len(samples) > 1]
    return {"prompts_with_several": len(several), "tied_prompts": sum(not spread(samples) for samples in several)}
