"""What is exported: one finished stage of a run, read after a look at its files, with all that led to it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Example, PreferencePair, Score, read_records, stable_id
from montessori_pl.run_directory.run_directory import RunDirectory, listed

METRICS = "metrics.json"
EXAMPLES, PAIRS, SCORES = "examples", "pairs", "scores"
"""Kinds of stages, as their metrics name them; each writes a file of JSON lines of this name."""
STUDENT = "student"
"""Another kind, which leaves weights."""


class ExportError(ValueError):
    """Why something cannot be exported, in a sentence for the user."""


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage, whose files are what it wrote."""

    key: str
    """`iteration_1/training_data`."""
    directory: Path
    """Where its files lie."""
    sections: Mapping[str, Any]
    """All settings that its result depends on."""
    reads: Mapping[str, str]
    """For each setting that names a stage, that stage's key, or `base`."""
    metrics: Mapping[str, Any]
    """Its numbers."""

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.key.partition("/")[2]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its own settings, as they stand in the recipe; none where the manifest has none."""
        settings: Mapping[str, Any] = self.sections.get(f"recipe.{self.name}", {}).get("init_args", {})
        return settings


@dataclass(frozen=True)
class FinishedStep:
    """A stage that was needed for another, as the manifest tells."""

    key: str
    """`iteration_1/warmup`."""
    what: str
    """Name of its class."""
    reads: Mapping[str, str]
    """For each setting that names a stage, that stage's key, or `base`."""


@dataclass(frozen=True)
class Source:
    """All that the export of one stage needs to know."""

    run: Path
    """The run directory."""
    stage: FinishedStage
    """What is exported."""
    origin: FinishedStage | None
    """The stage that wrote the examples: the same, or for pairs the one that they were made of, if any."""
    examples: Sequence[Example]
    """Its examples; where they are exported, those with a response."""
    pairs: Sequence[PreferencePair]
    """The pairs, where pairs are exported."""
    cut: int
    """Pairs that are left out, because a completion was cut at its token limit."""
    unanswered: int
    """Examples that are left out, because they are instructions without a response."""
    judges: Sequence[FinishedStage]
    """The stages that scored the examples; for pairs those whose scores they come from."""
    steps: Sequence[FinishedStep]
    """What led to the stage, itself included, in the order in which it began."""
    settings_digest: str
    """Stands for the settings of all these steps, seeds included."""

    @property
    def count(self) -> int:
        """Rows that are exported."""
        return len(self.pairs or self.examples)

    @property
    def of_responses(self) -> bool:
        """Whether the teachers of the examples were asked the instructions themselves, and not for new ones."""
        return all(example.prompt == example.instruction for example in self.examples)

    def teachers(self) -> Counter[str]:
        """Who wrote how many of the examples, or of the completions in pairs; empty where no writer is recorded."""
        if not self.pairs:
            return Counter(example.teacher for example in self.examples)
        teachers = {example.id: example.teacher for example in self.examples}
        return Counter(teachers.get(id_, "") for pair in self.pairs for id_ in (pair.chosen_id, pair.rejected_id))

    def scores(self) -> dict[str, dict[str, Score]]:
        """The scores of each judge, by its key and the example's id."""
        return {judge.key: {one.id: one for one in _records(judge, SCORES, Score)} for judge in self.judges}


def choose_stage(run_directory: RunDirectory, kind: str, name: str | None, iteration: int | None) -> str:
    """The key of the last finished stage that holds what is wanted.

    Args:
        run_directory: the run.
        kind: what it must hold.
        name: its name in the recipe; none takes any.
        iteration: its iteration; none takes any.

    Raises:
        ExportError: there is none; the sentence lists those that there are.
    """
    kinds = {
        key: _metrics(run_directory, key).get("kind") for key in run_directory.entries if run_directory.finished(key)
    }
    possible = [key for key, one in kinds.items() if one == kind]
    several = kind if kind.endswith("s") else f"{kind}s"
    exist = f"stages of {run_directory.root} that have finished and hold {several}: {listed(possible) or 'none'}"
    wanted = [key for key in run_directory.entries if _is_called(key, name, iteration)]
    if found := [key for key in possible if key in wanted]:
        return found[-1]
    asked = " and ".join(
        [f"--stage {name}"] * (name is not None) + [f"--iteration {iteration}"] * (iteration is not None)
    )
    if not asked:
        raise ExportError(f"there are no {several} to export yet; {exist}")
    if name is not None and (finished := [key for key in wanted if key in kinds]):
        raise ExportError(
            f"{finished[-1]} holds no {several} but {kinds[finished[-1]]}, choose another format; {exist}"
        )
    if name is not None and (begun := [key for key in wanted if run_directory.begun(key)]):
        raise ExportError(f"{begun[-1]} has not finished, run `fit` again to go on; {exist}")
    raise ExportError(f"{asked} names no stage that has begun and holds {several}; {exist}")


