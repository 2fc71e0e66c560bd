"""One run of a comparison: what its directory says, in numbers that can be averaged over seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from montessori_pl.report.summary import summarize
from montessori_pl.run_directory.run_directory import open_run

SEED = "seed_everything"
TOKENS = "generated_tokens"
"""How a stage that counts what its model has written calls the number of tokens."""


class CompareError(ValueError):
    """Why runs cannot be compared, in a sentence for the user."""


@dataclass(frozen=True)
class Run:
    """What is compared of one run directory."""

    root: Path
    seed: int
    settings: str
    """Those that the stages are pinned to, apart from the seed, as one text."""
    iteration: int
    """The last that has begun."""
    students: tuple[str, ...]
    """Those of the last iteration's evaluation; none before it has finished."""
    student: str
    """The one that is compared; empty where the evaluation has none of this name."""
    scored_by: str
    """Name of the last stage that scored; empty if none did."""
    measures: dict[str, float]
    """The numbers; none before the evaluation has finished, for then not all of them are final."""
    warnings: tuple[str, ...]
    """What the stages warn of."""
    last_stage: str
    """Key of the stage that finished last; empty before the first."""


def read_run(root: Path, student: str | None) -> Run:
    """Read a run directory.

    Args:
        root: the directory.
        student: the one whose numbers are read; none: the last of the evaluation.

    Raises:
        RunDirectoryError: it is no run directory, or its manifest or the numbers of a stage are damaged.
        CompareError: no stage of it has begun, or a number is missing.
    """
    run_directory = open_run(root)
    summary = read_summary(root)
    begun = {key: entry.settings for key, entry in run_directory.entries.items() if run_directory.begun(key)}
    seeds = [settings[SEED] for settings in begun.values() if SEED in settings]
    if not seeds:
        raise CompareError(f"no stage of {root} has begun; leave it out")
    iteration = max(_iteration(key) for key in begun)
    evaluations = [one for key, one in summary["evaluations"].items() if _iteration(key) == iteration]
    evaluated = evaluations[-1] if evaluations else {}
    chosen = student or next(reversed(evaluated), "")
    influence = list(summary["influence"])[-1:]
    finished = [key for key in begun if run_directory.finished(key)]
    return Run(
        root=root,
        seed=int(seeds[0]),
        settings=json.dumps(
            {key: {name: value for name, value in one.items() if name != SEED} for key, one in begun.items()},
            sort_keys=True,
        ),
        iteration=iteration,
        students=tuple(evaluated),
        student=chosen if chosen in evaluated else "",
        scored_by=influence[0].partition("/")[2] if influence else "",
        measures={**evaluated.get(chosen, {}), **_around(summary, influence)} if evaluated else {},
        warnings=tuple(summary["warnings"]),
        last_stage=finished[-1] if finished else "",
    )


def read_summary(root: Path) -> dict[str, Any]:
    """The summary of a run directory, as `summarize` makes it.

    Raises:
        RunDirectoryError: the numbers of a stage are missing or changed.
        CompareError: a number is missing.
    """
    try:
        return summarize(root)
    except KeyError as error:
        raise CompareError(f"the metrics of {root} lack {error}; leave it out") from error


def _around(summary: dict[str, Any], scored: Sequence[str]) -> dict[str, float]:
    """The numbers that are not the student's: the last influence, and what the run cost."""
    numbers = {"seconds": sum(stage["seconds"] for stage in summary["stages"].values())}
    stages = [*summary["data"].values(), *summary["training"].values()]
    if tokens := [metrics[TOKENS] for metrics in stages if TOKENS in metrics]:
        numbers[TOKENS] = sum(tokens)
    for key in scored:
        numbers["influence"] = summary["influence"][key]["mean"]
        numbers["positive_rate"] = summary["influence"][key]["positive_rate"]
    return numbers


def _iteration(key: str) -> int:
    """`iteration_2/warmup` -> 2."""
    return int(key.partition("/")[0].removeprefix("iteration_"))
