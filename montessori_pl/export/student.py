"""A trained student as a directory of its own: weights, tokenizer with the chat template, and a model card.

Transformers, PEFT and vLLM load it, without this program and without the run.
"""

import json
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from montessori_pl import __version__
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.markup import code_span, in_markdown
from montessori_pl.data.text import printable
from montessori_pl.export.card import CARD
from montessori_pl.export.markdown import code, prose, table
from montessori_pl.export.source import (
    STUDENT,
    ExportError,
    FinishedStage,
    FinishedStep,
    finished_stage,
    settings_digest,
    steps_to,
)
from montessori_pl.models.loading import ModelSource, holds_adapter, load_model, load_tokenizer
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.worlds.names import locate_backbone

WEIGHTS = "weights"
"""Directory of a stage with what it has trained."""
BASE = "base"
"""How evaluations call the model before any training."""
_FINGERPRINT = re.compile(r" \((version|content) \w+\)$")
"""What stands in the manifest behind the name of a model or a file."""


@dataclass(frozen=True)
class Student:
    """A student that a stage has trained, with what the card says of it."""

    run: Path
    """The run directory."""
    stage: FinishedStage
    """What trained it."""
    backbone: str
    """What it was trained from, as the recipe names it."""
    model: Mapping[str, Any]
    """The settings of the student."""
    results: Mapping[str, Mapping[str, float]]
    """What evaluations have found, of it and of the base."""
    steps: Sequence[FinishedStep]
    """What led to it, itself included."""
    settings_digest: str
    """Stands for the settings of all these, seeds included."""
    merge: bool
    """Whether an adapter is added to its base, which makes a whole model."""

    @property
    def weights(self) -> Path:
        """An adapter, or a whole model without a tokenizer."""
        return self.stage.directory / WEIGHTS

    @property
    def stays_adapter(self) -> bool:
        """Whether a LoRA adapter is written."""
        return holds_adapter(self.weights) and not self.merge


def read_student(run_directory: RunDirectory, key: str, merge: bool) -> Student:
    """A finished stage that has trained a student.

    Args:
        run_directory: the run.
        key: the stage.
        merge: whether an adapter is added to its base.

    Raises:
        ExportError: an adapter's base is known to this program alone, and nothing is merged.
        RunDirectoryError: a file is missing or is not what the stage wrote.
    """
    stage = finished_stage(run_directory, key)
    model = dict(stage.sections.get(STUDENT, {}).get("init_args", {}))
    if "backbone" not in model:
        raise ExportError(f"{key} has trained a student that names no `backbone`, whose tokenizer would be written")
    steps = steps_to(run_directory, key)
    student = Student(
        run=run_directory.root,
        stage=stage,
        backbone=_FINGERPRINT.sub("", model["backbone"]),
        model=model,
        results=_results(run_directory, key),
        steps=steps,
        settings_digest=settings_digest(run_directory, steps),
        merge=merge,
    )
    if student.stays_adapter and locate_backbone(student.backbone) != student.backbone:
        raise ExportError(
            f"{key} has trained an adapter on {student.backbone}, which other libraries cannot load by this name; give "
            "--merge, which writes a whole model"
        )
    return student


