"""AlignTeacher: DPO of the teacher on preference pairs, with the teacher before alignment as the reference policy."""

from functools import partial
from typing import Any

from montessori_pl.data import collate_pairs, encode_pairs
from montessori_pl.models import load_chat
from montessori_pl.optimization import TrainingSettings
from montessori_pl.records import PreferencePair, read_records
from montessori_pl.stages.base import CHECKPOINT, LATEST, WEIGHTS, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.training import TrainingData, fit


class AlignTeacher(Stage):
    """Train the teacher to prefer what helped the student.

    Args:
        pairs: the stage whose preference pairs are learned.
        training: how.
        teacher: the stage whose teacher is trained further, and is the reference policy; `latest`, or `base`.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.TEACHER
    artifacts = (CHECKPOINT, f"{WEIGHTS}/*")
    uses = ("teacher",)
    trains = ("teacher",)
    unpinned = ("training.checkpoint_every_n_steps",)
    distributed = True

    def __init__(
        self, pairs: str, training: TrainingSettings, teacher: str = LATEST, first_iteration_only: bool = False
    ) -> None:
        super().__init__(first_iteration_only)
        self.pairs, self.training, self.teacher = pairs, training, teacher

    def reads(self) -> list[Input]:
        """The pairs and the teacher to start from."""
        return [Input("pairs", self.pairs, Kind.PAIRS), Input("teacher", self.teacher, Kind.TEACHER)]

    def run(self, context: StageContext) -> dict[str, Any]:
        """Align, or go on aligning."""
        directory = context.inputs["pairs"]
        assert directory is not None
        teacher = context.teacher()
        teacher.source = context.source(teacher, "teacher")
        chat = load_chat(teacher.source)
        pairs = read_records(directory / "pairs.jsonl", PreferencePair)
        encoded = encode_pairs(pairs, chat, self.training.max_length)
        if not encoded:
            raise StageError(
                f"{context.key} has nothing to learn: of {len(pairs)} pairs in {directory}, none fits within "
                f"max_length {self.training.max_length} tokens"
            )
        data = TrainingData(
            encoded,
            [max(len(pair.chosen.input_ids), len(pair.rejected.input_ids)) for pair in encoded],
            self.training.batch_size,
            context.seed,
            partial(collate_pairs, pad_id=chat.tokenizer.pad_token_id),
        )
        return {
            "pairs": len(encoded),
            "left_out_as_too_long": len(pairs) - len(encoded),
            **fit(context, teacher, data, self.training),
        }
