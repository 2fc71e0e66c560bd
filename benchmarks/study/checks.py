"""What makes the arms of a cell comparable: checked, not assumed."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Example, read_records
from study import StudyError
from study.measures import metrics
from study.runs import CellRuns, Run, manifest, needs_influence, students
from study.settings import Arm

DIFFERENT_ANYHOW = ("last.ckpt", "weights/adapter_config.json")


def check_cell(runs: CellRuns, arms: Sequence[Arm], held_out: Sequence[Example]) -> dict[str, int]:
    """See that the arms of a cell differ in what they should differ in, and in nothing else.

    Args:
        runs: of the cell.
        arms: those that finished.
        held_out: reference and test items.

    Returns:
        what was compared, in counts, for the last line of the study.

    Raises:
        StudyError: something differs, or a training example is held out.
    """
    check = _Check(runs)
    check.students(arms)
    check.control(arms)
    further = [run for arm in arms for run in check.further(arm)]
    all_runs = [*(runs.run(arm) for arm in arms), *further]
    compared = Counter(cells=1)
    compared["shared files"] = check.shared_stages(all_runs)
    for run in all_runs:
        for path in sorted(run.path.glob("*/*/examples.jsonl")):
            examples = read_records(path, Example)
            if found := overlap(examples, held_out):
                raise StudyError(f"{path} holds {len(found)} reference or test items, for example {found[0]!r}")
            compared["examples"] += len(examples)
    return dict(compared)


class _Check:
    """The comparisons within one cell."""

    def __init__(self, runs: CellRuns) -> None:
        self.runs = runs

    def same(self, what: str, values: Mapping[str, Any]) -> None:
        """All values are those of the baseline, or of the first arm where the baseline is not there."""
        expected = values.get(self.runs.settings.baseline, next(iter(values.values()), None))
        if different := {name: value for name, value in values.items() if value != expected}:
            raise StudyError(
                f"{self.runs.directory}: the arms differ in {what}: {different}, but {expected} in the others"
            )

    def students(self, arms: Sequence[Arm]) -> None:
        """All students of one number learn equally much in the same way, from one base."""
        own = {arm.name: (self.runs.directory / arm.name, f"{arm.last}/trained") for arm in arms}
        stages = {"": own}
        for name in students(self.runs.settings.student_seeds):
            stages[f" ({name})"] = {arm.name: (self.runs.students(arm).path, f"iteration_1/{name}") for arm in arms}
        for which, places in stages.items():
            for number in ("examples", "left_out_as_too_long", "steps"):
                self.same(
                    f"the student's {number}{which}",
                    {arm: metrics(run, stage)[number] for arm, (run, stage) in places.items()},
                )
            # The seed of a stage comes from the run's seed, which is among the settings, the stage's name and the
            # iteration. The last is another one for an arm of several iterations, and its first student's seed is too.
            self.same(
                f"the settings of the student's training{which}",
                {arm: manifest(run)[stage]["settings"] for arm, (run, stage) in places.items()},
            )
        evaluations = {arm.name: metrics(self.runs.directory / arm.name, f"{arm.last}/evaluation") for arm in arms}
        self.same("the base student", {arm: found["students"]["base"] for arm, found in evaluations.items()})

    def control(self, arms: Sequence[Arm]) -> None:
        """The control learns as many preferences as the main arm."""
        settings = self.runs.settings
        pair = [arm for arm in arms if arm.name in (settings.main, settings.control)]
        pairs = {arm.name: metrics(self.runs.directory / arm.name, "iteration_1/preferences") for arm in pair}
        self.same("the number of preference pairs", {arm: found.get("pairs") for arm, found in pairs.items()})

    def further(self, arm: Arm) -> list[Run]:
        """The runs beside the arm's own, which have read the training data that lie there now."""
        found = [self.runs.students(arm)] if self.runs.settings.student_seeds > 1 else []
        if needs_influence(arm):
            found.append(self.runs.influence(arm))
        own = _texts(self.runs.directory / arm.name / arm.last)
        for run in found:
            if _texts(run.path / "iteration_1") != own:
                raise StudyError(f"{run.path} has read other training data than {arm.name} has now; delete it")
        return found

    def shared_stages(self, all_runs: Sequence[Run]) -> int:
        """Equal stages with equal inputs wrote equal files, and influence is measured on one warm student.

        Returns:
            files of stages that several runs have.
        """
        groups: dict[str, dict[str, dict[str, str]]] = {}
        warm = {}
        for run in all_runs:
            entries = manifest(run.path)
            for key, entry in entries.items():
                inputs = {
                    setting: [source.split()[0], artifacts(entries[source.split()[0]]) if source != "base" else {}]
                    for setting, source in entry["inputs"].items()
                }
                # The key stands for the stage's name and iteration, from which its seed comes.
                identity = json.dumps([key, entry["settings"], inputs], sort_keys=True)
                groups.setdefault(identity, {})[run.path.name] = artifacts(entry)
            if "iteration_1/warmup" in entries:
                warm[run.path.name] = artifacts(entries["iteration_1/warmup"])
        self.same("the warm student", warm)
        shared = [files for files in groups.values() if len(files) > 1]
        for identity, files in groups.items():
            self.same(f"what the shared stage {json.loads(identity)[0]} wrote", files)
        return sum(len(names) for files in shared for names in files.values())


def canonical(text: str) -> str:
    """Text as items are compared here: small letters, single blanks. On purpose not the program's own function."""
    return " ".join(text.lower().split())


def overlap(examples: Sequence[Example], held_out: Sequence[Example]) -> list[str]:
    """The instructions that stand in both."""
    known = {canonical(example.instruction) for example in held_out}
    return [example.instruction for example in examples if canonical(example.instruction) in known]


def artifacts(entry: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of what a stage wrote, less the files in which equal runs differ.

    A checkpoint holds the path of its run, and an adapter's configuration the names of its modules in any order. What
    the checkpoint knows beside the weights, the optimizer's moments, shows in the influence scores.
    """
    return {name: digest for name, digest in entry["files"].items() if name not in DIFFERENT_ANYHOW}


def _texts(iteration: Path) -> list[tuple[str, str]]:
    examples = read_records(iteration / "training_data" / "examples.jsonl", Example)
    return [(example.instruction, example.response) for example in examples]
