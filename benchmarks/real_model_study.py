"""Does Montessori-Instruct help a real student? SmolLM2-135M on the gym's tasks, with several rivals and seeds.

    make real                                      # fetches the model; its run is not used here
    python benchmarks/real_model_study.py

What is compared stands in `real_model_study.yaml`. Under each seed the main recipe trains the students of Self-Instruct
and of Montessori-Instruct; each rival is the same recipe with some settings changed, and takes over from the main run
whatever these do not touch. All students learn from equally many examples in equally many steps, which is checked.
Starting the same command again continues the study. Hours on two cores: first the main run under each seed, then one
rival after the other. `--runs main` stops after the first.

    <out>/seed_<seed>/<run>/             the run directories, each with its `.log`
    <out>/study.txt                      what was printed
    <results>/seed_<seed>/<run>.json     what a finished run has shown: small, and enough for the tables

A run whose result is kept is not run again, on this machine or another; `--results` of your own begins anew.

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

from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.data.records import Example, read_records
from montessori_pl.evaluation.exact_match import ItemAnswer
from montessori_pl.run_directory.atomic import write_atomically
from montessori_pl.stats.bootstrap import bootstrap_groups, percentile_interval
from montessori_pl.stats.means import MeanInterval, mean_interval
from montessori_pl.worlds.gym.tasks import TARGETS, family_of, is_right, solve
from montessori_pl.worlds.names import with_versions

SETTINGS = Path(__file__).with_suffix(".yaml")
RESULTS = Path(__file__).parent / "results" / "real_model_study"
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


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run under one seed: what it is, and what it has shown."""

    run: Run
    """The run, which need not be on this machine any more."""
    kept: Path
    """The file of its result."""
    arms: Sequence[Arm]
    """The arms whose students it trains."""

    def settings(self) -> dict[str, Any]:
        """Its configuration, but for where it lies, with the versions of the worlds that it names."""
        found: dict[str, Any] = with_versions({name: value for name, value in self.run.config.items() if name != "run"})
        return found

    def results(self) -> dict[str, Result] | None:
        """Of each arm, where they are kept.

        Raises:
            StudyError: they are those of other settings.
        """
        kept = self._read()
        return kept and {name: Result(**one) for name, one in kept["arms"].items()}

    def seconds(self) -> dict[str, float]:
        """Of each stage that this run did by itself."""
        kept = self._read()
        return kept["seconds"] if kept else {}

    def keep(self, taken_over: Mapping[str, Any]) -> None:
        """Write down what the finished run has shown.

        Args:
            taken_over: the stages of the run that it began with.
        """
        seconds = {
            key.partition("/")[2]: entry["seconds"]
            for key, entry in manifest(self.run.path).items()
            if taken_over.get(key, {}).get("seconds") != entry["seconds"]
        }
        arms = {arm.name: dataclasses.asdict(measure(self.run.path, arm)) for arm in self.arms}
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": self.settings(), "seconds": seconds, "arms": arms})
        write_atomically(self.kept, text + "\n")

    def _read(self) -> dict[str, Any] | None:
        if not self.kept.exists():
            return None
        kept: dict[str, Any] = json.loads(self.kept.read_text(encoding="utf-8"))
        if kept["settings"] != self.settings():
            raise StudyError(
                f"{self.kept} holds the result of other settings; give another --results, or delete the file"
            )
        return kept


def arms(settings: Mapping[str, Any]) -> list[Arm]:
    """All arms: the students of the main run, and one of each other run."""
    own = [Arm(name, title, "main", name) for name, title in settings["main"]["students"].items()]
    return own + [Arm(name, one["title"], name, TRAINED) for name, one in settings["others"].items()]


