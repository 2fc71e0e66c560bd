"""What is read from the run directories of a cell: numbers by name, the families of the data, and alarms."""

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.classroom.pretraining_corpus import HARD_SKILLS
from montessori_pl.classroom.tasks import SKILLS, family, solve
from montessori_pl.data.records import Example, read_records
from study.runs import CellRuns, manifest, needs_influence, students
from study.settings import Arm

MALFORMED = "malformed"
"""The family of what belongs to none."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of one arm in one cell, and how it is shown."""

    name: str
    """Key in the cells' measures."""
    better: int = 0
    """1: higher is better; -1: lower is better; 0: neither."""
    digits: int = 3
    """Decimals."""
    compared: bool = True
    """Whether arms are compared in it; not where it is the same for all arms, or needs no interval."""


MEASURES: dict[str, tuple[Measure, ...]] = {
    "the students": (
        Measure("accuracy", 1),
        Measure("reference loss", -1),
        Measure("test loss", -1),
        Measure("base accuracy", compared=False),
        Measure("base reference loss", compared=False),
        Measure("base test loss", compared=False),
        Measure("warm-up accuracy", compared=False),
        Measure("warm-up reference loss", compared=False),
        Measure("warm-up test loss", compared=False),
    ),
    "influence on the warm student (1e-3 nats per token)": (
        Measure("influence before", compared=False),
        Measure("influence after", 1),
        Measure("positive rate before", compared=False),
        Measure("positive rate after", 1),
    ),
    "diversity and quality of the training data (entropies in nats)": (
        Measure("family entropy", 1),
        Measure("target entropy", 1),
        Measure("families", 1, 1),
        Measure("target share"),
        Measure("hard share"),
        Measure("malformed share", -1),
        Measure("right answers", 1),
        Measure("distinct rate", 1, compared=False),
        Measure("distinct bigrams", 1),
        Measure("mean maximal ROUGE-L", -1),
    ),
    "alignment of the teacher (at its last step)": (
        Measure("preference pairs", digits=0),
        Measure("reward margin"),
        Measure("reward accuracy"),
        Measure("selected step", digits=1),
        Measure("evaluations", digits=1),
    ),
    "what was dropped from the training data (counts), and time": (
        Measure("completions", digits=0),
        Measure("held out", digits=1),
        Measure("near duplicate", digits=1),
        Measure("other reasons", digits=1),
        Measure("seconds", digits=0, compared=False),
    ),
}
"""What is measured, by the table in which it stands."""
ALL_MEASURES = {one.name: one for table in MEASURES.values() for one in table}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm in one world under one seed."""

    world: int
    seed: int
    arm: str
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    """The numbers, by name; a name is absent where the arm has no such thing."""
    students: tuple[dict[str, float], ...] = ()
    """The numbers of each student, of which the arm's are the means."""
    rejections: dict[str, int] = dataclasses.field(default_factory=dict)
    """What was dropped while the training data were written, by reason."""
    families: dict[str, int] = dataclasses.field(default_factory=dict)
    """Training examples by family of tasks."""
    alarms: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """What the `dose control` of the alignment and the `guard` of the training data have said, where they spoke."""
    failed: str = ""
    """The program's last words if a run did not finish."""


def entropy(counts: Mapping[str, int]) -> float:
    """Entropy in nats of the distribution with these counts; 0 when there is none."""
    total = sum(counts.values())
    return sum(-count / total * math.log(count / total) for count in counts.values() if count)


def content(examples: Sequence[Example]) -> tuple[dict[str, int], dict[str, float]]:
    """The families of the examples, largest first, and what they say about diversity and right answers."""
    names = [family(example.instruction) or MALFORMED for example in examples]
    counts = dict(Counter(names).most_common())
    targets = [example for example, name in zip(examples, names, strict=True) if name in SKILLS]
    measures = {
        "family entropy": entropy(counts),
        "target entropy": entropy({name: counts.get(name, 0) for name in SKILLS}),
        "families": float(len(counts)),
        "target share": len(targets) / len(examples),
        "hard share": sum(counts.get(name, 0) for name in HARD_SKILLS) / len(examples),
        "malformed share": counts.get(MALFORMED, 0) / len(examples),
    }
    if targets:
        right = sum(example.response == solve(example.instruction) for example in targets)
        measures["right answers"] = right / len(targets)
    return counts, measures


