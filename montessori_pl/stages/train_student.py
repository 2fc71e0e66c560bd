"""TrainStudent: supervised fine-tuning of the student, from its base, on examples."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from montessori_pl.batches.collate import collate, num_labels
from montessori_pl.batches.encoding import encode_examples
from montessori_pl.bounds import Text
from montessori_pl.data.chat_template import Rendered
from montessori_pl.data.records import Example, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.training import estimate_training
from montessori_pl.models.language_module import DURING_TRAINING
from montessori_pl.models.loading import load_chat_template
from montessori_pl.optim import TrainingSettings
from montessori_pl.run_directory.fingerprint import with_content
from montessori_pl.stages.base import (
    CHECKPOINT,
    EXAMPLES,
    WEIGHTS,
    Input,
    Kind,
    Stage,
    StageContext,
    StageError,
)
from montessori_pl.stages.training.fit import HOW_TRAINED, TrainingData, fit
from montessori_pl.stats.distribution import cumulative

LENGTHS = "length_quantiles"
"""The number of a training that holds the lengths of its examples in tokens, from the shortest to the longest."""


class TrainStudent(Stage):
    """Train the student from its base model; the loss is taken on response tokens only.

    Args:
        examples: the stage whose examples are learned.
        training: how.
        all_weights: train the model itself, in float32, although the student section names an adapter and may have a
            base in half precision. Influence is cheap to measure on the adapter of a warm-up; what is learned in the
            end need not be held to the adapter's rank.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.STUDENT
    artifacts = (CHECKPOINT, f"{WEIGHTS}/*", DURING_TRAINING)
    uses = ("student", "trainer")
    fingerprint_excludes = HOW_TRAINED
    distributed = True
    shards_weights = True

    def __init__(
        self, examples: Text, training: TrainingSettings, all_weights: bool = False, first_iteration_only: bool = False
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.training, self.all_weights = examples, training, all_weights

    def reads(self) -> list[Input]:
        """The examples."""
        return [Input("examples", self.examples, Kind.EXAMPLES)]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """All epochs over the examples."""
        given, chat_template = context.expected_input("examples"), context.student_template()
        rendered, _ = encode_examples(given.some(), chat_template, self.training.max_length)
        lengths = [len(one.input_ids) for one in rendered]
        return StageEstimate(work=[estimate_training(self.training, given.count, lengths, context.processes)])

    def input_content(self, setting: str, directory: Path) -> str | None:
        """The same examples make the same student."""
        return with_content(setting, directory / EXAMPLES) if setting == "examples" else None

    def run(self, context: StageContext) -> dict[str, Any]:
        """Train, or go on training."""
        directory = context.input_dir("examples")
        student = context.student()
        if self.all_weights:
            student.train_all_weights()
        chat_template = load_chat_template(student.source)
        examples = read_records(directory / EXAMPLES, Example)
        if unanswered := sum(not example.response for example in examples):
            raise StageError(
                f"{context.key} cannot learn from {directory}: {unanswered} of {len(examples)} examples have no "
                "response; let a stage `GenerateResponses` answer them first"
            )
        rendered, too_long = encode_examples(examples, chat_template, self.training.max_length)
        if not rendered:
            raise StageError(
                f"{context.key} has nothing to learn: of {len(examples)} examples in {directory}, none has a response "
                f"within max_length {self.training.max_length} tokens"
            )
        data = TrainingData(
            rendered,
            [len(one.input_ids) for one in rendered],
            self.training.batch_size,
            context.seed,
            partial(collate, pad_id=chat_template.tokenizer.pad_token_id),
            {"tokens": [num_labels(one) for one in rendered]},
        )
        return {
            "examples": len(rendered),
            "left_out_as_too_long": len(too_long),
            LENGTHS: {name: cumulative(values) for name, values in _lengths(rendered).items()},
            **fit(context, student, data, self.training),
        }


def _lengths(rendered: Sequence[Rendered]) -> dict[str, list[float]]:
    """Of each conversation, the tokens that are read and those that are learned."""
    learned = [float(sum(one.completion_mask)) for one in rendered]
    read = [len(one.input_ids) - count for one, count in zip(rendered, learned, strict=True)]
    return {"prompts": read, "responses": learned}
