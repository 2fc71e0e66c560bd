"""RecordedExamples: examples that somebody else wrote, to be scored and trained on like our own."""

from collections import Counter
from typing import Any, ClassVar

from montessori_pl.batches.sources import source_file
from montessori_pl.classroom.names import locate
from montessori_pl.data.formats import read_source
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate, real
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.stages.base import EXAMPLES, REJECTIONS, Kind, Stage, StageContext
from montessori_pl.synthesis.diversity import diversity


class RecordedExamples(Stage):
    """Read examples from JSON lines (alpaca, messages, instruction and response, ...) or a Hugging Face dataset.

    A row may name the teacher who wrote the response (`teacher`, or else `model` or `generator`) and say how good it is
    (`quality`, or else `reward` or `score`): what `SelectTeacher` and `TrainRouter` choose among teachers by.

    Args:
        source: a file of JSON lines, or a directory that `datasets` has saved; `[a:b]` behind it takes rows a to b.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, REJECTIONS)
    files: ClassVar[Files] = {"source": source_file}

    def __init__(self, source: str, first_iteration_only: bool = False) -> None:
        super().__init__(first_iteration_only)
        self.source = source

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work, but the examples."""
        return StageEstimate(expected_output=real(read_source(locate(self.source))[0]))

    def run(self, context: StageContext) -> dict[str, Any]:
        """Read all rows; those that are no examples become rejections."""
        examples, rejections = read_source(locate(self.source))
        write_records(context.directory / EXAMPLES, examples)
        write_records(context.directory / REJECTIONS, rejections)
        return {
            "accepted": len(examples),
            "rejected": dict(Counter(rejection.reason for rejection in rejections).most_common()),
            "diversity": diversity([example.instruction for example in examples]),
        }
