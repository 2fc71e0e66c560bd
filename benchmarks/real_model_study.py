"""Does Montessori-Instruct help a real student? SmolLM2-135M on the gym's tasks, with several rivals and seeds.

    make real                                      # fetches the model; its run is not used here
    python benchmarks/real_model_study.py

What is compared stands in `real_model_study.yaml`. Under each seed the main recipe trains the students of Self-Instruct
and of Montessori-Instruct; each rival is the same recipe with some settings changed, and takes over from the main run
whatever these do not touch. All students learn from equally many examples in equally many steps, which is checked.
Starting the same command again continues the study. Hours on two cores; one seed after the other.

    <out>/seed_<seed>/<run>/     the run directories, each with its `.log`
    <out>/study.txt              what was printed

Accuracy is compared item by item: intervals are percentiles of a bootstrap over seeds and, within them, test items.
Those of losses and diversity are Student's over seeds, and there are none with fewer than three.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from study import StudyError
from study.runs import Run, copy_stages, manifest, shared_stages

from montessori_pl.cli.fit import shipped_configs
from montessori_pl.data.records import Example, read_records
from montessori_pl.evaluation.exact_match import ItemAnswer
from montessori_pl.stats.bootstrap import bootstrap_groups, percentile_interval
from montessori_pl.stats.means import MeanInterval, mean_interval
from montessori_pl.worlds.gym.tasks import TARGETS, family_of, is_right, solve

SETTINGS = Path(__file__).with_suffix(".yaml")
TRAINED = "trained"
"""The stage that trains a run's last student."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of making training data."""

    name: str
    title: str
    run: str
    """Name of its run directory."""
    student: str
    """The stage of that run which trains its student."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One arm under one seed."""

    right: list[bool]
    """Whether each item of the test set was answered rightly."""
    measures: dict[str, float]
    """Other numbers by name."""


def arms(settings: Mapping[str, Any]) -> list[Arm]:
    """All arms: the students of the main run, and one of each other run."""
    own = [Arm(name, title, "main", name) for name, title in settings["main"]["students"].items()]
    return own + [Arm(name, one["title"], name, TRAINED) for name, one in settings["others"].items()]


def run_seed(settings: Mapping[str, Any], directory: Path, seed: int, extra: Mapping[str, Any]) -> None:
    """The main run under this seed, and then the others.

    Raises:
        StudyError: a run failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = shipped_configs() / settings["main"]["config"]
    changes = {"main": {}} | {name: one["overrides"] for name, one in settings["others"].items()}
    donors: list[Run] = []
    for name, overrides in changes.items():
        path = directory / name
        common = {"run": str(path), "seed_everything": seed, **settings["settings"], **extra}
        run = Run(path, config, common | overrides)
        if donors and not path.exists() and (shared := shared_stages(run.config, donors[0])):
            copy_stages(donors[0], shared, path)
        print(f"seed {seed}, {name}", file=sys.stderr, flush=True)
        if why := run.fit():
            raise StudyError(f"{path}: {why}")
        donors.append(run)


def measure(directory: Path, arm: Arm) -> Result:
    """Read what a finished run says of an arm's student and of the examples that it learned from."""
    run = directory / arm.run
    stages = manifest(run)
    source = stages[f"iteration_1/{arm.student}"]["inputs"]["examples"].split()[0]
    examples = read_records(run / source / "examples.jsonl", Example)
    written, trained, evaluated = (
        json.loads((run / stage / "metrics.json").read_text(encoding="utf-8"))
        for stage in (source, f"iteration_1/{arm.student}", "iteration_1/evaluation")
    )
    found = evaluated["students"][arm.student]
    targets = [one for one in examples if family_of(one.instruction) in TARGETS]
    refused = sum(count for reason, count in written["rejected"].items() if reason != "surplus")
    answers = run / "iteration_1" / "evaluation" / arm.student / "GymAccuracy" / "answers.jsonl"
    return Result(
        right=[one.right for one in read_records(answers, ItemAnswer)],
        measures={
            "test loss": found["test_loss"],
            "reference loss": found["reference_loss"],
            "examples": float(trained["examples"]),
            "steps": float(trained["steps"]),
            "yield": written["accepted"] / (written["accepted"] + refused),
            "target share": len(targets) / len(examples),
            "right answers": sum(is_right(one.response, str(solve(one.instruction))) for one in targets)
            / max(1, len(targets)),
            "distinct bigrams": written["diversity"]["distinct_2"],
            "tokens written": float(written["generated_tokens"]),
        },
    )


