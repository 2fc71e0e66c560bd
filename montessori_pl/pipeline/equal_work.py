"""Stages that would do the same work twice: another stage of the iteration has done it already.

Two arms of a recipe can meet: a router gives way to the best single teacher, and the student of its arm would learn
from the very examples from which another student has learned. A second training would take as long, and its student
would differ by the order of the examples alone, which is easily taken for an effect of the method.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from montessori_pl.pipeline.recipe import Step
from montessori_pl.run_directory.run_directory import RunDirectory


def equal_stage(
    run_directory: RunDirectory, step: Step, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> str | None:
    """The key of a finished stage that began before, whose result this step can take; none if it has to be run.

    Both have the same settings, and inputs of which at least one has another maker and the same content; see
    `Stage.input_content`.

    Args:
        run_directory: the run.
        step: what is about to be done.
        settings: the settings that its result depends on.
        inputs: what it reads, as the manifest has it: the stage's key, and digits of what it left.
    """
    contents = {name: _content(run_directory, step, name, source) for name, source in inputs.items()}
    if all(contents[name] == inputs[name] for name in inputs):
        return None
    free = [name for name in inputs if contents[name] != inputs[name]]
    work = _work(settings, step.name, free)
    for key, entry in run_directory.entries.items():
        if key == step.key:
            return None
        iteration, name = key.split("/")
        if (
            iteration != step.key.split("/")[0]
            or not run_directory.finished(key)
            or entry.inputs.keys() != inputs.keys()
        ):
            continue
        if _work(entry.settings, name, free) != work:
            continue
        theirs = {name: _content(run_directory, step, name, source) for name, source in entry.inputs.items()}
        if theirs == contents and any(_maker(entry.inputs[one]) != _maker(inputs[one]) for one in free):
            return key
    return None


def take_result(run_directory: RunDirectory, key: str, taken_from: str, but: str) -> None:
    """Put the artifacts of a finished stage, all but one file, into the directory of another one.

    Files are linked where the file system can: finished stages are never changed.

    Args:
        run_directory: the run.
        key: the stage that gets them.
        taken_from: the finished stage.
        but: name of the file that the stage writes itself.
    """
    source, target = run_directory.verify(taken_from), run_directory.directory(key)
    for name in run_directory.entries[taken_from].files:
        if name != but:
            _link(source / name, target / name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # from a session that was killed here
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _content(run_directory: RunDirectory, step: Step, setting: str, source: str) -> str:
    """What of this input counts: what the stage says, or else who left it and what."""
    key = _maker(source)
    known = run_directory.finished(key)
    return (step.stage.input_content(setting, run_directory.directory(key)) if known else None) or source


def _maker(source: str) -> str:
    return source.split(" ")[0]


def _work(settings: Mapping[str, Any], name: str, free: list[str]) -> str:
    """The settings of a stage without its name and without the names of these inputs."""
    stage = dict(settings[f"recipe.{name}"])
    arguments = {key: value for key, value in (stage.pop("init_args", None) or {}).items() if key not in free}
    others = {key: value for key, value in settings.items() if key != f"recipe.{name}"}
    return json.dumps([stage, arguments, others], sort_keys=True, default=str)
