"""Does one step predict many? The linear datamodeling score (arXiv 2303.14186) of influence and of its rivals.

    python benchmarks/datamodeling.py                                # 48 halves, the embedded classroom
    python benchmarks/datamodeling.py --config smollm2.yaml --out checkpoints/datamodeling_smollm2 --prompts 16

The recipe runs up to its stage `influence`. Then random halves of the examples that were scored there are learned, each
by students of its own under several seeds, in the way of the recipe's last student. A score predicts the reference loss
that a half leaves as minus the sum over its examples; the linear datamodeling score is the rank correlation, over
halves, of what is predicted and what is measured. A score that knew the truth would reach the square root of the
reliability of what is measured, which is printed below: with other seeds a half leaves another loss.

Three thirds are learned as well, of the highest, the middle and the lowest exact influence. Starting the same command
again continues.

    <out>/scores, <out>/halves           the run directories, each with its `.log`
    <out>/datamodeling.txt, .json        what was printed; the numbers behind it

Intervals are percentiles of a bootstrap over halves. They know nothing of other pools of examples.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from study.runs import Run, override

from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.data.records import Example, Score, read_records
from montessori_pl.pairing import mean_scores
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.stats.bootstrap import percentile_interval
from montessori_pl.stats.correlation import spearman
from montessori_pl.stats.means import MeanInterval, mean_interval

SCORED = "influence"
"""The stage of the recipe whose examples are taken."""
SIGNALS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "exact": ("InfluenceProbeCallback", {"method": "exact"}),
    "first_order": ("InfluenceProbeCallback", {"method": "first_order", "refine": 0.0, "calibration_examples": 4}),
    "cosine": ("GradientCosineSignal", {}),
    "easy": ("TrainingLossSignal", {"direction": "low"}),
    "random": ("RandomSignal", {}),
    "late": ("InfluenceProbeCallback", {"method": "exact"}),
}
"""The signals by stage; `late` looks at a student that has learned all of the examples, the others at the recipe's."""
TITLES = {
    "exact": "influence, exact",
    "first_order": "influence, first order",
    "cosine": "gradient cosine (LESS)",
    "late": "influence on a student that knows all of it",
    "both": "mean of both students",
    "easy": "low loss",
    "random": "random",
}
THIRDS = ("best", "middle", "worst")


def scoring_run(options: argparse.Namespace) -> Run:
    """The recipe up to its influence, with the other signals behind it."""
    config = yaml.safe_load((shipped_configs() / options.config).read_text(encoding="utf-8"))
    config = json.loads(json.dumps(config))  # what the file writes once and uses twice becomes two
    names = list(config["recipe"])
    stages = {name: config["recipe"][name] for name in names[: names.index(SCORED) + 1]}
    scoring = stages[SCORED]["init_args"]
    pool = scoring["examples"]
    lr = scoring["signal"]["init_args"].get("lr")
    for name, (signal, arguments) in SIGNALS.items():
        given = {"lr": lr, **arguments} if signal == "InfluenceProbeCallback" else arguments
        student = {"student": "all_of_it"} if name == "late" else {}
        if name == "late":  # not before: others look at the `latest` student
            trained = config["recipe"]["trained"]
            stages["all_of_it"] = {
                **trained,
                "init_args": {**trained["init_args"], "examples": pool, "all_weights": False},
            }
        stages[name] = {
            "class_path": "ScoreExamples",
            "init_args": scoring | student | {"signal": {"class_path": f"callbacks.{signal}", "init_args": given}},
        }
    config |= {"run": str(options.out / "scores"), "seed_everything": options.seed, "iterations": 1, "recipe": stages}
    override(config, f"recipe.{pool}.num_prompts", options.prompts)
    return written(options.out / "scores", config, options)


