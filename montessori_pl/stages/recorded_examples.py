"""RecordedExamples: examples from a file or data set, to be scored and trained on like generated ones."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from montessori_pl.batches.sources import DataSources, source_file
from montessori_pl.bounds import Text
from montessori_pl.data.formats import LoadedSource, load_source
from montessori_pl.data.records import Example
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate, real
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.stages.base import EXAMPLES, REJECTIONS, Kind, Stage, StageContext
from montessori_pl.synthesis.contamination import Decontamination, HeldOut
from montessori_pl.synthesis.diversity import diversity_metrics
from montessori_pl.synthesis.filters import Rejected
from montessori_pl.synthesis.repetition import TeacherRepetition
from montessori_pl.worlds.names import locate


class RecordedExamples(Stage):
    """Read examples from a file (alpaca, messages, instruction and response, ...) or a Hugging Face dataset.

    A row may name the teacher who wrote the response (`teacher`, or else `model` or `generator`) and say how good it is
    (`quality`, or else `reward` or `score`): what `SelectTeacher` and `TrainRouter` choose among teachers by.

    Rows whose instructions repeat the reference or test set are kept, and the run warns of them.

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
            "warnings": [
                *loaded.notes(),
                *_held_out(context.data, loaded.examples),
                *TeacherRepetition.of(loaded.examples).warnings(),
            ],
        }


def _held_out(data: DataSources, examples: Sequence[Example]) -> Iterator[str]:
    """A sentence for each set that should be held out and that some of the examples repeat; they are kept."""
    for role in ("reference", "test"):
        if getattr(data, role) is None:
            continue
        held_out = HeldOut({role: data.read(role)}, Decontamination())
        if found := [why for example in examples if (why := _repeated(example, held_out)) is not None]:
            yield (
                f"{len(found)} of {len(examples)} examples repeat data.{role}, for example {found[0]}; what is "
                "measured on it says little of a student that learns them: leave them out, or take other rows"
            )


def _repeated(example: Example, held_out: HeldOut) -> str | None:
    """Which held-out example one of the user's turns repeats, if any does."""
    for turn in example.user_turns():
        try:
            held_out.check_instruction(turn)
        except Rejected as problem:
            return f"{example.id}: {problem.detail}"
    return None
