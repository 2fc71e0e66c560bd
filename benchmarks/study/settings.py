"""What is decided before a study runs: worlds, seeds, arms and comparisons, from one YAML file.

Knows nothing about what a setting of a recipe means; the program itself refuses an override that it does not know.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from montessori_pl.cli.recipe_files import shipped_configs
from study import StudyError


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of making training data."""

    name: str
    """Its run directories are called so."""
    title: str
    """How tables and figures call it."""
    config: str
    """A shipped recipe."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings by their dotted names on the program's command line."""
    iterations: int = 1
    """How often the recipe is gone through; what is measured is the last time."""
    seeds: tuple[int, ...] = ()
    """The arm is run under these of the study's seeds only; empty: under all."""
    oracle: bool = False
    """What its student learns is drawn from the reference set's own families of tasks, evenly and with right answers,
    instead of being written: how much is possible."""

    @property
    def last(self) -> str:
        """Directory of the last iteration within a run."""
        return f"iteration_{self.iterations}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole study."""

    worlds: tuple[int, ...]
    """Seeds of the classrooms."""
    seeds: tuple[int, ...]
    """Seeds of the runs in each world."""
    student_seeds: int
    """Students that are trained on each arm's data, each from a seed of its own."""
    arms: dict[str, Arm]
    """All arms, in the order in which they are run and shown."""
    chosen: tuple[str, ...]
    """Those that are run."""
    main: str
    """The arm on whose warm student influence is measured."""
    baseline: str
    """The arm without alignment, with which all others are compared."""
    control: str
    """The arm that is aligned to as many preferences as the main arm's, but without information."""
    compare: tuple[tuple[str, str], ...]
    """Pairs of an arm and its rival, for the tables."""
    overdosed: tuple[str, ...]
    """Arms that are aligned far too much, to see whether it is noticed."""

    def restricted(self, worlds: Sequence[int], seeds: Sequence[int], arms: Sequence[str]) -> "Settings":
        """A part of the study; what is empty is not restricted.

        Raises:
            StudyError: there is no such arm.
        """
        for name in arms:
            _known(name, self.arms, "--arms")
        return dataclasses.replace(
            self,
            worlds=tuple(worlds) or self.worlds,
            seeds=tuple(seeds) or self.seeds,
            chosen=tuple(name for name in self.arms if name in arms or not arms),
        )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons between arms that are run."""
        return [pair for pair in self.compare if set(pair) <= set(self.chosen)]

    @property
    def oracle(self) -> str:
        """The arm that is run and shows how much is possible; empty if there is none."""
        return next((name for name in self.chosen if self.arms[name].oracle), "")

    def titles(self, names: Sequence[str]) -> list[str]:
        """How these arms are called."""
        return [self.arms[name].title for name in names]


def read_settings(path: Path) -> Settings:
    """Read and check the file.

    Raises:
        StudyError: it is no such file, or speaks of an arm or a recipe that does not exist.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    fields = {field.name for field in dataclasses.fields(Settings)} - {"chosen"}
    _keys(content, fields, fields, str(path))
    arms = {name: _arm(name, given, path) for name, given in content["arms"].items()}
    for arm in arms.values():
        if not set(arm.seeds) <= set(content["seeds"]):
            raise StudyError(f"{path}: arm {arm.name!r} has seeds {list(arm.seeds)}; the study has {content['seeds']}")
    for key in ("main", "baseline", "control"):
        _known(content[key], arms, f"{path}: {key}")
    for pair in content["compare"]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise StudyError(f"{path}: compare takes pairs [arm, rival], found {pair!r}")
        for name in pair:
            _known(name, arms, f"{path}: compare")
    for name in content["overdosed"]:
        _known(name, arms, f"{path}: overdosed")
    for key in ("worlds", "seeds"):
        if not content[key] or not all(isinstance(one, int) and one >= 0 for one in content[key]):
            raise StudyError(f"{path}: {key} must be a list of numbers from 0, found {content[key]!r}")
    if not isinstance(content["student_seeds"], int) or content["student_seeds"] < 1:
        raise StudyError(f"{path}: student_seeds must be at least 1, found {content['student_seeds']!r}")
    return Settings(
        worlds=tuple(content["worlds"]),
        seeds=tuple(content["seeds"]),
        student_seeds=content["student_seeds"],
        arms=arms,
        chosen=tuple(arms),
        main=content["main"],
        baseline=content["baseline"],
        control=content["control"],
        compare=tuple((ours, rival) for ours, rival in content["compare"]),
        overdosed=tuple(content["overdosed"]),
    )


def _arm(name: str, given: Any, path: Path) -> Arm:
    where = f"{path}: arm {name!r}"
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise StudyError(f"{where} becomes a directory: use letters, digits and '_'")
    _keys(given, {"title", "config"}, {"title", "config", "overrides", "iterations", "seeds", "oracle"}, where)
    if not (shipped_configs() / given["config"]).is_file():
        names = ", ".join(sorted(one.name for one in shipped_configs().glob("*.yaml")))
        raise StudyError(f"{where} has the recipe {given['config']!r}; those that ship are: {names}")
    arm = Arm(name, **given | {"seeds": tuple(given.get("seeds", ()))})
    if not isinstance(arm.overrides, dict):
        raise StudyError(f"{where}: overrides must be a mapping of dotted names to values, found {arm.overrides!r}")
    if not isinstance(arm.oracle, bool):
        raise StudyError(f"{where}: oracle must be true or false, found {arm.oracle!r}")
    if not isinstance(arm.iterations, int) or arm.iterations < 1:
        raise StudyError(f"{where}: iterations must be at least 1, found {arm.iterations!r}")
    return arm


def _keys(content: Any, needed: set[str], allowed: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise StudyError(f"{where} must be a mapping, found {content!r}")
    if missing := sorted(needed - content.keys()):
        raise StudyError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(str(key) for key in content.keys() - allowed):
        raise StudyError(f"{where} has no setting {', '.join(unknown)}; there are: {', '.join(sorted(allowed))}")


def _known(name: Any, arms: dict[str, Arm], where: str) -> None:
    if name not in arms:
        raise StudyError(f"{where} names the arm {name!r}; there are: {', '.join(arms)}")
