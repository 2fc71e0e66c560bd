"""Of a recipe file, what the result of each stage depends on: what changes there undoes the stage."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from montessori_pl.batches.sources import DataSources
from montessori_pl.cli.trainer_arguments import pinned_arguments
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.pipeline.recipe import needs_teacher
from montessori_pl.run_directory.fingerprint import pinned
from montessori_pl.stages import Stage
from montessori_pl.worlds.names import with_versions

TAKES = {"data": DataSources}
"""The class that takes the settings of a section, where the section does not say so by `class_path`."""


def stage_settings(config: Mapping[str, Any], stages: Mapping[str, Stage]) -> dict[str, dict[str, Any]]:
    """For each stage, the settings that its result depends on.

    Args:
        config: the sections of a recipe file.
        stages: those of the section `recipe`.
    """

    @cache  # the files that a section names are read
    def section(name: str, trained: bool) -> Any:
        kept = pinned_arguments(config[name]) if name == "trainer" else config[name]
        return with_versions(pinned(kept, trained, TAKES.get(name)))

    pool: Mapping[str, Any] = config["teachers"]
    return {
        name: {
            "seed_everything": config["seed_everything"],
            f"recipe.{name}": with_versions(pinned(config["recipe"][name])),
            **{
                used: found
                for used in stage.uses
                if (used != "teacher" or needs_teacher(stage, pool))
                and (found := section(used, used in stage.trains and not stage.own_objective))
            },
            **{
                f"teachers.{name}": with_versions(pinned(pool[name], kind=PoolTeacher))
                for name in stage.teacher_names()
                if name in pool
            },
        }
        for name, stage in stages.items()
    }
