"""RecordedExamples: examples from a file or data set, to be scored and trained on like generated ones."""

from typing import Any, ClassVar

from montessori_pl.batches.sources import source_file
from montessori_pl.bounds import Text
from montessori_pl.data.formats import LoadedSource, load_source
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate, real
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.stages.base import EXAMPLES, REJECTIONS, Kind, Stage, StageContext
from montessori_pl.synthesis.diversity import diversity_metrics
from montessori_pl.synthesis.repetition import TeacherRepetition
from montessori_pl.worlds.names import locate


class RecordedExamples(Stage):
    """Read examples from a file (alpaca, messages, instruction and response, ...) or a Hugging Face dataset.

    A row may name the teacher who wrote the response (`teacher`, or else `model` or `generator`) and say how good it is
    (`quality`, or else `reward` or `score`): what `SelectTeacher` and `TrainRouter` choose among teachers by.

    Args:
        source: a file (JSON lines, JSON, CSV, Parquet), or a directory that `datasets` has saved; `[a:b]` behind it
            takes rows a to b.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, REJECTIONS)
    files: ClassVar[Files] = {"source": source_file}

    def __init__(self, source: Text, first_iteration_only: bool = False) -> None:
        super().__init__(first_iteration_only)
        self.source = source

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work, but the examples."""
        return StageEstimate(expected_output=real(self.read().examples))

    def read(self) -> LoadedSource:
        """The examples, and the rows that are none.

        Raises:
            ValueError: there is no such source, or it cannot be read.
        """
        try:
            return load_source(locate(self.source))
        except OSError as error:
            raise ValueError(f"source: {error}") from error

    def run(self, context: StageContext) -> dict[str, Any]:
        """Read all rows; those that are no examples become rejections."""
        loaded = self.read()
        write_records(context.directory / EXAMPLES, loaded.examples)
        write_records(context.directory / REJECTIONS, loaded.rejections)
        return {
            "accepted": len(loaded.examples),
            "rejected": loaded.left_out(),
            "unread_columns": dict(loaded.unread),
            **diversity_metrics(loaded.examples),
            "warnings": [*loaded.notes(), *TeacherRepetition.of(loaded.examples).warnings()],
        }
