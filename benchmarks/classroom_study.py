"""Does Montessori-Instruct beat Self-Instruct and random preferences on the embedded classroom?

    python benchmarks/classroom_study.py --seeds 0 1 2 --worlds 0

For each world and seed, a *cell*, the three shipped recipes run through the program's own command line: `iter1.yaml`
(Montessori-Instruct), `self_instruct.yaml` and `random_pairs.yaml`. All students learn from equally many examples in
equally many steps; whatever equals a reference or test item has been dropped. Both are checked, not assumed.
Starting the same command again continues the study; a classroom that was built otherwise gets its own directories.

    <out>/classroom-<world>-<fingerprint>/seed_<seed>/<arm>/         the run directories, and <arm>.log beside them
                                                     /unaligned/     the influence of Self-Instruct's training data

Knows nothing about how a recipe works: it reads manifests, metrics and records.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import math
import platform
import random
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from montessori_pl.classroom import resolve
from montessori_pl.classroom.tasks import SKILLS, family, solve
from montessori_pl.cli import shipped_configs
from montessori_pl.records import Example, read_records

ARMS = {"montessori": "iter1.yaml", "self_instruct": "self_instruct.yaml", "random": "random_pairs.yaml"}
"""The shipped recipe of each arm."""
TITLES = {"montessori": "Montessori", "self_instruct": "Self-Instruct", "random": "random pairs"}
RIVALS = ("self_instruct", "random")
"""The arms that Montessori-Instruct is compared with."""
UNALIGNED = "unaligned"
"""Directory of the run that measures Self-Instruct's training data; its recipe has no influence stage."""
ITERATION = "iteration_1"
DIFFERENT_ANYHOW = ("last.ckpt", "weights/adapter_config.json")
COUNTS = {
    "full": {},
    "small": {
        "warmup_data.num_examples": 24,
        "probing_data.num_prompts": 8,
        "training_data.num_examples": 48,
        "influence_after.max_examples": 8,
    },
}
"""Settings of stages that replace the shipped ones; `small` tries the machinery out and says nothing about methods."""
NUM_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of one arm in one cell, and how it is shown."""

    name: str
    """Key in the cells' measures."""
    better: int = 0
    """1: higher is better; -1: lower is better; 0: neither."""
    digits: int = 3
    """Decimals."""


MEASURES: dict[str, tuple[Measure, ...]] = {
    "the student": (
        Measure("accuracy", 1),
        Measure("reference loss", -1),
        Measure("test loss", -1),
        Measure("base accuracy"),
        Measure("base reference loss"),
        Measure("base test loss"),
        Measure("warm-up accuracy"),
        Measure("warm-up reference loss"),
        Measure("warm-up test loss"),
    ),
    "influence on the warm student (1e-3 nats per token)": (
        Measure("influence before"),
        Measure("influence after", 1),
        Measure("positive share before"),
        Measure("positive share after", 1),
    ),
    "breadth and quality of the training data": (
        Measure("family entropy", 1),
        Measure("families", 1, 1),
        Measure("distinct share", 1),
        Measure("distinct bigrams", 1),
        Measure("mean maximal ROUGE-L", -1),
        Measure("target share"),
        Measure("right answers", 1),
    ),
    "alignment of the teacher (last step)": (
        Measure("preference pairs", digits=0),
        Measure("reward margin"),
        Measure("reward accuracy"),
    ),
    "what was dropped from the training data (counts), and time": (
        Measure("completions", digits=0),
        Measure("held out", digits=1),
        Measure("near duplicate", digits=1),
        Measure("other reasons", digits=1),
        Measure("seconds", digits=0),
    ),
}
"""What is measured, by the table in which it stands."""
ALL_MEASURES = {one.name: one for table in MEASURES.values() for one in table}
IN_EACH_CELL = (
    *("accuracy", "reference loss", "test loss", "influence after"),
    *("family entropy", "target share", "right answers", "reward margin", "held out"),
)
"""The measures that are shown of each cell."""
READING = """
Influence before: the unaligned teacher's probing data. Influence after: a sample of the arm's own training data, for
Self-Instruct therefore the unaligned teacher's again. All on the same warm student, which Self-Instruct itself lacks.
Held out: instructions that equal a reference or test item, and were dropped. Duplicates are dropped as well, so that
the distinct share is 1 unless something is wrong. Right answers: among the target skills. Better, higher: in how many
cells. A cell is a world and a seed. Cells of one world share its teacher, base student, reference and test set: the
intervals speak about other seeds in these worlds, not about other worlds.
""".strip()


