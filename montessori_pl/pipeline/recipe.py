"""A recipe: the named stages of one iteration, resolved into the steps of all iterations and checked."""

import dataclasses
from collections.abc import Collection, Mapping

from montessori_pl.data.names import check_name
from montessori_pl.generation.request_journal import RESERVED
from montessori_pl.stages.base import BASE, ITSELF, LATEST, Input, Kind, Stage


class RecipeError(ValueError):
    """What is wrong with a recipe, in a sentence for the user."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage in one iteration."""

    key: str
    """`iteration_1/warmup`: directory, manifest key, and the word in logs."""
    name: str
    """The stage's name in the recipe."""
    iteration: int
    """From 1."""
    stage: Stage
    """What is done."""
    inputs: Mapping[str, str | None]
    """For each setting that names a stage, the key of the step that it reads; none for the base model."""


def resolve_recipe(stages: Mapping[str, Stage], iterations: int, pool: Collection[str] = ()) -> list[Step]:
    """The steps of all iterations in order, each with what it reads.

    A name stands for the last step of that name before the one that reads it, in this iteration or an earlier one.
    From the second iteration on, the teacher therefore goes on from the previous iteration's, influence is measured on
    the previous iteration's student, and stages of the first iteration only are read where they were left.

    Args:
        stages: the stages by name, in order.
        iterations: how often they are gone through.
        pool: names of teachers that no stage trains; they can be asked wherever a teacher can.

    Raises:
        RecipeError: the recipe is empty, a name is no name or stands for two things, or a stage reads what no step
            before it produces.
    """
    if not stages:
        raise RecipeError("the recipe has no stages")
    try:
        for name in stages:
            check_name(name, "a stage", taken=(LATEST, BASE))
        for name in pool:
            check_name(name, "a teacher", taken=(LATEST, BASE, *RESERVED))
    except ValueError as error:
        raise RecipeError(str(error)) from None
    for name in stages:
        if name in pool:
            raise RecipeError(
                f"{name!r} is a stage of the recipe and a teacher of the section teachers; rename one of them"
            )
    if iterations < 1:
        raise RecipeError(f"iterations must be at least 1, found {iterations}")
    steps: list[Step] = []
    for iteration in range(1, iterations + 1):
        for name, stage in stages.items():
            if iteration > 1 and stage.first_iteration_only:
                continue
            inputs = {one.setting: _resolve(one, name, stages, steps, pool) for one in stage.reads()}
            steps.append(Step(f"iteration_{iteration}/{name}", name, iteration, stage, inputs))
    return steps


def _resolve(
    wanted: Input, reader: str, stages: Mapping[str, Stage], earlier: list[Step], pool: Collection[str]
) -> str | None:
    """The key of the step that this input means; none for a model that no stage trains, or for what need not be."""
    if wanted.kind is Kind.TEACHER and wanted.name in pool:
        return None
    is_model = wanted.kind in (Kind.STUDENT, Kind.TEACHER)
    fitting = [step for step in earlier if step.stage.produces is wanted.kind]
    if is_model and wanted.name == BASE:
        return None
    if is_model and wanted.name == LATEST:
        return fitting[-1].key if fitting else None
    name = reader if wanted.name == ITSELF else wanted.name
    found = [step for step in fitting if step.name == name]
    if found:
        return found[-1].key
    if wanted.optional and name in stages and stages[name].produces is wanted.kind:
        return None
    names = dict.fromkeys(step.name for step in fitting)
    others = [*([LATEST, BASE] if is_model else []), *(pool if wanted.kind is Kind.TEACHER else [])]
    exist = ", ".join([*names, *others]) or "none"
    if wanted.name in stages and stages[wanted.name].produces is not wanted.kind:
        why = f"stage {wanted.name!r} produces {stages[wanted.name].produces.value}"
    elif wanted.name in stages:
        why = f"stage {wanted.name!r} comes later"
    else:
        why = "there is no such stage"
    raise RecipeError(
        f"recipe.{reader}: {wanted.setting.split('.')[0]} names {wanted.name!r}, but {why}; "
        f"what can be read there, {wanted.kind.value} of stages before it: {exist}"
    )


def needs_teacher(stage: Stage, pool: Collection[str]) -> bool:
    """Whether a stage depends on the section `teacher`; one that asks only teachers of the pool does not."""
    asked = [one.name for one in stage.reads() if one.kind is Kind.TEACHER]
    return "teacher" in stage.uses and not (asked and set(asked) <= set(pool))
