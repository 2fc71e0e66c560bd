"""One run as the page reads it: each stage with its numbers and its records, finished or not.

Of a finished stage, files are read after the look that `compare` takes, too. Of one that was interrupted, what is there
is read up to its last whole line.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from montessori_pl.data.records import Example, PreferencePair, Record, Rejection, Score, read_lines, read_records
from montessori_pl.data.text import is_number
from montessori_pl.report.runs import SEED, read_summary
from montessori_pl.run_directory.run_directory import RunDirectory, open_run

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Row = Mapping[str, Any]

ANSWERS = "answers.jsonl"
"""File in which an evaluator keeps a student's answers, in a directory of the student and one of the evaluator."""
EVALUATIONS = "alignment_evaluations.jsonl"
"""File of the evaluations of the alignment monitor."""
DURING_TRAINING = "influence_during_training.jsonl"
"""File of what `InfluenceDuringTraining` has measured."""


@dataclass(frozen=True)
class StageData:
    """A stage that has begun."""

    key: str
    """`iteration_1/warmup`."""
    what: str
    """Name of its class; empty where the manifest does not say."""
    finished: bool
    """Whether its artifacts are complete."""
    seconds: float
    """Time spent in it, all sessions together."""
    settings: Row
    """Its own, as they stand in the recipe."""
    reads: Mapping[str, str]
    """For each setting that names a stage, that stage's key; for a base model another word."""
    metrics: Row
    """Its numbers; none before it has finished."""
    hashes: Mapping[str, str]
    """SHA-256 of each artifact, by its name."""
    examples: Sequence[Example] = ()
    rejections: Sequence[Rejection] = ()
    """What did not become an example."""
    scores: Sequence[Score] = ()
    pairs: Sequence[PreferencePair] = ()
    evaluations: Sequence[Row] = ()
    """Those of the alignment monitor, in order."""
    during_training: Sequence[Row] = ()
    """The influence of coming batches, by optimizer step, where it was measured."""
    answers: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """The answers of each student to the test set: `id`, `answer`, `right`, `cut`."""

    @property
    def iteration(self) -> int:
        """The iteration, from 1."""
        return int(self.key.partition("/")[0].removeprefix("iteration_"))

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.key.partition("/")[2]

    @property
    def students(self) -> Mapping[str, Mapping[str, float]]:
        """What an evaluation says of each student; nothing for other stages."""
        students = mapping(self.metrics.get("students"))
        return {name: numbers_of(one) for name, one in students.items()}

    def number(self, name: str) -> float | None:
        """One of its numbers; none where there is none of this name."""
        return numbers_of(self.metrics).get(name)

    @property
    def diversity(self) -> Mapping[str, float]:
        """How varied its examples are, or those that it scored; nothing where this was not measured."""
        return numbers_of(self.metrics.get("diversity"))


def mapping(value: Any) -> Row:
    """The value, if it is a mapping, or else an empty one: a plug-in may give a name of ours another meaning."""
    return value if isinstance(value, Mapping) else {}


def numbers_of(value: Any) -> dict[str, float]:
    """The numbers in a mapping, by name."""
    return {name: one for name, one in mapping(value).items() if is_number(one)}


@dataclass(frozen=True)
class RunData:
    """All that the page shows of a run."""

    name: str
    """What the page calls it."""
    root: Path
    """The run directory."""
    seed: int | None
    """The seed of the run; none where its manifest has none."""
    stages: Mapping[str, StageData]
    """Those that have begun, by key, in the order in which they began."""
    warnings: Sequence[str]
    """What the stages warn of, and what could not be read."""
    config: str
    """`config.yaml`, as it is; empty where there is none."""
    test_set: str
    """The source of the test set, as the recipe names it; empty where there is none."""
    pinned_test_set: str
    """The same with what stands for its content."""

    def without_records(self) -> "RunData":
        """What a comparison with other runs needs: the records of ten thousands of examples take much memory."""
        nothing: dict[str, Any] = {"examples": (), "rejections": (), "scores": (), "pairs": ()}
        return replace(self, stages={key: replace(stage, **nothing) for key, stage in self.stages.items()})

    def stage(self, key: str | None) -> StageData | None:
        """The stage of this key, if it has begun."""
        return self.stages.get(key or "")

    def scored(self) -> list[StageData]:
        """The stages that have scores."""
        return [stage for stage in self.stages.values() if stage.scores]

    def evaluated(self) -> list[StageData]:
        """The stages that have evaluated students."""
        return [stage for stage in self.stages.values() if stage.students]

    def examples_of(self, stage: StageData) -> dict[str, Example]:
        """The examples that a stage reads, by id."""
        source = self.stage(stage.reads.get("examples"))
        return {example.id: example for example in source.examples} if source is not None else {}

    def scores_of(self, pairs: StageData) -> dict[str, dict[str, Score]]:
        """The scores that pairs were made by, by stage and example."""
        judges = [self.stage(key) for setting, key in pairs.reads.items() if setting.startswith("scores")]
        return {judge.key: {score.id: score for score in judge.scores} for judge in judges if judge is not None}

    def training_data(self, evaluation: StageData, student: str) -> StageData | None:
        """The stage of the examples on which an evaluated student was trained; none for a base model."""
        trained = self.stage(evaluation.reads.get(f"students.{student}"))
        return self.stage(trained.reads.get("examples")) if trained is not None else None

    def alignment(self, examples: StageData | None) -> list[StageData]:
        """The alignments that the teacher of these examples has gone through, the last one first."""
        found = []
        teacher = self.stage(examples.reads.get("teacher")) if examples is not None else None
        while teacher is not None and teacher not in found:
            found.append(teacher)
            teacher = self.stage(teacher.reads.get("teacher"))
        return found