class StudyError(Exception):
    """The arms cannot be compared, and why."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One arm in one world under one seed."""

    world: int
    seed: int
    arm: str
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    """The numbers, by name; a name is absent where the arm has no such thing."""
    rejections: dict[str, int] = dataclasses.field(default_factory=dict)
    """What was dropped while the training data were written, by reason."""
    families: dict[str, int] = dataclasses.field(default_factory=dict)
    """Training examples by family of tasks."""
    failed: str = ""
    """The program's last words if the run did not finish."""


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def entropy(counts: Mapping[str, int]) -> float:
    """Entropy in nats of the distribution with these counts; 0 when there is none."""
    total = sum(counts.values())
    return sum(-count / total * math.log(count / total) for count in counts.values() if count)


@dataclasses.dataclass(frozen=True)
class Interval:
    """The mean of paired differences with two 95% intervals; none for fewer than three cells."""

    mean: float
    t: tuple[float, float] | None
    """Student's t over cells."""
    bootstrap: tuple[float, float] | None
    """Percentiles of the mean over cells drawn with replacement; too narrow for few cells."""
    differences: tuple[float, ...]


def interval(differences: Sequence[float], seed: int = 0) -> Interval:
    """The mean difference and its intervals.

    Args:
        differences: one for each cell.
        seed: of the bootstrap.
    """
    mean, num_cells = statistics.fmean(differences), len(differences)
    if num_cells < 3:
        return Interval(mean, None, None, tuple(differences))
    half = t_quantile(num_cells - 1) * statistics.stdev(differences) / math.sqrt(num_cells)
    rng = random.Random(seed)
    means = sorted(statistics.fmean(rng.choices(differences, k=num_cells)) for _ in range(NUM_RESAMPLES))
    low, high = means[round(0.025 * NUM_RESAMPLES)], means[round(0.975 * NUM_RESAMPLES) - 1]
    return Interval(mean, (mean - half, mean + half), (low, high), tuple(differences))


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t with `confidence` of Student's distribution between -t and t, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < confidence else (low, middle)
    return high


def _t_within(t: float, degrees: int) -> float:
    """Probability of Student's distribution between -t and t; Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    term = math.cos(theta) if degrees % 2 else 1.0
    terms = 0.0
    for power in range(1 if degrees % 2 else 0, degrees - 1, 2):
        terms += term
        term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
    sine = math.sin(theta) * terms
    return (theta + sine) * 2 / math.pi if degrees % 2 else sine


# ---------------------------------------------------------------------------------------------------------------------
# What is read from the run directories


def canonical(text: str) -> str:
    """Text as items are compared here: small letters, single blanks. On purpose not the program's own function."""
    return " ".join(text.lower().split())


def overlap(examples: Sequence[Example], held_out: Sequence[Example]) -> list[str]:
    """The instructions that stand in both."""
    known = {canonical(example.instruction) for example in held_out}
    return [example.instruction for example in examples if canonical(example.instruction) in known]


def content(examples: Sequence[Example]) -> tuple[dict[str, int], dict[str, float]]:
    """The families of the examples, largest first, and what they say about breadth and right answers."""
    names = [family(example.instruction) or "unknown" for example in examples]
    counts = dict(Counter(names).most_common())
    targets = [example for example, name in zip(examples, names, strict=True) if name in SKILLS]
    measures = {
        "family entropy": entropy(counts),
        "families": float(len(counts)),
        "target share": len(targets) / len(examples),
    }
    if targets:
        right = sum(example.response == solve(example.instruction) for example in targets)
        measures["right answers"] = right / len(targets)
    return counts, measures


