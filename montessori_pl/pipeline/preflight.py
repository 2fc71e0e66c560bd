"""Checks before anything runs, for mistakes that would otherwise show after days: data, models, engines, trainer."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from montessori_pl.batches.sources import ROLES
from montessori_pl.data.records import Example
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.models.loading import ModelSource, load_chat_template
from montessori_pl.pipeline.model_trial import Trial, by_section, trials, try_model
from montessori_pl.pipeline.recipe import Step, needs_teacher
from montessori_pl.pipeline.runner import Runner
from montessori_pl.pipeline.template_check import check_prompts, check_template
from montessori_pl.stages.base import Kind
from montessori_pl.stages.generate_responses import GenerateResponses
from montessori_pl.stages.recorded_examples import RecordedExamples


def preflight(runner: Runner, steps: Sequence[Step], dry_run: bool = False, elsewhere: bool = False) -> list[Trial]:
    """Check what the steps will need; nothing is sent or written.

    Args:
        runner: who will run them.
        steps: from `recipe.resolve_recipe`, those that are left.
        dry_run: whether they are only estimated, which needs no packages, keys and devices of engines, and loads no
            model.
        elsewhere: whether they are planned for another machine, whose trainer cannot be made here.

    Returns:
        the trials of models that have passed, for the run to remember.

    Raises:
        ValueError: something is not there or does not fit; the sentence begins with the section or the stage.
    """
    for one in runner.data.account().values():
        for note in one["notes"]:
            if runner.leads:
                runner.display.say(note)
    sources: dict[str, Sequence[Example]] = {
        f"data.{role}": runner.data.read(role) for role in ROLES if getattr(runner.data, role) is not None
    }
    runner.data.check_disjoint()
    sources |= _recorded(steps)
    models = {Kind.STUDENT: runner.student().source}
    if any(needs_teacher(step.stage, runner.pool) for step in steps):
        models[Kind.TEACHER] = runner.teacher().source
    for kind, source in models.items():
        with _named(kind.value):
            check_template(load_chat_template(source), sources if kind is Kind.STUDENT else {})
    if any(isinstance(step.stage, GenerateResponses) for step in steps):
        _check_prompts(runner, models, sources)
    asked = {name for step in steps for name in step.stage.teacher_names()}
    for name, member in runner.pool.items():
        with _named(f"teachers.{name}"):
            _check_engine((member.generation or runner.backend)(), member.source(), dry_run or name not in asked)
    for kind, source in models.items():
        if writing := [step for step in steps if _generates(step, kind, runner)]:
            engine = runner.backend()
            _refuse_what_is_trained(engine, writing)
            with _named("generation"):
                _check_engine(engine, source, dry_run)
    _check_ways_of_asking(runner, steps)
    looked_at: dict[str, RequestEstimator] = {}
    if not dry_run:
        for step in _first_of_each_stage(steps):
            with _named(f"recipe.{step.name}"):
                step.stage.check_environment()
                step.stage.check_inputs(dataclasses.replace(runner.estimate_context(step), models=looked_at))
    try:
        if not elsewhere:
            runner.trainer(callbacks=[])
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ValueError(f"trainer: {error}") from error
    wanted = trials(runner, steps) if runner.leads and not dry_run else []
    for section, of_section in by_section(wanted).items():
        with _named(section):
            try_model(of_section)
    return wanted


def _first_of_each_stage(steps: Sequence[Step]) -> Iterator[Step]:
    names = set()
    for step in steps:
        if step.name not in names:
            names.add(step.name)
            yield step


def _recorded(steps: Sequence[Step]) -> dict[str, list[Example]]:
    """What the recipe reads from files of its own."""
    found: dict[str, list[Example]] = {}
    for step in steps:
        if isinstance(step.stage, RecordedExamples):
            with _named(f"recipe.{step.name}"):
                found[f"recipe.{step.name}.source"] = step.stage.read().examples
    return found


def _check_prompts(
    runner: Runner, models: Mapping[Kind, ModelSource], sources: Mapping[str, Sequence[Example]]
) -> None:
    """Look at whether teachers can be asked what the sources ask: instructions with their system messages."""
    teachers = {f"teachers.{name}": (one.source(), one.generation) for name, one in runner.pool.items()}
    if Kind.TEACHER in models:
        teachers["teacher"] = models[Kind.TEACHER], None
    for section, (source, engine) in teachers.items():
        if (engine or runner.backend)().loads_weights:  # an endpoint has a template of its own
            with _named(section):
                check_prompts(load_chat_template(source), sources)


def _check_ways_of_asking(runner: Runner, steps: Sequence[Step]) -> None:
    for stage_name, stage in {step.name: step.stage for step in steps}.items():
        for name in stage.teacher_names():
            member = runner.pool.get(name)
            engine = ((member.generation if member is not None else None) or runner.backend)()
            with _named(f"recipe.{stage_name}"):
                stage.check_teacher(engine, member.source() if member is not None else runner.teacher().source)


def _check_engine(engine: GenerationBackend, source: ModelSource, offline: bool) -> None:
    if not offline:
        engine.check_environment(source)
    engine.check(source)


def _generates(step: Step, kind: Kind, runner: Runner) -> bool:
    """Whether the step asks models of this kind by the recipe's engine."""
    named = [one.name for one in step.stage.reads() if one.kind is kind]
    return "generation" in step.stage.uses and any(name not in runner.pool for name in named)


def _refuse_what_is_trained(engine: GenerationBackend, steps: Sequence[Step]) -> None:
    if engine.loads_weights:
        return
    for step in steps:
        models = [one for one in step.stage.reads() if one.kind in (Kind.STUDENT, Kind.TEACHER)]
        if any(step.inputs[one.setting] is not None for one in models):
            raise ValueError(
                f"recipe.{step.name} asks a model that the run trains, and {type(engine).__name__} cannot load "
                "its weights; name an engine that loads weights in the section generation, and use the endpoint for "
                "a teacher of the section teachers"
            )


@contextmanager
def _named(section: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if str(error).startswith(f"{section}: "):
            raise
        raise ValueError(f"{section}: {error}") from error
