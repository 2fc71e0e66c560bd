"""The outer loop: run the stages of a recipe in a run directory, skip what has finished, go on with what has not."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.utilities import rank_zero_only

from montessori_pl.batches.sources import DataSources
from montessori_pl.data.records import stable_seed
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.pipeline.equal_work import equal_stage, take_result
from montessori_pl.pipeline.recipe import Step
from montessori_pl.pipeline.time_left import RecipeClock
from montessori_pl.processes.stop import STOP
from montessori_pl.report.summary import METRICS
from montessori_pl.run_directory.atomic import write_json
from montessori_pl.run_directory.journal import check_journals
from montessori_pl.run_directory.progress import ConsoleDisplay, Progress, ProgressCallback
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.run_directory.tracking import log_distribution, log_numbers
from montessori_pl.stages.base import StageContext
from montessori_pl.stages.generating.generators import USAGE

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger

    from montessori_pl.models.dpo import TeacherDPOModule
    from montessori_pl.models.student import StudentModule

REQUESTS = "requests"
SECONDS_BETWEEN_LOOKS = 1.0
"""How often a process that waits for the first one looks at the manifest."""


@dataclasses.dataclass(kw_only=True)
class Runner:
    """Runs steps.

    In a run of several processes all of them come here. The first one works and keeps the manifest; the others take
    part in the stages that are distributed, and wait for the rest by looking at the manifest: there is no collective
    operation that could time out while the first process generates for hours. The first one opens the run before any
    other comes, so that what the manifest says is what the first one means to do.
    """

    run_directory: RunDirectory
    """The run directory."""
    display: ConsoleDisplay
    """What the user sees."""
    seed: int
    """Of the run."""
    data: DataSources
    """Seeds, reference and test set."""
    student: "Callable[[], StudentModule]"
    """Makes a fresh student."""
    teacher: "Callable[[], TeacherDPOModule]"
    """Makes a fresh teacher."""
    backend: Callable[[], GenerationBackend]
    """Makes a generation engine."""
    trainer: "Callable[..., Trainer]"
    """Makes a trainer; takes arguments that go on top of the configured ones, and whether it works in one process."""
    loggers: "Sequence[Logger]" = ()
    """Where metrics go: to all of them."""
    pool: Mapping[str, PoolTeacher] = dataclasses.field(default_factory=dict)
    """Teachers that only write, by name."""
    clock: RecipeClock | None = None
    """What the first process says of the time that is left; none says nothing."""

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which keeps the manifest."""
        return getattr(rank_zero_only, "rank", 0) == 0

    def open(self, steps: Sequence[Step], settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Bring the manifest to what is asked for today; for the first process, before any other runs.

        Args:
            steps: as for `run`.
            settings: as for `run`.

        Raises:
            RunDirectoryError: the run directory does not fit the settings, or is damaged.
        """
        self.check(steps, settings)
        self.run_directory.forget_undone()
        if aside := self.run_directory.set_aside([step.key for step in steps]):
            self.display.say(f"what the manifest does not know was moved to {aside}; its stages begin anew")
        for step in steps:
            self.run_directory.adjust(step.key, settings[step.name])

    def run(self, steps: Sequence[Step], settings: Mapping[str, Mapping[str, Any]]) -> bool:
        """Run all steps that have not finished, of a run that is open.

        Args:
            steps: from `recipe.resolve_recipe`.
            settings: for each stage's name, the settings that its result depends on.

        Returns:
            whether there was anything to do.

        Raises:
            RunDirectoryError: the inputs of a stage are not those that it has begun with.
            StageError: a stage cannot go on.
        """
        worked = False
        for number, step in enumerate(steps, start=1):
            inputs = {setting: self._identity(key) for setting, key in step.inputs.items()}
            if self.leads:
                self.run_directory.check(step.key, settings[step.name], inputs)
            title = f"[{number}/{len(steps)}] {step.key}"
            if self.run_directory.finished(step.key):
                if self.leads:
                    self.display.say(f"{title}: finished before")
                continue
            worked = True
            STOP.place = step.key
            done_by = equal_stage(self.run_directory, step, settings[step.name], inputs)
            if self.leads:
                self._lead(step, settings[step.name], inputs, title, done_by)
            else:
                self._follow(step, done_by is None)
            STOP.place = ""
        return worked

    def check(self, steps: Sequence[Step], settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Compare all steps that have begun with what they are asked to be today, and files with what was written.

        Raises:
            RunDirectoryError: they differ.
        """
        for step in steps:
            self.run_directory.check(step.key, settings[step.name], adjustable=_adjustable(step))
        for step in steps:
            if self.run_directory.finished(step.key):
                self.run_directory.verify(step.key)

    def seed_of(self, step: Step) -> int:
        """Seed of a step: depends on the run's seed, the iteration and the stage's name."""
        return stable_seed(self.seed, step.iteration, step.name)

    def estimate_context(self, step: Step) -> EstimateContext:
        """What a step may know before anything has run; nothing is known of what others will leave."""
        return EstimateContext(
            key=step.key,
            name=step.name,
            iteration=step.iteration,
            seed=self.seed_of(step),
            inputs={setting: key for setting, key in step.inputs.items() if key is not None},
            expected_output=lambda key: None,
            data=self.data,
            student=self.student,
            teacher=self.teacher,
            backend=self.backend,
            pool=self.pool,
            requests=self.requests,
        )

    def _lead(
        self, step: Step, settings: Mapping[str, Any], inputs: Mapping[str, str], title: str, done_by: str | None
    ) -> None:
        resumed = self.run_directory.begun(step.key)
        self.run_directory.begin(step.key, settings, inputs)
        self.display.say(f"{title}: {type(step.stage).__name__}{', going on' if resumed else ''}")
        start = time.monotonic()
        with self.display.stage(
            step.key,
            lambda seconds: self.run_directory.add_seconds(step.key, seconds),
            lambda progress: self.clock.during(step.key, progress) if self.clock is not None else "",
        ) as progress:
            metrics = self._run(step, progress) if done_by is None else self._take(step, done_by)
        directory = self.run_directory.directory(step.key)
        content = {"kind": step.stage.produces.value, **metrics}
        write_json(directory / METRICS, content)
        log_numbers(self.loggers, step.key, metrics)
        check_journals(directory)
        patterns = (*step.stage.artifacts, METRICS)
        self.run_directory.finish(step.key, sorted(path for pattern in patterns for path in directory.glob(pattern)))
        left = self.clock.after() if self.clock is not None else ""
        self.display.say(f"{title}: done in {time.monotonic() - start:.1f} s{_headline(metrics)}{left and '; '}{left}")
        for sentence in metrics.get("warnings", ()):
            self.display.say(f"  warning: {sentence}")

    def _take(self, step: Step, done_by: str) -> dict[str, Any]:
        """The result of a stage that did the same work, and its metrics without what it took."""
        take_result(self.run_directory, step.key, done_by, METRICS)
        metrics = json.loads((self.run_directory.directory(done_by) / METRICS).read_text(encoding="utf-8"))
        return {
            **{name: value for name, value in metrics.items() if name not in ("kind", "warnings", *USAGE)},
            "same_as": done_by,
            "warnings": [
                f"{done_by} has the same settings, and what it read has the same content: its result is taken, and "
                "nothing was done twice"
            ],
        }

    def _follow(self, step: Step, runs: bool) -> None:
        if step.stage.distributed and runs:
            while not self.run_directory.begun(step.key):
                time.sleep(SECONDS_BETWEEN_LOOKS)
                self.run_directory.reload()
            self._run(step, Progress())
        while not self.run_directory.finished(step.key):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self.run_directory.reload()

    def _run(self, step: Step, progress: Progress) -> dict[str, Any]:
        seed = self.seed_of(step)
        lightning.seed_everything(seed % 2**32, workers=True, verbose=False)

        def trainer(callbacks: list[Any], **arguments: Any) -> "Trainer":
            return self.trainer(
                callbacks=[*callbacks, ProgressCallback(progress)],
                alone=not step.stage.distributed,
                whole_weights=not step.stage.shards_weights,
                default_root_dir=self.run_directory.directory(step.key),
                **arguments,
            )

        context = self._context(
            step,
            directory=self.run_directory.directory(step.key),
            inputs={setting: self._verified(key) for setting, key in step.inputs.items()},
            backend=self._backend,
            trainer=trainer,
            progress=progress,
            requests=self.requests,
        )
        return step.stage.run(context)

    def preview_context(self, step: Step, directory: Path) -> StageContext:
        """The context in which a stage is previewed.

        Args:
            step: the stage.
            directory: an empty one; nothing is written into that of the run.
        """
        finished = {
            setting: key if key is not None and self.run_directory.finished(key) else None
            for setting, key in step.inputs.items()
        }
        return self._context(
            step,
            directory=directory,
            inputs={setting: self._verified(key) for setting, key in finished.items()},
            backend=self.backend,
            trainer=self.trainer,
            progress=Progress(),
            requests=None,
        )

    def _context(self, step: Step, **of_session: Any) -> StageContext:
        return StageContext(
            key=step.key,
            name=step.name,
            iteration=step.iteration,
            seed=self.seed_of(step),
            run_seed=self.seed,
            data=self.data,
            student=self.student,
            teacher=self.teacher,
            log_distribution=lambda name, values: log_distribution(self.loggers, name, values),
            pool=self.pool,
            say=lambda text: self.display.say(f"  {text}"),
            **of_session,
        )

    @property
    def requests(self) -> Path:
        """Where engines keep what must not be paid for twice: the run's, for stages may be done again."""
        return self.run_directory.root / REQUESTS

    def _backend(self) -> GenerationBackend:
        backend = self.backend()
        backend.set_cache_dir(self.requests)
        return backend

    def _identity(self, key: str | None) -> str:
        """What stands in the manifest for an input; a stage that has not finished yet has no digest."""
        if key is None:
            return "base"
        return f"{key} {self.run_directory.digest(key) if self.run_directory.finished(key) else ''}".strip()

    def _verified(self, key: str | None) -> Path | None:
        if key is None:
            return None
        return self.run_directory.verify(key) if self.leads else self.run_directory.directory(key)

    def locked(self) -> Any:
        """The lock of the run directory, for the process that writes."""
        return self.run_directory.locked() if self.leads else nullcontext()


def _adjustable(step: Step) -> list[str]:
    """The settings of a step that say how much, as the manifest calls them."""
    return [f"recipe.{step.name}.init_args.{name}" for name in step.stage.adjustable]


def _headline(metrics: Mapping[str, Any]) -> str:
    """The numbers that say most about a stage, for its last line."""
    parts = []
    if "accepted" in metrics:
        rejected = sum(metrics["rejected"].values())
        parts.append(f"{metrics['accepted']} examples, {rejected} rejected")
    if "mistakes" in metrics:
        parts.append(f"{metrics['mistakes']} mistakes in {metrics['looked_at']} examples")
    if "positive_rate" in metrics:
        diversity = metrics["diversity"]
        parts += [
            f"mean {metrics['mean']:.3g}, positive {metrics['positive_rate']:.0%} of {metrics['count']}",
            f"entropy of words {diversity['token_entropy']:.2f}, of first words {diversity['first_word_entropy']:.2f}",
        ]
        if "reference_loss" in metrics:
            parts.append(f"reference loss {metrics['reference_loss']:.3f}")
    if "mean_margin" in metrics:
        parts.append(f"{metrics['pairs']} pairs from {metrics['prompts']} prompts")
    if "steps" in metrics:
        parts.append(f"{metrics['steps']} steps, last loss {metrics['loss']:.3f}")
    if "monitor" in metrics and metrics["monitor"]["selected_step"] != metrics["steps"]:
        parts.append(f"the teacher of step {metrics['monitor']['selected_step']}")
    if "finding" in metrics:
        parts.append(metrics["finding"])
    return f" ({'; '.join(parts)})" if parts else ""
