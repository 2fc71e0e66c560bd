"""What a stage is: a named step of a recipe that reads artifacts of earlier stages and writes its own directory."""

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Checked
from montessori_pl.data.records import Example, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.preview import StagePreview
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.progress import Progress

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from montessori_pl.models.dpo import TeacherDPOModule
    from montessori_pl.models.language_module import LanguageModule
    from montessori_pl.models.student import StudentModule


class Kind(enum.Enum):
    """What a stage leaves behind for others to read."""

    EXAMPLES = "examples"
    SCORES = "scores"
    PAIRS = "pairs"
    STUDENT = "student"
    TEACHER = "teacher"
    ROUTING = "routing"
    REPORT = "report"


LATEST = "latest"
"""Stands for the student or teacher that was trained last, in this iteration or an earlier one, or for the base."""
BASE = "base"
"""Stands for the student or teacher before any training."""
ITSELF = ""
"""Stands for the stage that reads, as an earlier iteration left it."""

EXAMPLES = "examples.jsonl"
"""File, within a stage's directory, of the examples that it leaves behind."""
REJECTIONS = "rejections.jsonl"
"""File, within a stage's directory, of what did not become an example."""
SCORES = "scores.jsonl"
"""File, within a stage's directory, of the scores of examples."""
PAIRS = "pairs.jsonl"
"""File, within a stage's directory, of preference pairs."""
WEIGHTS = "weights"
"""Directory, within a training stage's own, of the adapter or the whole model that it trained."""
CHECKPOINT = "last.ckpt"
"""File, within a training stage's directory, of the weights with the optimizer's state."""
ROUTING = "routing"
"""Directory, within that of a stage that chooses among teachers, of the router; `load_router` reads it."""


@dataclasses.dataclass(frozen=True)
class Input:
    """A setting of a stage that names another stage."""

    setting: str
    """The setting, for messages and for the manifest."""
    name: str
    """The stage that it names, or `latest`, or `base`; empty for the stage that reads, in an earlier iteration."""
    kind: Kind
    """What that stage must produce."""
    optional: bool = False
    """Whether there need be no such stage before this one, as in the first iteration of what grows."""


class StageError(ValueError):
    """Why a stage cannot go on, in a sentence for the user. What it has done so far is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageContext:
    """Everything that a stage may use while it runs."""

    key: str
    """Iteration and name, for example `iteration_1/warmup`."""
    name: str
    """The stage's name in the recipe."""
    iteration: int
    """From 1."""
    directory: Path
    """Where the stage writes; what lies there comes from an earlier session of the same stage."""
    seed: int
    """Depends on the run's seed, the iteration and the stage's name."""
    run_seed: int
    """The run's seed, for what several stages must draw alike."""
    inputs: Mapping[str, Path | None]
    """For each setting that names a stage, that stage's verified directory; none for a model that no stage trained."""
    data: DataSources
    """Seeds, reference and test set."""
    student: "Callable[[], StudentModule]"
    """Makes a fresh student."""
    teacher: "Callable[[], TeacherDPOModule]"
    """Makes a fresh teacher."""
    backend: Callable[[], GenerationBackend]
    """Makes a generation engine of the recipe's kind."""
    trainer: "Callable[..., Trainer]"
    """Makes a trainer from the `trainer` section, with the stage's own arguments on top."""
    progress: Progress
    """What the console shows."""
    log_distribution: Callable[[str, list[float]], None]
    """Sends numbers to the logger as a histogram."""
    pool: Mapping[str, PoolTeacher] = dataclasses.field(default_factory=dict)
    """Teachers that only write, by name."""
    requests: Path | None = None
    """The run's directory for answers that must not be paid for twice."""
    say: Callable[[str], None] = lambda text: None
    """Shows the user one line."""

    def input_dir(self, setting: str) -> Path:
        """The directory of the stage that a setting names, for settings that always name one."""
        directory = self.inputs[setting]
        assert directory is not None
        return directory

    def examples(self, setting: str) -> list[Example]:
        """What the stage that a setting names has written; nothing where there is none yet."""
        directory = self.inputs[setting]
        return read_records(directory / EXAMPLES, Example) if directory is not None else []

    def source(self, module: "LanguageModule", setting: str) -> ModelSource:
        """The model of this module with the weights of the stage that the setting names."""
        directory = self.inputs[setting]
        weights = directory / WEIGHTS if directory is not None else None
        return dataclasses.replace(module.source, weights=weights)