def read_source(run_directory: RunDirectory, key: str, kind: str) -> Source:
    """Read what a stage wrote, and what the card says about it.

    Args:
        run_directory: the run.
        key: a finished stage.
        kind: what it holds.

    Raises:
        ExportError: nothing is left to be exported, or what pairs were made of is gone.
        RunDirectoryError: a file is missing or is not what the stage wrote.
    """
    stage = finished_stage(run_directory, key)
    origin = stage if kind == EXAMPLES else _origin(run_directory, stage)
    written = _records(stage, PAIRS, PreferencePair) if kind == PAIRS else []
    pairs = [pair for pair in written if pair.chosen_finished and pair.rejected_finished and _answers_a_user(pair)]
    recorded = _records(origin, EXAMPLES, Example) if origin is not None else []
    # Of pairs the completions are exported, whether or not they were answered since.
    examples = [one for one in recorded if one.response or kind == PAIRS]
    if not (pairs if kind == PAIRS else examples):
        raise ExportError(f"{key} leaves no {kind} to export{_why_none(kind, written, recorded)}")
    steps = steps_to(run_directory, key)
    return Source(
        run=run_directory.root,
        stage=stage,
        origin=origin,
        examples=examples,
        pairs=pairs,
        cut=len(written) - len(pairs),
        unanswered=len(recorded) - len(examples),
        judges=_judges(run_directory, stage, origin),
        steps=steps,
        settings_digest=settings_digest(run_directory, steps),
    )


def settings_digest(run_directory: RunDirectory, steps: Sequence[FinishedStep]) -> str:
    """Stands for the settings of these steps, seeds included."""
    return stable_id(json.dumps({step.key: run_directory.entries[step.key].settings for step in steps}, sort_keys=True))


def _why_none(kind: str, pairs: Sequence[PreferencePair], examples: Sequence[Example]) -> str:
    """Why nothing is left of what was written, and what to do."""
    if kind == PAIRS and pairs:
        return f", for all {len(pairs)} hold a completion that was cut or answers no user turn; choose another stage"
    if kind == EXAMPLES and examples:
        return (
            f", for none of {len(examples)} instructions has a response; let a stage `GenerateResponses` answer them "
            "first, or choose another stage"
        )
    return "; choose another stage"


def _answers_a_user(pair: PreferencePair) -> bool:
    """Whether other trainers can have the pair as a user turn with two whole answers."""
    return pair.prompt_format == "chat" and not pair.prefill


def _is_called(key: str, name: str | None, iteration: int | None) -> bool:
    place, _, own = key.partition("/")
    return name in (None, own) and (iteration is None or place == f"iteration_{iteration}")


def _metrics(run_directory: RunDirectory, key: str) -> dict[str, Any]:
    path = run_directory.verify(key, METRICS) / METRICS
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def finished_stage(run_directory: RunDirectory, key: str) -> FinishedStage:
    """A finished stage, after a look at its files.

    Raises:
        RunDirectoryError: a file is missing or is not what the stage wrote.
    """
    directory = run_directory.verify(key)
    entry = run_directory.entries[key]
    return FinishedStage(key, directory, entry.settings, entry.reads, _metrics(run_directory, key))


def _records(stage: FinishedStage, kind: str, record: type[Any]) -> list[Any]:
    return read_records(stage.directory / f"{kind}.jsonl", record)


def _origin(run_directory: RunDirectory, stage: FinishedStage) -> FinishedStage | None:
    """The stage of whose examples the pairs were made."""
    read = run_directory.entries[stage.key].inputs.get("examples")
    if read is None:
        return None
    key = read.split(" ")[0]
    if not run_directory.finished(key) or read != _as_input(run_directory, key):
        raise ExportError(
            f"{stage.key} was made of the examples of {key}, which is gone or was done again since; delete "
            f"{stage.directory} and run `fit` again to make the pairs again"
        )
    return finished_stage(run_directory, key)


def _judges(run_directory: RunDirectory, stage: FinishedStage, origin: FinishedStage | None) -> list[FinishedStage]:
    """The finished stages that scored these examples, as they are; for pairs those that the pairs were made by."""
    if origin is None:
        return []
    judged = _as_input(run_directory, origin.key)
    inputs = run_directory.entries[stage.key].inputs.values()
    return [
        finished_stage(run_directory, key)
        for key, entry in run_directory.entries.items()
        if run_directory.finished(key) and entry.inputs.get("examples") == judged
        if _metrics(run_directory, key).get("kind") == SCORES
        and (stage is origin or _as_input(run_directory, key) in inputs)
    ]


def _as_input(run_directory: RunDirectory, key: str) -> str:
    """How a stage that reads this one names it in the manifest."""
    return f"{key} {run_directory.digest(key)}"


def steps_to(run_directory: RunDirectory, key: str) -> list[FinishedStep]:
    """What led to a stage, itself included, in the order in which it began."""
    needed, unread = {key}, [key]
    while unread:
        read = set(run_directory.entries[unread.pop()].reads.values()) & run_directory.entries.keys()
        unread += read - needed
        needed |= read
    return [_step(run_directory, one) for one in run_directory.entries if one in needed]


def _step(run_directory: RunDirectory, key: str) -> FinishedStep:
    entry = run_directory.entries[key]
    class_path = entry.settings.get(f"recipe.{key.partition('/')[2]}", {}).get("class_path", "")
    return FinishedStep(key, class_path.rpartition(".")[2], entry.reads)