def metrics(run: Path, stage: str) -> dict[str, Any]:
    """The numbers that a stage left behind; none where the run has no such stage."""
    path = run / ITERATION / stage / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def manifest(run: Path) -> dict[str, Any]:
    """What the manifest knows about each stage, by the stage's name."""
    stages = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]
    return {key.removeprefix(f"{ITERATION}/"): entry for key, entry in stages.items()}


def recipe(arm: str) -> dict[str, Any]:
    """The stages of an arm's shipped recipe."""
    return yaml.safe_load((shipped_configs() / ARMS[arm]).read_text(encoding="utf-8"))["recipe"]


def shared_stages() -> list[str]:
    """The stages that Montessori-Instruct and the control have in common: all before the first one that differs."""
    ours, control = recipe("montessori"), recipe("random")
    shared = []
    for name, other in zip(ours, control, strict=True):
        if name != other or ours[name] != control[name]:
            break
        shared.append(name)
    return shared


def measure(directory: Path, arm: str) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """The measures of one arm, the rejections, and the families of its training data.

    Influence *before* is that of the unaligned teacher's probing data, and so the same for all arms of a cell; *after*
    is that of a sample of the arm's own training data. Both are measured on the cell's one warm student.
    """
    run = directory / arm
    before = metrics(directory / "montessori", "influence")
    after = metrics(directory / UNALIGNED if arm == "self_instruct" else run, "influence_after")
    data, alignment = metrics(run, "training_data"), metrics(run, "aligned_teacher")
    families, found = content(read_records(run / ITERATION / "training_data" / "examples.jsonl", Example))
    for student, prefix in (("base", "base "), ("warmup", "warm-up "), ("trained", "")):
        for name, value in metrics(run, "evaluation")["students"].get(student, {}).items():
            found[prefix + name.replace("_", " ")] = value
    for when, scores in (("before", before), ("after", after)):
        found[f"influence {when}"] = 1000 * scores["mean"]
        found[f"positive share {when}"] = scores["positive_share"]
    if alignment:
        found["preference pairs"] = alignment["pairs"]
        found |= {name.replace("_", " "): alignment[name] for name in ("reward_margin", "reward_accuracy")}
    rejections: dict[str, int] = data["rejected"]
    named = {reason: rejections.get(reason, 0) for reason in ("held out", "near duplicate")}
    found |= named | {
        "distinct share": data["diversity"]["distinct_share"],
        "distinct bigrams": data["diversity"]["distinct_2"],
        "mean maximal ROUGE-L": data["diversity"]["mean_max_rouge_l"],
        "completions": data["accepted"] + sum(rejections.values()),
        "other reasons": sum(rejections.values()) - sum(named.values()),
        "seconds": sum(entry["seconds"] for entry in manifest(run).values()),
    }
    return found, rejections, families


# ---------------------------------------------------------------------------------------------------------------------
# Checks: what makes the arms comparable


