"""Score: a signal says how good each example is for the student."""

import json
import random
from pathlib import Path
from typing import Any

from montessori_pl.data import encode_examples
from montessori_pl.distributions import describe
from montessori_pl.evaluation.losses import ResponseLoss
from montessori_pl.models import holds_adapter, load_chat
from montessori_pl.records import Example, drop_torn_line, read_records
from montessori_pl.records import Score as ScoreRecord
from montessori_pl.signals import REPORT, ScoringData, SignalCallback
from montessori_pl.stages.base import CHECKPOINT, LATEST, WEIGHTS, Input, Kind, Stage, StageContext, StageError
from montessori_pl.synthesis.diversity import diversity
from montessori_pl.workspace import write_atomically

SCORES = "scores.jsonl"


class Score(Stage):
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
    artifacts = (SCORES, REPORT)
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

    def run(self, context: StageContext) -> dict[str, Any]:
        """Score what has not been scored, then put all scores in the order of the examples."""
        directory = context.inputs["examples"]
        assert directory is not None
        student = context.student()
        checkpoint = context.inputs["student"]
        if checkpoint is not None and not holds_adapter(checkpoint / WEIGHTS):
            student.train_all_weights()  # what the probe moves is what that stage has trained
        chat = load_chat(student.source)
        examples = read_records(directory / "examples.jsonl", Example)
        if self.max_examples is not None and self.max_examples < len(examples):
            chosen = random.Random(context.seed).sample(range(len(examples)), self.max_examples)
            examples = [examples[index] for index in sorted(chosen)]
        _, too_long = encode_examples(examples, chat, self.max_length)
        left_out = {example.id for example in too_long}
        examples = [example for example in examples if example.id not in left_out]
        scored = _scored(context.directory)
        context.progress.start(len(examples), len(scored))

        reference = context.data.read("reference")
        references, too_long_references = encode_examples(reference, chat, self.max_length)
        if not references:
            raise StageError(
                f"{context.key}: none of the {len(too_long_references)} examples of the reference set has a response "
                f"within max_length {self.max_length} tokens and the model's context ({chat.context} tokens)"
            )
        trainer = context.trainer(callbacks=[self.signal], inference_mode=False)
        if len(scored) < len(examples):
            rendered, _ = encode_examples(examples, chat, self.max_length)
            self.signal.output = context.directory / f"scores.part{trainer.global_rank}.jsonl"
            drop_torn_line(self.signal.output)
            trainer.predict(
                student,
                datamodule=ScoringData(
                    examples, rendered, references, chat.tokenizer.pad_token_id, self.batch_tokens, scored.keys()
                ),
                return_predictions=False,
                ckpt_path=str(checkpoint / CHECKPOINT) if checkpoint is not None else None,
            )
            if trainer.interrupted:
                raise KeyboardInterrupt
            trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return {}
        scored = _scored(context.directory)
        scores = [scored[example.id] for example in examples]
        write_atomically(context.directory / SCORES, "".join(score.to_json() + "\n" for score in scores))
        for part in _parts(context.directory):
            part.unlink()
        values = [score.value for score in scores]
        # Influence is measured on a student that has seen none of the examples: it can rise while they narrow, and
        # says nothing without how varied they are and how well the student does. Loaded anew, because a resumed run
        # that has all scores does not hold the student, and because the number is the evaluation's then.
        losses = ResponseLoss(max_length=self.max_length).losses(context.source(student, "student"), reference)
        context.log_distribution(f"{context.key}/score", values)
        report = self._report(context.directory / REPORT, scores)
        return {
            **({"signal": report} if report else {}),
            "left_out_as_too_long": len(too_long),
            "references": len(references),
            "references_left_out_as_too_long": len(too_long_references),
            **describe(values),
            "diversity": diversity([example.instruction for example in examples]),
            "reference_loss": losses.mean().item(),
        }

    def _report(self, path: Path, scores: list[ScoreRecord]) -> dict[str, Any]:
        """What the signal said before it began, with what it says about all scores, which is added to the file."""
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if summary := self.signal.summary(scores):
            report |= summary
            write_atomically(path, json.dumps(report, indent=1) + "\n")
        return report


def _parts(directory: Path) -> list[Path]:
    return sorted(directory.glob("scores.part*.jsonl"))


def _scored(directory: Path) -> dict[str, ScoreRecord]:
    """All scores so far, by example, from the finished file or from what the processes have written."""
    finished = directory / SCORES
    paths = [finished] if finished.exists() else _parts(directory)
    return {score.id: score for path in paths for score in read_records(path, ScoreRecord)}