def cells(
    settings: Mapping[str, Any], seed: int, out: Path, results: Path, extra: Mapping[str, Any]
) -> dict[str, Cell]:
    """The runs under this seed by name, the main one first."""
    runs = {"main": settings["main"]} | settings["others"]
    configs = {name: shipped_configs() / one.get("config", settings["main"]["config"]) for name, one in runs.items()}
    recipes = {file: yaml.safe_load(file.read_text(encoding="utf-8"))["recipe"] for file in configs.values()}
    found = {}
    for name, one in runs.items():
        path, file = out / f"seed_{seed}" / name, configs[name]
        # A setting that only other recipes have is theirs; one that none has is refused by the program.
        here = {
            dotted: value
            for dotted, value in extra.items()
            if _has(recipes[file], dotted) or not any(_has(recipe, dotted) for recipe in recipes.values())
        }
        common = {"run": str(path), "seed_everything": seed, **settings["settings"], **here}
        kept = results / f"seed_{seed}" / f"{name}.json"
        run = Run(path, file, common | one.get("overrides", {}))
        found[name] = Cell(run, kept, [arm for arm in arms(settings) if arm.run == name])
    return found


def _has(recipe: Mapping[str, Any], dotted: str) -> bool:
    """Whether a recipe has the setting of a stage that is called so, whatever is not said of it."""
    section, _, rest = dotted.partition(".")
    stage, _, name = rest.partition(".")
    return section == "recipe" and name.partition(".")[0] in recipe.get(stage, {}).get("init_args", {})


def finish(cell: Cell, main: Cell) -> None:
    """Run what is not kept yet, beginning with whatever the main run has done alike.

    Raises:
        StudyError: the run failed.
    """
    if cell.results() is not None:
        return
    run, donor = cell.run, main.run
    run.path.parent.mkdir(parents=True, exist_ok=True)
    if cell is not main and not run.path.exists() and _alike(run, donor):
        if why := donor.fit():  # its result may be kept, and the run itself be gone
            raise StudyError(f"{donor.path}: {why}")
        if main.results() is None:
            main.keep({})
        if shared := shared_stages(run.config, donor):
            copy_stages(donor, shared, run.path)
    if why := run.fit():
        raise StudyError(f"{run.path}: {why}")
    cell.keep({} if cell is main else manifest(donor.path))


def _alike(run: Run, donor: Run) -> bool:
    """Whether any stage of the two is the same, so that there may be something to take over."""
    theirs = donor.config["recipe"]
    return any(theirs.get(name) == stage for name, stage in run.config["recipe"].items())


def measure(run: Path, arm: Arm) -> Result:
    """Read what a finished run says of an arm's last student and of the examples that it learned from."""
    stages = manifest(run)
    own = (key.partition("/")[0] for key in stages if key.endswith(f"/{arm.student}"))
    iteration = max(own, key=lambda name: int(name.removeprefix("iteration_")))
    source = stages[f"{iteration}/{arm.student}"]["inputs"]["examples"].split()[0]
    examples = read_records(run / source / "examples.jsonl", Example)
    learned, trained, evaluated = (
        _metrics(run, stage) for stage in (source, f"{iteration}/{arm.student}", f"{iteration}/evaluation")
    )
    written = [_metrics(run, stage) for stage in sorted(_writing(run, stages, source))]
    accepted = sum(one["accepted"] for one in written)
    refused = sum(count for one in written for reason, count in one["rejected"].items() if reason != "surplus")
    found = evaluated["students"][arm.student]
    targets = [one for one in examples if family_of(one.instruction) in TARGETS]
    answers = run / iteration / "evaluation" / arm.student / "GymAccuracy" / "answers.jsonl"
    return Result(
        right=[one.right for one in read_records(answers, ItemAnswer)],
        measures={
            "test loss": found["test_loss"],
            "reference loss": found["reference_loss"],
            "examples": float(trained["examples"]),
            "steps": float(trained["steps"]),
            "yield": accepted / (accepted + refused),
            "target share": len(targets) / len(examples),
            "right answers": sum(is_right(one.response, str(solve(one.instruction))) for one in targets)
            / max(1, len(targets)),
            "distinct bigrams": learned["diversity"]["distinct_2"],
            "tokens written": float(sum(one["generated_tokens"] for one in written)),
        },
    )


def _writing(run: Path, stages: Mapping[str, Any], source: str) -> set[str]:
    """The stages that wrote the examples of a stage, from which it may have chosen or which it may have joined."""
    if "generated_tokens" in _metrics(run, source):
        return {source}
    before = {name: one.split()[0] for name, one in stages[source]["inputs"].items() if one != "base"}
    return {
        stage
        for name, one in before.items()
        if name.partition(".")[0] in ("examples", "growing")
        for stage in _writing(run, stages, one)
    }