def check_cell(directory: Path, arms: Sequence[str], held_out: Sequence[Example]) -> dict[str, int]:
    """See that the arms of a cell differ in what they shall differ in, and in nothing else.

    Args:
        directory: of the cell.
        arms: those that finished.
        held_out: reference and test items.

    Returns:
        what was compared, in counts, for the last line of the study.

    Raises:
        StudyError: something differs, or a training example is held out.
    """
    runs = {arm: directory / arm for arm in arms}
    stages = {arm: manifest(run) for arm, run in runs.items()}
    compared = Counter(cells=1)

    def same(what: str, values: Mapping[str, Any]) -> None:
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            raise StudyError(f"{directory}: the arms differ in {what}: {dict(values)}")

    for name in ("examples", "left_out_as_too_long", "steps"):
        same(f"the student's {name}", {arm: metrics(run, "trained")[name] for arm, run in runs.items()})
    # The seed of a stage comes from the run's seed, which is among the settings, the iteration and the stage's name.
    same("the settings of the student's training", {arm: stages[arm]["trained"]["settings"] for arm in arms})
    same("the base student", {arm: metrics(run, "evaluation")["students"]["base"] for arm, run in runs.items()})
    aligned = {arm: entries for arm, entries in stages.items() if arm != "self_instruct"}
    if (directory / UNALIGNED).exists():
        aligned[UNALIGNED] = manifest(directory / UNALIGNED)
    for stage in shared_stages():
        hashes = {arm: artifacts(entries[stage]) for arm, entries in aligned.items() if stage in entries}
        same(f"what the shared stage {stage} wrote", hashes)
        compared["shared files"] += sum(len(files) for files in hashes.values())
    for run in runs.values():
        for path in sorted(run.glob("*/*/examples.jsonl")):
            examples = read_records(path, Example)
            if found := overlap(examples, held_out):
                raise StudyError(f"{path} holds {len(found)} reference or test items, for example {found[0]!r}")
            compared["examples"] += len(examples)
    return dict(compared)