def write_student(student: Student, directory: Path) -> None:
    """Write what is loaded: weights, tokenizer, and with which token an answer ends.

    Args:
        student: whose.
        directory: an empty one.

    Raises:
        ValueError: the backbone is not there any more.
    """
    trusted = bool(student.model.get("trust_remote_code"))
    tokenizer = load_tokenizer(student.backbone, trusted)
    layout = _FINGERPRINT.sub("", student.model.get("chat_template") or "auto")
    chat_template = ChatTemplate(tokenizer, layout, variables=student.model.get("chat_template_kwargs"))
    if student.merge and holds_adapter(student.weights):
        source = ModelSource(student.backbone, student.weights, trust_remote_code=trusted)
        load_model(source).merge_and_unload().save_pretrained(directory)  # type: ignore[operator]  # PEFT's
    else:
        shutil.copytree(student.weights, directory, dirs_exist_ok=True)
        if student.stays_adapter:
            _name_base(directory / "adapter_config.json", student.backbone)
    tokenizer.chat_template = chat_template.text.self_contained()
    # `load_tokenizer` has put another in its place.
    tokenizer.model_max_length = tokenizer.init_kwargs.get("model_max_length", tokenizer.model_max_length)
    tokenizer.save_pretrained(directory)
    ends = sorted({chat_template.end_id, tokenizer.eos_token_id})
    generation = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def write_model_card(student: Student, directory: Path, license: str | None, command: str) -> None:
    """Write the card beside the files: what the student is, what it learned from, and how good it was found to be.

    Args:
        student: what was exported.
        directory: where the files lie.
        license: under which licence the user publishes it; none if not given.
        command: what makes the same files again.
    """
    title = f"{student.run.resolve().name}, {student.stage.name}"
    front_matter = {
        **({"license": license} if license is not None else {}),
        # A name that means something elsewhere; a path would not.
        **({"base_model": student.backbone} if _on_the_hub(student.backbone) else {}),
        "library_name": "peft" if student.stays_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["montessori-pl"],
    }
    what = "A LoRA adapter on" if student.stays_adapter else "A model that was trained from"
    sections = {
        "Use": _use(student),
        "How it was trained": _training(student),
        "How good it is": _found(student),
        "Licences": prose(
            f"""The person who exported it has named {f"the licence {code_span(license)}" if license else "no licence"}.
            The run does not know what the licences of the base, of the teachers and of the data allow. That is yours
            to check before you use or publish it."""
        ),
        "Making it again": "\n\n".join(
            [
                f"Montessori PL {__version__} wrote this with",
                textwrap.indent(printable(command), "    "),
                prose(f"""The settings of all stages above, their seeds included, have the digest
                    `{student.settings_digest}`."""),
            ]
        ),
    }
    parts = [f"# {in_markdown(title)}", prose(f"{what} {code_span(student.backbone)}.")]
    parts += [f"## {heading}\n\n{text}" for heading, text in sections.items()]
    matter, body = yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True), "\n\n".join(parts)
    (directory / CARD).write_text(f"---\n{matter}---\n\n{body}\n", encoding="utf-8")


_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
"""
_LOAD_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model, tokenizer = AutoPeftModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
"""


def _use(student: Student) -> str:
    load = code(_LOAD_ADAPTER if student.stays_adapter else _LOAD, "python")
    if not (variables := student.model.get("chat_template_kwargs")):
        return load
    told = ", ".join(code_span(f"{name}: {json.dumps(value)}") for name, value in variables.items())
    return f"{load}\n\n{prose(f'Where nothing else is said, the chat template is told {told}, as in training.')}"


def _training(student: Student) -> str:
    rows = (
        (
            code_span(step.key),
            code_span(step.what),
            ", ".join(f"{in_markdown(setting)}: {code_span(key)}" for setting, key in step.reads.items()),
        )
        for step in student.steps
    )
    settings = yaml.safe_dump({student.stage.key: dict(student.stage.settings)}, sort_keys=False, allow_unicode=True)
    counts = [
        f"{student.stage.metrics[name]} {name}" for name in ("examples", "steps") if name in student.stage.metrics
    ]
    return "\n\n".join(
        [
            *([prose(f"It learned from {' in '.join(counts)}.")] if counts else []),
            prose("These stages of the run led to it:"),
            table(("stage", "what it is", "what it reads"), rows),
            code(settings, "yaml"),
        ]
    )


def _found(student: Student) -> str:
    if not student.results:
        return prose("No evaluation of the run has measured it.")
    names = dict.fromkeys(name for numbers in student.results.values() for name in numbers)
    rows = (
        (
            in_markdown(name),
            *(f"{numbers[name]:.4g}" if name in numbers else "" for numbers in student.results.values()),
        )
        for name in names
        if not name.endswith("_standard_error")
    )
    return table(("number", *(in_markdown(one) for one in student.results)), rows)


def _results(run_directory: RunDirectory, key: str) -> dict[str, Mapping[str, float]]:
    """The numbers of the last evaluation that has measured this student, and those of the base beside it."""
    found: dict[str, Mapping[str, float]] = {}
    for evaluation, entry in run_directory.entries.items():
        if not run_directory.finished(evaluation):
            continue
        names = [setting.removeprefix("students.") for setting, read in entry.reads.items() if read == key]
        students = finished_stage(run_directory, evaluation).metrics.get("students", {})
        if measured := [name for name in names if name in students]:
            found = {name: students[name] for name in (BASE, *measured[:1]) if name in students}
    return found


def _name_base(path: Path, backbone: str) -> None:
    """Let an adapter name its base as the recipe does, and not the place where it lay on this machine."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = backbone
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _on_the_hub(backbone: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", backbone) is not None and not Path(backbone).exists()