class Stage(Checked, ABC):
    """One step of a recipe.

    Implement `run`, and `reads` where the stage names others. `run` is called again after a kill and goes on from what
    lies in its directory; what it writes must not depend on how often that happened.

    Args:
        first_iteration_only: whether later iterations go without this stage and use what it left behind.
    """

    produces: ClassVar[Kind]
    """What the stage leaves behind."""
    artifacts: tuple[str, ...]
    """Patterns of the files that others may read; their hashes are kept."""
    uses: tuple[str, ...] = ()
    """Sections of the configuration that the result depends on: `student`, `teacher`, `generation`, `data`, and
    `trainer` where the stage trains or predicts with one."""
    trains: ClassVar[tuple[str, ...]] = ()
    """Which of them it trains: only then does the result depend on settings such as DPO's `beta`."""
    own_objective: ClassVar[bool] = False
    """Whether it trains by settings of its own, so that those such as `beta` do not count."""
    fingerprint_excludes: ClassVar[tuple[str, ...]] = ()
    """Settings that say how fast or how long, not what: they may be changed after the stage has begun."""
    adjustable: ClassVar[tuple[str, ...]] = ()
    """Settings that say how much: they may be changed as long as no other stage has read the result."""
    distributed: bool = False
    """Whether all processes of a multi-process run take part; otherwise the first works and the others wait."""
    shards_weights: bool = False
    """Whether they may hold weights in parts (`trainer.strategy: fsdp2`); otherwise each holds whole ones (`ddp`)."""

    def __init__(self, first_iteration_only: bool = False) -> None:
        self.first_iteration_only = first_iteration_only

    def reads(self) -> list[Input]:
        """The settings that name other stages."""
        return []

    def teacher_names(self) -> list[str]:
        """Names of teachers; those of the pool are settings that the result depends on."""
        return []

    def check_environment(self) -> None:
        """Look, before a run begins, at engines of the stage's own: packages, keys, devices and their models.

        Raises:
            ValueError: something is missing.
        """
        return

    def check_teacher(self, engine: GenerationBackend, source: ModelSource) -> None:
        """Look, before anything runs, at whether this teacher can be asked in the stage's way, by this engine.

        Raises:
            ValueError: it cannot.
        """
        return

    def check_inputs(self, context: EstimateContext) -> None:
        """Look, before a run begins, at whether data and models leave the stage anything to do; by default nothing.

        Args:
            context: what is known before anything has run; of what earlier stages will leave, nothing.

        Raises:
            ValueError: it would fail, or do nothing, when its turn comes: data is not set, or nothing has room.
        """
        return

    def estimate(self, context: EstimateContext) -> StageEstimate | None:
        """What the stage will take, or what is left of it, for a dry run; none, the default, for no estimate.

        Raises:
            NoEstimate: it depends on what is not known yet.
        """
        return None

    def preview(self, context: StageContext, num_prompts: int) -> StagePreview | None:
        """A few samples of what the stage will write; none, the default, for a stage that writes nothing.

        Args:
            context: the stage's, but that its directory is empty and will be gone; what no stage has left behind yet
                is none among its inputs.
            num_prompts: how many prompts, each with one completion.
        """
        return None

    def input_content(self, setting: str, directory: Path) -> str | None:
        """What of an input the result depends on, where two stages may leave the same behind; for example a hash.

        A stage is not run where another one of its iteration has the same settings and inputs of the same content, made
        by other stages: two arms of a recipe have met, as where a router gives way to the teacher that asks no router,
        and the student is not trained twice. Stages that read the very same inputs are run each, as repetitions are.

        Args:
            setting: the setting that names the input.
            directory: of the stage that left it.

        Returns:
            None, the default, if only the same stage leaves the same behind.
        """
        return None

    @abstractmethod
    def run(self, context: StageContext) -> dict[str, Any]:
        """Do the work, or what is left of it.

        Returns:
            numbers for the summary, as plain JSON values; sentences under `warnings` are shown to the user.

        Raises:
            StageError: the stage cannot go on.
        """