def artifacts(entry: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of what a stage wrote, less the files in which equal runs differ.

    A checkpoint holds the path of its run, and an adapter's configuration the names of its modules in any order. What
    the checkpoint knows beside the weights, the optimizer's moments, shows in the influence scores.
    """
    return {name: digest for name, digest in entry["files"].items() if name not in DIFFERENT_ANYHOW}


# ---------------------------------------------------------------------------------------------------------------------
# Running


@dataclasses.dataclass(frozen=True)
class Study:
    """What is run, and where."""

    out: Path
    counts: str = "full"
    """A key of `COUNTS`."""
    copy_shared: bool = False
    """Whether the control takes the shared stages over from Montessori-Instruct instead of doing them again."""

    def directory(self, world: int, seed: int) -> Path:
        """Where a cell lies; the first use of a world builds it."""
        return self.out / resolve(f"classroom@{world}/seeds").parent.name / f"seed_{seed}"

    def cell(self, world: int, seed: int) -> tuple[list[Cell], dict[str, int]]:
        """Run, check and measure the three arms in one world under one seed."""
        directory = self.directory(world, seed)
        directory.mkdir(parents=True, exist_ok=True)
        failed = {"montessori": self._fit(directory, "montessori", world, seed)}
        if self.copy_shared and not failed["montessori"]:
            copy_stages(directory / "montessori", directory / "random", shared_stages())
        failed |= {arm: self._fit(directory, arm, world, seed) for arm in RIVALS}
        if not failed["self_instruct"]:
            self._measure_unaligned(directory, world, seed)
        finished = [arm for arm in ARMS if not failed[arm]]
        roles = ("reference", "test")
        held_out = [e for role in roles for e in read_records(resolve(f"classroom@{world}/{role}"), Example)]
        checks = check_cell(directory, finished, held_out)
        # Without Montessori's run nothing is known about influence before, and nothing could be paired.
        measured = finished if "montessori" in finished else []
        cells = [Cell(world, seed, arm, *measure(directory, arm)) for arm in measured]
        return cells + [Cell(world, seed, arm, failed=why) for arm, why in failed.items() if why], checks

    def _fit(self, directory: Path, arm: str, world: int, seed: int, config: Path | None = None) -> str:
        """Run a recipe in a process of its own; the program's last words if it failed, else nothing."""
        config = config or shipped_configs() / ARMS[arm]
        stages = yaml.safe_load(config.read_text(encoding="utf-8"))["recipe"]
        overrides = {
            "run": directory / arm,
            "seed_everything": seed,
            "trainer.logger": "false",
            "student.backbone": f"classroom@{world}/student",
            "teacher.backbone": f"classroom@{world}/teacher",
            **{f"data.{role}": f"classroom@{world}/{role}" for role in ("seeds", "reference", "test")},
            **{f"recipe.{key}": n for key, n in COUNTS[self.counts].items() if _has(stages, key)},
        }
        arguments = [part for name, value in overrides.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "montessori_pl", "fit", "--config", str(config), *arguments]
        log = directory / f"{arm}.log"
        with open(log, "a", encoding="utf-8") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        return (lines[-1] if lines else "no output") if status else ""

    def _measure_unaligned(self, directory: Path, world: int, seed: int) -> None:
        """Score a sample of Self-Instruct's training data as Montessori-Instruct scores its own.

        The recipe is Montessori's warm-up and last scoring with Self-Instruct's training data between them, under the
        same stage names, so that the same places of the data are sampled.
        """
        whole = yaml.safe_load((shipped_configs() / ARMS["montessori"]).read_text(encoding="utf-8"))
        source = directory / "self_instruct" / ITERATION / "training_data" / "examples.jsonl"
        stages = {name: whole["recipe"][name] for name in ("warmup_data", "warmup")}
        stages["training_data"] = {"class_path": "RecordedExamples", "init_args": {"source": str(source)}}
        stages["influence_after"] = whole["recipe"]["influence_after"]
        config = directory / f"{UNALIGNED}.yaml"
        config.write_text(yaml.safe_dump(whole | {"recipe": stages}, sort_keys=False), encoding="utf-8")
        if why := self._fit(directory, UNALIGNED, world, seed, config):
            raise StudyError(f"the influence of Self-Instruct's data could not be measured: {why}")


def _has(stages: Mapping[str, Any], key: str) -> bool:
    stage, setting = key.split(".")
    return stage in stages and setting in stages[stage]["init_args"]


def copy_stages(source: Path, target: Path, stages: Sequence[str]) -> None:
    """Begin a run with finished stages of another one; a run that has begun is left alone."""
    if target.exists():
        return
    draft = target.with_name(target.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    keys = [f"{ITERATION}/{stage}" for stage in stages]
    for key in keys:
        shutil.copytree(source / key, draft / key)
    entries = json.loads((source / "manifest.json").read_text(encoding="utf-8"))["stages"]
    text = json.dumps({"facts": {}, "stages": {key: entries[key] for key in keys}}, indent=1)
    (draft / "manifest.json").write_text(text + "\n", encoding="utf-8")
    draft.rename(target)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def complete(cells: Sequence[Cell]) -> list[dict[str, Cell]]:
    """The cells in which all arms finished, each by arm."""
    groups: dict[tuple[int, int], dict[str, Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.world, cell.seed), {})[cell.arm] = cell
    return [groups[key] for key in sorted(groups) if all(not c.failed for c in groups[key].values())]


def comparisons(groups: Sequence[Mapping[str, Cell]]) -> dict[str, dict[str, Interval]]:
    """For each measure, Montessori-Instruct minus each rival that has it, over cells."""
    found: dict[str, dict[str, Interval]] = {}
    for name, rival in itertools.product(ALL_MEASURES, RIVALS):
        pairs = [(group["montessori"].measures, group[rival].measures) for group in groups]
        if pairs and all(name in ours and name in theirs for ours, theirs in pairs):
            found.setdefault(name, {})[rival] = interval([ours[name] - theirs[name] for ours, theirs in pairs])
    return found


def print_study(console: Console, groups: Sequence[Mapping[str, Cell]]) -> None:
    """One table for each group of measures, the cells one by one, and what must be known to read them."""
    found = comparisons(groups)
    for title, measures in MEASURES.items():
        table = _table(f"{title}: means over {len(groups)} cell{'s' * (len(groups) != 1)}", "measure")
        for arm in ARMS:
            table.add_column(TITLES[arm], justify="right")
        for rival in RIVALS:
            heading = f"Montessori - {TITLES[rival]}\n[95% by t] [95% by bootstrap]"
            table.add_column(Text(heading), justify="right", no_wrap=True)
        for one in measures:
            means = [_mean([group[arm].measures.get(one.name) for group in groups], one.digits) for arm in ARMS]
            pairs = [found.get(one.name, {}).get(rival) for rival in RIVALS]
            table.add_row(one.name, *means, *[Text(_difference(pair, one)) for pair in pairs])
        console.print(table)
    console.print(_cells(groups))
    console.print(READING)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known and len(known) == len(values) else "-"


def _difference(pair: Interval | None, one: Measure) -> str:
    if pair is None:
        return "-"
    if not any(pair.differences):
        return "equal in all cells"
    digits, num_cells = one.digits, len(pair.differences)
    if one.better:
        num_better = sum(difference * one.better > 0 for difference in pair.differences)
        count = f"better in {num_better} of {num_cells}"
    else:
        count = f"higher in {sum(difference > 0 for difference in pair.differences)} of {num_cells}"
    lines = [f"{pair.mean:+.{digits}f}, {count}"]
    if pair.t is None or pair.bootstrap is None:
        lines.append("no interval below 3 cells")
    else:
        lines.append(" ".join(f"[{low:+.{digits}f}, {high:+.{digits}f}]" for low, high in (pair.t, pair.bootstrap)))
    return "\n".join(lines)


def _cells(groups: Sequence[Mapping[str, Cell]]) -> Table:
    table = _table("cell by cell", "world", "seed", "arm")
    for name in IN_EACH_CELL:
        table.add_column(name, justify="right")
    for group in groups:
        for arm in ARMS:
            cell = group[arm]
            values = [_mean([cell.measures.get(name)], ALL_MEASURES[name].digits) for name in IN_EACH_CELL]
            table.add_row(str(cell.world), str(cell.seed), TITLES[arm], *values, end_section=arm == list(ARMS)[-1])
    return table


def versions() -> dict[str, str]:
    """Python and the packages on which the numbers depend."""
    names = ("montessori-pl", "torch", "transformers", "lightning", "peft")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print it.

    Args:
        arguments: the command line without the script's name; none takes the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--worlds", type=int, nargs="+", default=[0], help="seeds of the classrooms")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/classroom_study"), help="where the runs lie")
    parser.add_argument("--counts", choices=COUNTS, default="full", help="small: only try the machinery out")
    parser.add_argument("--json", type=Path, help="write the cells and the comparisons there")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; each takes one core")
    parser.add_argument("--copy-shared", action="store_true", help="do not do shared stages twice, and so check less")
    options = parser.parse_args(arguments)
    console = Console(width=144, highlight=False)
    study = Study(options.out, options.counts, options.copy_shared)
    keys = [(world, seed) for world in options.worlds for seed in options.seeds]
    for world in options.worlds:
        study.directory(world, 0)  # built once, before several processes ask for it
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(lambda key: study.cell(*key), keys))
    except StudyError as error:
        sys.exit(f"error: {error}")
    cells = [cell for found, _ in results for cell in found]
    checks = sum((Counter(found) for _, found in results), Counter())
    groups = complete(cells)
    print_study(console, groups)
    console.print(", ".join(f"{name} {version}" for name, version in versions().items()))
    console.print(
        f"checked in {checks['cells']} cells: equal numbers of training examples and steps, equal settings of the "
        f"student's training, equal base student; {checks['shared files']} files of shared stages equal; "
        f"{checks['examples']} generated examples, of which none is a reference or test item"
    )
    failed = [cell for cell in cells if cell.failed]
    for cell in failed:
        console.print(f"FAILED, and its cell left out: world {cell.world}, seed {cell.seed}, {cell.arm}: {cell.failed}")
    if options.json:
        differences = {
            name: {rival: dataclasses.asdict(one) for rival, one in pairs.items()}
            for name, pairs in comparisons(groups).items()
        }
        content = {
            "counts": options.counts,
            "versions": versions(),
            "checks": dict(checks),
            "cells": [dataclasses.asdict(cell) for cell in cells],
            "montessori_minus": differences,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