def check(results: Mapping[str, Sequence[Result]]) -> None:
    """All arms have learned from equally many examples in equally many steps, and were asked the same items.

    Raises:
        StudyError: they differ.
    """
    for what in ("examples", "steps"):
        if len(found := {one.measures[what] for arm in results.values() for one in arm}) > 1:
            raise StudyError(f"the students differ in the number of their {what}: {sorted(found)}")
    if len({len(one.right) for arm in results.values() for one in arm}) > 1:
        raise StudyError("the students were asked different numbers of test items")


def accuracy_interval(ours: Sequence[Result], theirs: Sequence[Result] | None = None) -> MeanInterval:
    """Accuracy, or the difference of two, with the interval of a bootstrap over seeds and items."""
    rivals = [one.right for one in theirs] if theirs else [[False] * len(one.right) for one in ours]
    groups = [
        [float(a) - float(b) for a, b in zip(one.right, rival, strict=True)]
        for one, rival in zip(ours, rivals, strict=True)
    ]
    mean = sum(map(sum, groups)) / sum(map(len, groups))
    return percentile_interval(mean, bootstrap_groups(groups, np.random.default_rng(0), 10_000))


def tables(settings: Mapping[str, Any], results: Mapping[str, Sequence[Result]]) -> list[Table]:
    """Each arm as it is, and against the baseline."""
    baseline = results[settings["baseline"]]
    names = list(baseline[0].measures)
    plain = Table(title="means over seeds", title_justify="left")
    against = Table(title=f"minus {settings['baseline']}, paired", title_justify="left")
    for table in (plain, against):
        table.add_column("arm")
        for name in ("accuracy", *names):
            table.add_column(name, justify="right")
    for arm in arms(settings):
        ours = results[arm.name]
        plain.add_row(
            arm.title,
            _shown(accuracy_interval(ours)),
            *(f"{mean_interval([one.measures[name] for one in ours]).mean:.3f}" for name in names),
        )
        if arm.name != settings["baseline"]:
            differences = (
                mean_interval([a.measures[name] - b.measures[name] for a, b in zip(ours, baseline, strict=True)])
                for name in names
            )
            against.add_row(arm.title, _shown(accuracy_interval(ours, baseline)), *map(_shown, differences))
    return [plain, against]


def _shown(value: MeanInterval) -> str:
    if value.ends is None:
        return f"{value.mean:+.3f}"
    return f"{value.mean:.3f}\n[{value.ends[0]:.3f}, {value.ends[1]:.3f}]"


def costs(directory: Path, settings: Mapping[str, Any]) -> Table:
    """Seconds of each stage of the main run, and of what each other run did by itself."""
    table = Table(title=f"seconds by stage, {directory.name}", title_justify="left")
    table.add_column("run")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    main = manifest(directory / "main")
    for name in ("main", *settings["others"]):
        for key, entry in manifest(directory / name).items():
            if name == "main" or main.get(key, {}).get("seconds") != entry["seconds"]:  # the others were copied
                table.add_row(name, key.partition("/")[2], f"{entry['seconds']:.0f}")
    return table


def main() -> None:
    """Run the study, and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/real_model_study"), help="where the runs lie")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("SETTING", "VALUE"), help="another setting of all runs"
    )
    options = parser.parse_args()
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    extra = {name: yaml.safe_load(value) for name, value in options.set}
    directories = [options.out / f"seed_{seed}" for seed in options.seeds or settings["seeds"]]
    try:
        for seed, directory in zip(options.seeds or settings["seeds"], directories, strict=True):
            run_seed(settings, directory, seed, extra)
        results = {arm.name: [measure(directory, arm) for directory in directories] for arm in arms(settings)}
        check(results)
    except StudyError as error:
        sys.exit(f"error: {error}")
    console = Console(width=200, highlight=False, record=True)
    for table in (*tables(settings, results), costs(directories[0], settings)):
        console.print(table)
    (options.out / "study.txt").write_text(console.export_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
