"""Results that are kept apart from the runs: small files, with which a study goes on on another machine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.run_directory.atomic import write_atomically
from montessori_pl.worlds.names import with_versions
from study import StudyError
from study.measures import Cell
from study.settings import Settings

CellResult = tuple[list[Cell], dict[str, int]]
"""The arms of a cell, and how much of it was checked."""


def result_file(directory: Path, world: int, seed: int) -> Path:
    """Where a cell's result is kept."""
    return directory / f"world_{world}" / f"seed_{seed}.json"


def identity(settings: Settings, counts: str, world: int, seed: int) -> dict[str, Any]:
    """All that decides what a cell shows, but for the program itself: its world, and its arms with their recipes."""
    arms = {}
    for name in settings.chosen:
        if settings.arms[name].seeds and seed not in settings.arms[name].seeds:
            continue
        arm = dataclasses.asdict(settings.arms[name])
        del arm["title"], arm["seeds"]
        recipe = (shipped_configs() / settings.arms[name].config).read_text(encoding="utf-8")
        arms[name] = {**arm, "recipe": yaml.safe_load(recipe)}
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                "world": with_versions(f"classroom@{world}/teacher"),
                "counts": counts,
                "student_seeds": settings.student_seeds,
                "main": settings.main,
                "arms": arms,
            }
        )
    )
    return found


def kept_result(path: Path, wanted: dict[str, Any]) -> CellResult | None:
    """What is kept of a cell; none where nothing is.

    Raises:
        StudyError: it is the result of other settings.
    """
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["settings"] != wanted:
        raise StudyError(f"{path} holds the result of other settings; give another --results, or delete the file")
    return [Cell(**{**one, "students": tuple(one["students"])}) for one in kept["cells"]], kept["checks"]


def keep_result(path: Path, result: CellResult, wanted: dict[str, Any]) -> None:
    """Keep it, unless an arm has failed: the same command then tries again."""
    cells, checks = result
    if any(cell.failed for cell in cells):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": wanted, "checks": checks, "cells": [dataclasses.asdict(cell) for cell in cells]}
    write_atomically(path, json.dumps(content) + "\n")