def read_run_data(root: Path, name: str) -> RunData:
    """Read a run directory; nothing is written, and the run may be going on.

    Args:
        root: the run directory.
        name: what the page calls it.

    Raises:
        RunDirectoryError: it is no run directory, or a file of a finished stage is missing or changed.
        CompareError: a number is missing.
    """
    run_directory = open_run(root)
    summary = read_summary(root)
    notes: list[str] = []
    stages = {key: _stage(run_directory, key, notes) for key in run_directory.entries if run_directory.begun(key)}
    config = root / "config.yaml"
    data = [mapping(entry.settings.get("data")) for entry in run_directory.entries.values()]
    seeds = [entry.settings[SEED] for entry in run_directory.entries.values() if SEED in entry.settings]
    return RunData(
        name=name,
        root=root,
        seed=seeds[0] if seeds else None,
        stages=stages,
        warnings=[*summary["warnings"], *notes],
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        test_set=mapping(mapping(run_directory.facts.get("data")).get("test")).get("source") or "",
        pinned_test_set=next((one["test"] for one in reversed(data) if one.get("test")), ""),
    )


def _stage(run_directory: RunDirectory, key: str, notes: list[str]) -> StageData:
    entry = run_directory.entries[key]
    own = mapping(entry.settings.get(f"recipe.{key.partition('/')[2]}"))
    files = _Files(run_directory, key, notes)
    rejected = ["rejections.jsonl", *files.parts("unscored")]
    return StageData(
        key=key,
        what=str(own.get("class_path", "")).rpartition(".")[2],
        finished=entry.finished,
        seconds=entry.seconds,
        settings=mapping(own.get("init_args")),
        reads=entry.reads,
        metrics=files.metrics(),
        hashes=entry.files,
        examples=files.records("examples.jsonl", Example),
        rejections=[one for name in rejected for one in files.records(name, Rejection)],
        scores=[one for name in files.parts("scores") for one in files.records(name, Score)],
        pairs=files.records("pairs.jsonl", PreferencePair),
        evaluations=files.rows(EVALUATIONS, {"step"}),
        during_training=files.rows(DURING_TRAINING, {"step"}),
        answers={
            name.split("/")[0]: files.rows(name, {"id", "answer", "right", "cut"})
            for name in files.matching(ANSWERS)[::-1]  # of several evaluators the first
        },
    )


@dataclass(frozen=True)
class _Files:
    """The files of one stage. A plug-in may call a file as ours are called and write something else into it."""

    run_directory: RunDirectory
    key: str
    notes: list[str]

    def metrics(self) -> Row:
        """The numbers of the stage; none before it has finished."""
        path = self._path("metrics.json")
        finished = self.run_directory.finished(self.key)
        metrics: Row = json.loads(path.read_text(encoding="utf-8")) if finished and path is not None else {}
        return metrics

    def records(self, name: str, kind: type[R]) -> list[R]:
        """The records of a file; none if there is no such file."""
        return self._read(name, lambda path: read_records(path, kind))

    def rows(self, name: str, needed: set[str]) -> list[Row]:
        """The rows of a file that have what is needed."""
        return self._read(name, lambda path: [row for row in read_lines(path) if needed <= row.keys()])

    def parts(self, stem: str) -> list[str]:
        """A file, or before there is one what each process has written of it."""
        directory = self.run_directory.directory(self.key)
        if self.run_directory.finished(self.key) or (directory / f"{stem}.jsonl").exists():
            return [f"{stem}.jsonl"]
        return sorted(path.name for path in directory.glob(f"{stem}.part*.jsonl"))

    def matching(self, name: str) -> list[str]:
        """The files of this name in directories of a student and an evaluator."""
        directory = self.run_directory.directory(self.key)
        return sorted(path.relative_to(directory).as_posix() for path in directory.glob(f"*/*/{name}"))

    def _read(self, name: str, read: Callable[[Path], list[T]]) -> list[T]:
        """What stands in a file; nothing if it is not there, or is not what we call so."""
        path = self._path(name)
        try:
            return read(path) if path is not None else []
        except FileNotFoundError:  # a run that goes on has put it into another one
            return []
        except (ValueError, TypeError) as error:
            self.notes.append(f"{self.key}: {name} is left out of this page, for it cannot be read: {error}")
            return []

    def _path(self, name: str) -> Path | None:
        """A file that is there and, of a finished stage, as it was written."""
        if self.run_directory.finished(self.key):
            known = name in self.run_directory.entries[self.key].files
            return self.run_directory.verify(self.key, name) / name if known else None
        path = self.run_directory.directory(self.key) / name
        return path if path.is_file() else None
