"""A preview: a few samples of each stage that writes, by the models and engines of the run; the run is left alone."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from montessori_pl.estimates.preview import StagePreview
from montessori_pl.pipeline.recipe import Step
from montessori_pl.pipeline.runner import Runner
from montessori_pl.stages.base import Kind


def preview_steps(runner: Runner, steps: Sequence[Step], num_prompts: int) -> list[StagePreview]:
    """Sample from each stage that writes, once for each name.

    Stages before it that have not finished are stood in for: the base for a model, the seed tasks for examples. Answers
    of an endpoint are not kept for the run.

    Args:
        runner: who would run the steps.
        steps: from `recipe.resolve_recipe`.
        num_prompts: completions of each stage, one for each prompt.

    Raises:
        ValueError: an engine or a model is not there.
    """
    first = {step.name: step for step in reversed(steps)}
    found = []
    for step in (step for step in steps if first[step.name] is step):
        with tempfile.TemporaryDirectory() as directory:
            started = time.monotonic()
            preview = step.stage.preview(runner.preview_context(step, Path(directory)), num_prompts)
        if preview is not None:
            seconds = time.monotonic() - started
            found.append(dataclasses.replace(preview, key=step.key, seconds=seconds, notes=_notes(runner, step)))
    return found


def _notes(runner: Runner, step: Step) -> list[str]:
    """What stands in for the stages that have not finished."""
    sentences = []
    for one in step.stage.reads():
        key = step.inputs[one.setting]
        if key is None or runner.run_directory.finished(key):
            continue
        if one.kind in (Kind.TEACHER, Kind.STUDENT):
            sentences.append(f"{key} has not been trained yet: the base {one.kind.value} writes here in its place.")
        elif one.kind is Kind.EXAMPLES and one.setting in ("seed_tasks", "examples", "instructions"):
            sentences.append(f"{key} has not been written yet: seed tasks stand in for its examples.")
        elif one.kind is Kind.ROUTING:
            sentences.append(f"{key} has not chosen yet: all teachers answer.")
    return sentences