def _metrics(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / stage / "metrics.json").read_text(encoding="utf-8"))
    return found


def check(results: Mapping[str, Mapping[int, Result]]) -> None:
    """All arms have learned from equally many examples in equally many steps, and were asked the same items.

    Args:
        results: by arm and seed.

    Raises:
        StudyError: they differ.
    """
    for what in ("examples", "steps"):
        if len(found := {one.measures[what] for arm in results.values() for one in arm.values()}) > 1:
            raise StudyError(f"the students differ in the number of their {what}: {sorted(found)}")
    if len({len(one.right) for arm in results.values() for one in arm.values()}) > 1:
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


def tables(settings: Mapping[str, Any], results: Mapping[str, Mapping[int, Result]]) -> list[Table]:
    """Each arm as it is, and against the baseline under the seeds that both have."""
    baseline = results[settings["baseline"]]
    names = list(next(iter(baseline.values())).measures)
    plain = Table(title="means over seeds", title_justify="left")
    against = Table(title=f"minus {settings['baseline']}, paired", title_justify="left")
    for table in (plain, against):
        table.add_column("arm")
        table.add_column("seeds")
        for name in ("accuracy", *names):
            table.add_column(name, justify="right")
    for arm in arms(settings):
        if not (ours := results.get(arm.name)):
            continue
        seeds = " ".join(map(str, ours))
        plain.add_row(
            arm.title,
            seeds,
            _shown(accuracy_interval([*ours.values()])),
            *(f"{mean_interval([one.measures[name] for one in ours.values()]).mean:.3f}" for name in names),
        )
        if arm.name != settings["baseline"]:
            theirs = [baseline[seed] for seed in ours]
            differences = (
                mean_interval([a.measures[name] - b.measures[name] for a, b in zip(ours.values(), theirs, strict=True)])
                for name in names
            )
            against.add_row(
                arm.title, seeds, _shown(accuracy_interval([*ours.values()], theirs)), *map(_shown, differences)
            )
    return [plain, against]


def _shown(value: MeanInterval) -> str:
    if value.ends is None:
        return f"{value.mean:+.3f}"
    return f"{value.mean:.3f}\n[{value.ends[0]:.3f}, {value.ends[1]:.3f}]"


def costs(cells: Mapping[str, Cell]) -> Table:
    """Seconds of each stage of the runs under one seed; of the rivals only what each did by itself."""
    table = Table(title="seconds by stage", title_justify="left")
    table.add_column("run")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, cell in cells.items():
        for stage, seconds in cell.seconds().items():
            table.add_row(name, stage, f"{seconds:.0f}")
    return table


def main() -> None:
    """Run the study, and print its tables."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    names = ["main", *settings["others"]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=settings["seeds"], help="only these seeds")
    parser.add_argument("--runs", nargs="+", default=names, choices=names, help="only these runs")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/real_model_study"), help="where the runs lie")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where their results are kept")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("SETTING", "VALUE"), help="another setting of all runs"
    )
    options = parser.parse_args()
    if options.set and options.results == RESULTS:
        parser.error("with --set, give --results of your own: those of the study are of its settings")
    extra = {name: yaml.safe_load(value) for name, value in options.set}
    grid = {seed: cells(settings, seed, options.out, options.results, extra) for seed in options.seeds}
    results: dict[str, dict[int, Result]] = {}
    try:
        for name in options.runs:
            for seed, row in grid.items():
                print(f"seed {seed}, {name}", file=sys.stderr, flush=True)
                finish(row[name], row["main"])
        for seed, row in grid.items():
            for cell in (row[name] for name in dict.fromkeys(["main", *options.runs])):
                for arm, result in (cell.results() or {}).items():
                    results.setdefault(arm, {})[seed] = result
        check(results)
    except StudyError as error:
        sys.exit(f"error: {error}")
    if not results.get(settings["baseline"], {}).keys() >= {seed for arm in results.values() for seed in arm}:
        sys.exit("error: there is nothing to compare with: let the main run under these seeds finish first")
    console = Console(width=200, highlight=False, record=True)
    for table in (*tables(settings, results), costs(grid[options.seeds[0]])):
        console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "study.txt").write_text(console.export_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