def halves_run(options: argparse.Namespace, scores: Run, parts: Mapping[str, Sequence[Example]]) -> Run:
    """A student of each part under each seed, and the loss of all."""
    config = json.loads(json.dumps(scores.config))
    trained = yaml.safe_load((shipped_configs() / options.config).read_text(encoding="utf-8"))["recipe"]["trained"]
    stages: dict[str, Any] = {}
    for name, examples in parts.items():
        source = options.out / "parts" / f"{name}.jsonl"
        source.parent.mkdir(parents=True, exist_ok=True)
        write_records(source, examples)  # the same ones again where the study goes on
        stages[name] = {"class_path": "RecordedExamples", "init_args": {"source": str(source.absolute())}}
        for repeat in range(options.repeats):
            stages[f"{name}_{repeat}"] = trained | {"init_args": trained["init_args"] | {"examples": name}}
    students = [f"{name}_{repeat}" for name in parts for repeat in range(options.repeats)]
    stages["evaluation"] = {
        "class_path": "Evaluate",
        "init_args": {"students": students, "evaluators": [{"class_path": "ResponseLoss"}]},
    }
    config |= {"run": str(options.out / "halves"), "recipe": stages}
    return written(options.out / "halves", config, options)


def written(path: Path, config: dict[str, Any], options: argparse.Namespace) -> Run:
    """A run of this configuration, whose file is written beside its directory."""
    for name, value in options.set:
        section, _, rest = name.partition(".")
        if section != "recipe" or rest.partition(".")[0] in config["recipe"]:  # a stage of the other run
            override(config, name, yaml.safe_load(value))
    override(config, "trainer.logger", False)
    file = path.with_name(path.name + ".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False), encoding="utf-8")
    return Run(path=path, file=file, overrides={})


def stage_of(run: Run, name: str) -> Path:
    """The directory of a stage."""
    return run.path / "iteration_1" / name


def draw_parts(
    examples: Sequence[Example], exact: Mapping[str, float], halves: int, seed: int
) -> dict[str, list[Example]]:
    """Random halves, and thirds by exact influence; each in the order of the examples."""
    rng = random.Random(f"{seed}/halves")
    places = range(len(examples))
    chosen = {f"half_{n:02d}": sorted(rng.sample(places, len(examples) // 2)) for n in range(halves)}
    order = sorted(places, key=lambda place: -exact[examples[place].id])
    size = len(examples) // 3
    middle = (len(examples) - size) // 2
    for name, start in zip(THIRDS, (0, middle, len(examples) - size), strict=True):
        chosen[name] = sorted(order[start : start + size])
    return {name: [examples[place] for place in own] for name, own in chosen.items()}


def predictions(parts: Sequence[Sequence[Example]], scores: Mapping[str, float]) -> list[float]:
    """Minus the sum of the scores of each part: what is left of the reference loss, up to scale and offset."""
    return [-math.fsum(scores[example.id] for example in part) for part in parts]


def datamodeling_score(predicted: Sequence[float], losses: np.ndarray, seed: int = 0) -> MeanInterval:
    """The rank correlation over halves of what is predicted and the mean measured loss, with its interval.

    Args:
        predicted: one number for each half.
        losses: shape (halves, repeats).
        seed: of the bootstrap over halves.
    """
    measured = losses.mean(axis=1)
    value = spearman(predicted, measured.tolist())
    return percentile_interval(value, _bootstrap(np.array(predicted), measured, seed))


def reliability(losses: np.ndarray, seed: int = 0) -> MeanInterval:
    """The rank correlation of the mean of half of the repeats with that of the others, stepped up to all of them.

    By the formula of Spearman and Brown: with correlation r between two halves of a measurement, the whole correlates
    2r / (1 + r) with another whole. A score that knew the truth would reach the square root of that.
    """
    middle = losses.shape[1] // 2
    one, other = losses[:, :middle].mean(axis=1), losses[:, middle : 2 * middle].mean(axis=1)
    stepped = lambda r: 2 * r / (1 + r)  # noqa: E731
    value = stepped(spearman(one.tolist(), other.tolist()))
    return percentile_interval(value, stepped(_bootstrap(one, other, seed)))


def _bootstrap(one: np.ndarray, other: np.ndarray, seed: int, number: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(one), size=len(one)) for _ in range(number))
    return np.array([spearman(one[draw].tolist(), other[draw].tolist()) for draw in draws])


def shown(value: MeanInterval) -> str:
    """A number with the ends of its interval."""
    return f"{value.mean:.3f}" + (f" [{value.ends[0]:.3f}, {value.ends[1]:.3f}]" if value.ends else "")


def main() -> None:
    """Run what is left of it, and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="iter1.yaml", help="a shipped recipe with stages `influence` and `trained`")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/datamodeling"), help="where the runs lie")
    parser.add_argument("--seed", type=int, default=42, help="of the recipe and of the halves")
    parser.add_argument("--prompts", type=int, default=100, help="prompts whose completions are scored")
    parser.add_argument("--halves", type=int, default=48, help="random halves of them")
    parser.add_argument("--repeats", type=int, default=2, help="students of each part; an even number")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("SETTING", "VALUE"), help="another setting of both runs"
    )
    options = parser.parse_args()
    if options.repeats < 2 or options.repeats % 2:
        parser.error(f"--repeats must be an even number from 2 on, found {options.repeats}")
    scoring = scoring_run(options)
    if why := scoring.fit():
        sys.exit(f"error: {scoring.path}: {why}")
    pool = scoring.config["recipe"][SCORED]["init_args"]["examples"]
    kept = {name: read_records(stage_of(scoring, name) / "scores.jsonl", Score) for name in SIGNALS}
    kept["both"] = list(mean_scores([{one.id: one for one in kept[name]} for name in ("exact", "late")]).values())
    scores = {name: {one.id: one.value for one in records} for name, records in kept.items()}
    common = set.intersection(*(set(one) for one in scores.values()))
    examples = [e for e in read_records(stage_of(scoring, pool) / "examples.jsonl", Example) if e.id in common]
    parts = draw_parts(examples, scores["exact"], options.halves, options.seed)
    training = halves_run(options, scoring, parts)
    if why := training.fit():
        sys.exit(f"error: {training.path}: {why}")
    found = json.loads((stage_of(training, "evaluation") / "metrics.json").read_text(encoding="utf-8"))["students"]
    losses = {
        name: [found[f"{name}_{repeat}"]["reference_loss"] for repeat in range(options.repeats)] for name in parts
    }
    halves = [name for name in parts if name not in THIRDS]
    measured = np.array([losses[name] for name in halves])
    report(options, scores, {name: parts[name] for name in halves}, measured, losses)


def report(
    options: argparse.Namespace,
    scores: Mapping[str, Mapping[str, float]],
    halves: Mapping[str, Sequence[Example]],
    measured: np.ndarray,
    losses: Mapping[str, Sequence[float]],
) -> None:
    """Print the tables, and write them and their numbers."""
    predicted = {name: predictions(list(halves.values()), scores[name]) for name in TITLES}
    console = Console(width=120, highlight=False, record=True)
    size = len(next(iter(halves.values())))
    table = Table(
        title=f"{len(halves)} halves of {size} examples, {options.repeats} students each", title_justify="left"
    )
    table.add_column("score")
    table.add_column("linear datamodeling score")
    for name, title in TITLES.items():
        table.add_row(title, shown(datamodeling_score(predicted[name], measured)))
    ceiling = reliability(measured)
    table.add_section()
    table.add_row("reliability of what is measured", shown(ceiling))
    table.add_row("its square root, the most that can be reached", f"{max(0.0, ceiling.mean) ** 0.5:.3f}")
    console.print(table)
    thirds = Table(title="thirds by exact influence", title_justify="left")
    thirds.add_column("learned")
    thirds.add_column("reference loss")
    for name in THIRDS:
        thirds.add_row(name, shown(mean_interval(list(losses[name]))))
    of_half = measured.mean(axis=1)
    spread = f"standard deviation {of_half.std(ddof=1):.3f}, {of_half.min():.3f} to {of_half.max():.3f}"
    thirds.add_row("a random half", f"{of_half.mean():.3f}, {spread}")
    console.print(thirds)
    (options.out / "datamodeling.txt").write_text(console.export_text(), encoding="utf-8")
    numbers = {"predicted": predicted, "reference_loss": losses}
    (options.out / "datamodeling.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
