"""What a stage may know when it says what it will take: data, tokenizers, and what the stages before it leave.

Nothing here loads weights, asks an engine or writes a file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Rejection, read_lines, read_records
from montessori_pl.estimates.estimate import ExpectedRecords, NoEstimate
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.models.loading import load_chat_template

if TYPE_CHECKING:
    from montessori_pl.models.dpo import TeacherDPOModule
    from montessori_pl.models.student import StudentModule

ACCEPTED_RATE = 0.9
"""Part of the completions that become examples, where nothing was measured yet."""
ASSUMED_RATE = f"Of the completions {ACCEPTED_RATE:.0%} are assumed to pass the filters."
ASSUMED_LENGTHS = (
    "Completions are assumed to be as long as the seed tasks' instructions, in the form that is asked for, and "
    "responses. What a teacher says before the instruction is not counted."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimateContext:
    """Everything that a stage may use for its estimate."""

    key: str
    """Iteration and name, for example `iteration_1/warmup`."""
    name: str
    """The stage's name in the recipe."""
    iteration: int
    """From 1."""
    seed: int
    """The seed that the stage will have."""
    inputs: Mapping[str, str]
    """For each setting that names a stage, the key of the step that is read; not for what no step makes."""
    expected_output: Callable[[str], ExpectedRecords[Any] | None]
    """The expected output of the step of a key; none where it is not known."""
    data: DataSources
    """Seeds, reference and test set."""
    student: "Callable[[], StudentModule]"
    """Makes a student, of which only the source is read."""
    teacher: "Callable[[], TeacherDPOModule]"
    """Makes a teacher, in the same way."""
    backend: Callable[[], GenerationBackend]
    """Makes an engine of the recipe's kind, of which only price and budget are read."""
    pool: Mapping[str, PoolTeacher]
    """Teachers that only write, by name."""
    requests: Path | None = None
    """The run's directory of answers that were paid for."""
    processes: int = 1
    """Processes that train."""
    begun: Path | None = None
    """The stage's directory, where it has begun."""
    models: dict[str, RequestEstimator] = dataclasses.field(default_factory=dict)
    """The models that were looked at, so that the steps that share this read each tokenizer once."""
    before: Path | None = None
    """The directory in which the same stage finished in an earlier iteration."""

    def expected_input(self, setting: str) -> ExpectedRecords[Any]:
        """The expected output of the stage that a setting names.

        Raises:
            NoEstimate: it is not known.
        """
        expected = self.expected_output(self.inputs[setting])
        if expected is None:
            raise NoEstimate(f"it reads {self.inputs[setting]}, which has none")
        return expected

    def asked(self, teacher: str) -> RequestEstimator:
        """The teacher of this name: of the pool, or the recipe's, whatever stage has trained it."""
        place = f"teacher {teacher if teacher in self.pool else ''}"
        if place not in self.models:
            self.models[place] = self._asked(teacher)
        return self.models[place]

    def _asked(self, teacher: str) -> RequestEstimator:
        member = self.pool.get(teacher)
        if member is None:
            return RequestEstimator.of(self.teacher().source, self.backend(), requests=self.requests)
        own = member.generation is not None
        engine = (member.generation or self.backend)()
        asked = RequestEstimator.of(member.source(), engine, teacher if own else "", self.requests)
        return dataclasses.replace(asked, price=member.price or engine.price)

    def answering(self) -> RequestEstimator:
        """The student, asked by the recipe's engine."""
        if "answering" not in self.models:
            self.models["answering"] = RequestEstimator.of(
                self.student().source, self.backend(), requests=self.requests
            )
        return self.models["answering"]

    def student_template(self) -> ChatTemplate:
        """How the student writes conversations."""
        if "student" not in self.models:
            self.models["student"] = RequestEstimator.of_template(load_chat_template(self.student().source))
        chat_template = self.models["student"].chat_template
        assert chat_template is not None
        return chat_template

    def teacher_template(self) -> ChatTemplate:
        """How the teacher that is trained writes conversations."""
        return self.asked("").chat_template or load_chat_template(self.teacher().source)

    @cached_property
    def commits(self) -> list[dict[str, Any]]:
        """What the stage has committed in earlier sessions, of the journals that stages keep."""
        path = self.begun / "journal.jsonl" if self.begun is not None else None
        return list(read_lines(path)) if path is not None and path.exists() else []

    @cached_property
    def written(self) -> list[Example]:
        """What the stage has written in earlier sessions."""
        return _records(self.begun, "examples.jsonl", Example)

    @cached_property
    def known(self) -> list[Example]:
        """What the stage has written so far or, where it has not begun, in the iteration before."""
        return self.written or _records(self.before, "examples.jsonl", Example)

    @cached_property
    def accepted_rate(self) -> float:
        """Share of completions that become examples: the share so far, or that of the iteration before, or assumed."""
        directory = self.begun if self.written else self.before
        rejected = len(_records(directory, "rejections.jsonl", Rejection))
        return len(self.known) / (len(self.known) + rejected) if self.known else ACCEPTED_RATE

    def notes(self) -> list[str]:
        """What had to be assumed of a teacher's writing."""
        return [] if self.known else [ASSUMED_RATE, ASSUMED_LENGTHS]


def _records(directory: Path | None, name: str, kind: type[Any]) -> list[Any]:
    path = directory / name if directory is not None else None
    return read_records(path, kind) if path is not None and path.exists() else []
