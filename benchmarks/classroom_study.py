"""Does Montessori-Instruct beat Self-Instruct, random preferences and itself without its parts, on the classroom?

    python benchmarks/classroom_study.py --jobs 2
    python benchmarks/classroom_study.py --worlds 0 --seeds 0 --arms self_instruct montessori random

What is compared stands in `classroom_study.yaml`. For each world and seed, a *cell*, each *arm* runs a shipped recipe
with some settings changed, through the program's own command line. All students learn from equally many examples in
equally many steps; whatever equals a reference or test item has been dropped. Both are checked, not assumed. What two
arms do alike is done once and copied. Starting the same command again continues the study. Figures need matplotlib
(`pip install '.[dev]'`).

    <out>/classroom-<world>-<fingerprint>/seed_<seed>/<arm>/     the run directories (see `study/runs.py`)
    <out>/study.txt, *.png                                       what was printed, and the figures
    <results>/world_<world>/seed_<seed>.json                     with --results: what a finished cell has shown

Knows nothing about how a recipe works: it reads manifests, metrics and records.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from study import StudyError
from study.checks import check_cell
from study.comparisons import collapsed, compare
from study.figures import draw
from study.kept import CellResult, identity, keep_result, kept_result, result_file
from study.measures import Cell, measure
from study.runs import COUNTS, CellRuns, Run, cell_directory
from study.settings import Settings, read_settings
from study.tables import print_study

from montessori_pl.classroom import resolve
from montessori_pl.data.records import Example, read_records

SETTINGS = Path(__file__).with_suffix(".yaml")
WIDTH = 150
"""Columns of what is printed; more where there are many arms."""


def run_cell(runs: CellRuns) -> CellResult:
    """Run, check and measure all arms in one world under one seed; an arm that fails does not stop the others."""
    donors: list[Run] = []
    failed = {}
    arms = [runs.settings.arms[name] for name in runs.settings.chosen]
    for arm in (arm for arm in arms if not arm.seeds or runs.seed in arm.seeds):
        start = time.monotonic()
        failed[arm.name] = runs.fit(arm, donors)
        how = "FAILED" if failed[arm.name] else "done"
        seconds = time.monotonic() - start
        print(
            f"world {runs.world}, seed {runs.seed}, {arm.name}: {how} in {seconds:.0f} s", file=sys.stderr, flush=True
        )
    finished = [runs.settings.arms[name] for name, why in failed.items() if not why]
    roles = ("reference", "test")
    held_out = [one for role in roles for one in read_records(resolve(f"classroom@{runs.world}/{role}"), Example)]
    checks = check_cell(runs, finished, held_out)
    cells = {arm.name: measure(runs, arm) for arm in finished}
    return [cells.get(name) or Cell(runs.world, runs.seed, name, failed=why) for name, why in failed.items()], checks


def run_study(
    settings: Settings, out: Path, counts: str, jobs: int, copy: bool, results: Path | None = None
) -> CellResult:
    """Run all cells that are not kept, some at a time; returns all in order, and what was checked."""
    places = [(world, seed) for world in settings.worlds for seed in settings.seeds]
    wanted = {place: identity(settings, counts, *place) for place in places}
    found = {
        place: result
        for place in places
        if results is not None and (result := kept_result(result_file(results, *place), wanted[place])) is not None
    }
    left = [place for place in places if place not in found]
    for world in dict.fromkeys(world for world, _ in left):
        cell_directory(out, world, 0)  # built once, before several processes ask for it

    def run(place: tuple[int, int]) -> CellResult:
        result = run_cell(CellRuns(settings, cell_directory(out, *place), *place, counts, copy))
        if results is not None:
            keep_result(result_file(results, *place), result, wanted[place])
        return result

    with ThreadPoolExecutor(jobs) as pool:
        found |= dict(zip(left, pool.map(run, left), strict=True))
    checks = sum((Counter(found[place][1]) for place in places), Counter[str]())
    return [cell for place in places for cell in found[place][0]], dict(checks)


def versions() -> dict[str, str]:
    """Python and the packages on which the numbers depend."""
    names = ("montessori-pl", "torch", "transformers", "lightning", "peft")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def as_json(cells: Sequence[Cell], settings: Settings) -> dict[str, Any]:
    """The cells and all comparisons: those of the settings, and of every arm with the baseline."""
    pairs = [*settings.pairs, *((name, settings.baseline) for name in settings.chosen if name != settings.baseline)]
    return {
        "settings": dataclasses.asdict(settings),
        "versions": versions(),
        "cells": [dataclasses.asdict(cell) for cell in cells],
        "comparisons": [{**dataclasses.asdict(one), "wins": one.wins} for one in compare(cells, dict.fromkeys(pairs))],
        "collapsed": [[cell.world, cell.seed, cell.arm] for cell in collapsed(cells, settings.baseline)],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="what is compared")
    parser.add_argument("--worlds", type=int, nargs="+", default=[], help="only these worlds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="only these seeds")
    parser.add_argument("--arms", nargs="+", default=[], help="only these arms")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/classroom_study"), help="where the runs lie")
    parser.add_argument("--results", type=Path, help="where results are kept: cells that lie there are not run again")
    parser.add_argument("--counts", choices=COUNTS, default="full", help="small: only try the machinery out")
    parser.add_argument("--json", type=Path, help="write the cells and the comparisons there")
    parser.add_argument("--figures", type=Path, help="a directory to copy the figures to")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; each takes one core")
    parser.add_argument("--no-copy", action="store_true", help="do shared stages in each arm, and so check more")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print and draw it.

    Args:
        arguments: the command line without the script's name; none takes the process's own.
    """
    options = _options(arguments)
    try:
        settings = read_settings(options.settings).restricted(options.worlds, options.seeds, options.arms)
        cells, checks = run_study(
            settings, options.out, options.counts, options.jobs, not options.no_copy, options.results
        )
    except StudyError as error:
        sys.exit(f"error: {error}")
    console = Console(width=max(WIDTH, 26 + 16 * len(settings.chosen)), highlight=False, record=True)
    print_study(console, cells, settings)
    console.print(", ".join(f"{name} {version}" for name, version in versions().items()))
    console.print(
        f"checked in {checks['cells']} cells: equal numbers of training examples and steps, equal settings of the "
        f"students' training, equal base student, one warm student; {checks.get('shared files', 0)} files of shared "
        f"stages equal; {checks['examples']} generated examples, of which none is a reference or test item"
    )
    failed = [cell for cell in cells if cell.failed]
    for cell in failed:
        words = f"FAILED: world {cell.world}, seed {cell.seed}, {cell.arm}: {cell.failed}"
        console.print(words, markup=False)
    lines = (line.rstrip() for line in console.export_text().splitlines())
    options.out.mkdir(parents=True, exist_ok=True)  # where all results were kept, nothing has been run
    (options.out / "study.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for figure in draw(cells, settings, options.out):
        if options.figures:
            options.figures.mkdir(parents=True, exist_ok=True)
            shutil.copy(figure, options.figures)
    if options.json:
        content = {"counts": options.counts, "checks": checks, **as_json(cells, settings)}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
