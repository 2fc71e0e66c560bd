"""Score: a signal says how good each example is for the student."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.batches.encoding import encode_examples
from montessori_pl.data.records import Example, Rejection, drop_torn_line, read_records
from montessori_pl.data.records import Score as ScoreRecord
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import ExpectedRecords, StageEstimate
from montessori_pl.evaluation.losses import ResponseLoss
from montessori_pl.models.loading import holds_adapter, load_chat_template
from montessori_pl.run_directory.atomic import write_json, write_records
from montessori_pl.signals.base import REPORT, SignalCallback
from montessori_pl.signals.scoring_data import ScoringData
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
from montessori_pl.stats.distribution import describe
from montessori_pl.synthesis.diversity import diversity

UNSCORED = "unscored.jsonl"
"""The examples that the signal could not score, with the reason; there is no such file where it scored all."""


class ScoreExamples(Stage):
    """Score examples with a signal, inside `Trainer.predict`, each process its share.

    Args:
        examples: the stage whose examples are scored.
        signal: the signal.
        student: the stage whose student the signal looks at; `latest`, or `base`.
        max_examples: score a random sample of so many; null scores all.
        max_length: longest conversation in tokens; longer ones are cut on the right, and left out if no response is
            left, also in the reference set.
        batch_tokens: tokens of one batch of examples, padding included; the examples of a prompt stay together.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.SCORES
    artifacts = (SCORES, UNSCORED, REPORT)
    uses = ("student", "data")
    distributed = True

    def __init__(
        self,
        examples: str,
        signal: SignalCallback,
        student: str = LATEST,
        max_examples: int | None = None,
        max_length: int = 1024,
        batch_tokens: int = 4096,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.signal, self.student = examples, signal, student
        self.max_examples, self.max_length, self.batch_tokens = max_examples, max_length, batch_tokens

    def reads(self) -> list[Input]:
        """The examples and the student."""
        return [Input("examples", self.examples, Kind.EXAMPLES), Input("student", self.student, Kind.STUDENT)]

    def check_environment(self) -> None:
        """What the signal needs."""
        self.signal.check_environment()

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """What the signal says that it will take."""
        given, chat_template = context.expected_input("examples"), load_chat_template(context.student().source)
        count, upper_bound = (min(number, self.max_examples or number) for number in (given.count, given.upper_bound))
        rendered, too_long = encode_examples(given.some(), chat_template, self.max_length)
        left_out = {example.id for example in too_long}
        examples = [example for example in given.some() if example.id not in left_out]
        reference, _ = encode_examples(context.data.read("reference"), chat_template, self.max_length)
        data = ScoringData(examples, rendered, reference, chat_template.tokenizer.pad_token_id, self.batch_tokens)
        expected_output = ExpectedRecords(
            count=count,
            upper_bound=upper_bound,
            prompts=given.prompts,
            instructions=min(count, given.instructions),
            samples=given.samples,
        )
        self.signal.requests = context.requests
        return dataclasses.replace(
            self.signal.estimate(count, upper_bound, data, chat_template), expected_output=expected_output
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Score what has not been scored, then put all scores in the order of the examples."""
        student = context.student()
        checkpoint = context.inputs["student"]
        if checkpoint is not None and not holds_adapter(checkpoint / WEIGHTS):
            student.train_all_weights()  # what the probe moves is what that stage has trained
        chat_template = load_chat_template(student.source)
        examples = context.examples("examples")
        if self.max_examples is not None and self.max_examples < len(examples):
            chosen = random.Random(context.seed).sample(range(len(examples)), self.max_examples)
            examples = [examples[index] for index in sorted(chosen)]
        _, too_long = encode_examples(examples, chat_template, self.max_length)
        left_out = {example.id for example in too_long}
        examples = [example for example in examples if example.id not in left_out]
        scored, unscored = _done(context.directory)
        context.progress.start(len(examples), len(scored) + len(unscored))

        reference = context.data.read("reference")
        references, too_long_references = encode_examples(reference, chat_template, self.max_length)
        if not references:
            raise StageError(
                f"{context.key}: none of the {len(too_long_references)} examples of the reference set has a response "
                f"within max_length {self.max_length} tokens and the model's context ({chat_template.context} tokens)"
            )
        trainer = context.trainer(callbacks=[self.signal], inference_mode=False)
        if len(scored) + len(unscored) < len(examples):
            rendered, _ = encode_examples(examples, chat_template, self.max_length)
            self.signal.output = context.directory / f"scores.part{trainer.global_rank}.jsonl"
            self.signal.unscored = context.directory / f"unscored.part{trainer.global_rank}.jsonl"
            self.signal.requests = context.requests
            for part in (self.signal.output, self.signal.unscored):
                drop_torn_line(part)
            trainer.predict(
                student,
                datamodule=ScoringData(
                    examples,
                    rendered,
                    references,
                    chat_template.tokenizer.pad_token_id,
                    self.batch_tokens,
                    scored.keys() | unscored.keys(),
                ),
                return_predictions=False,
                ckpt_path=str(checkpoint / CHECKPOINT) if checkpoint is not None else None,
            )
            if trainer.interrupted:
                raise KeyboardInterrupt
            trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return {}
        scored, unscored = _done(context.directory)
        scores = [scored[example.id] for example in examples if example.id not in unscored]
        without = [unscored[example.id] for example in examples if example.id in unscored]
        if without:
            write_records(context.directory / UNSCORED, without)
        # The last to be written: where it stands, the parts are not needed any more.
        write_records(context.directory / SCORES, scores)
        for part in context.directory.glob("*.part*.jsonl"):
            part.unlink()
        values = [score.value for score in scores]
        # Influence is measured on a student that has seen none of the examples: it can rise while they narrow, and
        # says nothing without how varied they are and how well the student does. Loaded anew, because a resumed run
        # that has all scores does not hold the student, and because the number is the evaluation's then.
        losses = ResponseLoss(max_length=self.max_length).losses(context.source(student, "student"), reference)
        context.log_distribution(f"{context.key}/score", values)
        report = self._report(context.directory / REPORT, scores, without)
        return {
            **({"signal": report} if report else {}),
            "left_out_as_too_long": len(too_long),
            "unscored": dict(Counter(one.reason for one in without).most_common()),
            "references": len(references),
            "references_left_out_as_too_long": len(too_long_references),
            **describe(values),
            **_ties(examples, scored),
            "diversity": diversity([example.instruction for example in examples]),
            "reference_loss": losses.mean().item(),
        }

    def _report(self, path: Path, scores: list[ScoreRecord], unscored: list[Rejection]) -> dict[str, Any]:
        """What the signal said before it began, with what it says about all scores, which is added to the file."""
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if summary := self.signal.summary(scores, unscored):
            report |= summary
            write_json(path, report)
        return report


def _done(directory: Path) -> tuple[dict[str, ScoreRecord], dict[str, Rejection]]:
    """All scores so far by example, and all examples without one, from the finished files or from the processes'."""
    finished = (directory / SCORES).exists()

    def paths(name: str) -> list[Path]:
        return sorted(directory.glob(name if finished else f"{Path(name).stem}.part*.jsonl"))

    scored = {score.id: score for path in paths(SCORES) for score in read_records(path, ScoreRecord)}
    unscored = {one.id: one for path in paths(UNSCORED) for one in read_records(path, Rejection)}
    # A batch that was cut short by a kill is scored again, and an engine that calls others may say something else then.
    return scored, {id_: one for id_, one in unscored.items() if id_ not in scored}


def _ties(examples: Sequence[Example], scored: Mapping[str, ScoreRecord]) -> dict[str, int]:
    """How many prompts have several scored samples, and for how many no pair can be made: their samples score alike."""
    values: dict[str, list[float]] = {}
    for example in examples:
        if example.prompt_id and example.id in scored:
            values.setdefault(example.prompt_id, []).append(scored[example.id].value)
    several = [samples for samples in values.values() if len(samples) > 1]
    return {"prompts_with_several": len(several), "tied_prompts": sum(len(set(samples)) == 1 for samples in several)}