def metrics(run: Path, stage: str) -> dict[str, Any]:
    """The numbers that a stage (`iteration_1/warmup`) left behind; none where the run has no such stage."""
    path = run / stage / "metrics.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def measure(runs: CellRuns, arm: Arm) -> Cell:
    """The measures of one arm in a cell.

    Influence *before* is that of the unaligned teacher's probing data, and so the same for all arms of a cell; *after*
    is that of a sample of the arm's own training data. Both are measured on the cell's one warm student.
    """
    run = runs.directory / arm.name
    data, alignment = (metrics(run, f"{arm.last}/{stage}") for stage in ("training_data", "aligned_teacher"))
    families, found = content(read_records(run / arm.last / "training_data" / "examples.jsonl", Example))
    evaluated: dict[str, dict[str, float]] = metrics(run, f"{arm.last}/evaluation")["students"]
    for student, prefix in (("base", "base "), ("warmup", "warm-up ")):
        found |= {prefix + name: value for name, value in _named(evaluated.get(student, {})).items()}
    others = metrics(runs.students(arm).path, "iteration_1/evaluation").get("students", {})
    own = [evaluated["trained"], *(others[name] for name in students(runs.settings.student_seeds))]
    named = tuple(_named(one) for one in own)
    found |= {name: statistics.fmean(one[name] for one in named) for name in named[0]}
    after = runs.influence(arm).path if needs_influence(arm) else run
    for when, scores in (
        ("before", metrics(runs.directory / runs.settings.main, "iteration_1/influence")),
        ("after", metrics(after, "iteration_1/influence_after")),
    ):
        if scores:
            found[f"influence {when}"] = 1000 * scores["mean"]
            found[f"positive rate {when}"] = scores["positive_rate"]
    if alignment:
        found |= _alignment(alignment)
    rejections: dict[str, int] = data["rejected"]
    reasons = {reason: rejections.get(reason, 0) for reason in ("held out", "near duplicate")}
    found |= reasons | {
        "distinct rate": data["diversity"]["distinct_rate"],
        "distinct bigrams": data["diversity"]["distinct_2"],
        "mean maximal ROUGE-L": data["diversity"]["mean_max_rouge_l"],
        "completions": data["accepted"] + sum(rejections.values()),
        "other reasons": sum(rejections.values()) - sum(reasons.values()),
        "seconds": sum(entry["seconds"] for entry in manifest(run).values()),
    }
    return Cell(
        world=runs.world,
        seed=runs.seed,
        arm=arm.name,
        measures=found,
        students=named,
        rejections=rejections,
        families=families,
        alarms=alarms(run, arm),
    )


def alarms(run: Path, arm: Arm) -> dict[str, list[str]]:
    """What was said about a collapsed teacher, in any iteration, by who said it."""
    found = {
        who: [
            sentence
            for iteration in range(1, arm.iterations + 1)
            for sentence in metrics(run, f"iteration_{iteration}/{stage}").get("warnings", [])
        ]
        for who, stage in (("dose control", "aligned_teacher"), ("guard", "training_data"))
    }
    return {who: sentences for who, sentences in found.items() if sentences}


def _named(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("_", " "): value for name, value in numbers.items()}


def _alignment(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Without a monitor the last step is the selected one, and there is no evaluation."""
    found = {
        "preference pairs": numbers["pairs"],
        "reward margin": numbers["reward_margin"],
        "reward accuracy": numbers["reward_accuracy"],
    }
    monitor = numbers.get("monitor") or {}
    chosen = monitor.get("selected_step")
    found["selected step"] = numbers["steps"] if chosen is None else chosen
    evaluations = monitor.get("evaluations", 0)
    found["evaluations"] = len(evaluations) if isinstance(evaluations, list) else evaluations
    return found
