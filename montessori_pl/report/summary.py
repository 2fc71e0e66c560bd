"""The summary of a finished or half-finished run: `summary.json`, made from the manifest and the stages' metrics.

Influence never stands alone: beside it stand how varied the scored examples are and the loss of the student on which
it was measured; beside a student's losses, how varied the examples are on which it was trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from montessori_pl.run_directory.atomic import write_json
from montessori_pl.run_directory.run_directory import RunDirectory

METRICS = "metrics.json"
MODEL_KINDS = ("student", "teacher")
INFLUENCE = ("mean", "standard_error", "positive_rate", "count")
BREADTH = ("token_entropy", "first_word_entropy", "distinct_rate", "mean_max_rouge_l")
RESPONSES = "response_distinct_rate"


def summarize(root: Path) -> dict[str, Any]:
    """Collect the numbers of a run.

    Returns:
        `warnings`: what the stages warn of, and what was not read of the data, a sentence each; `sources`: for each
        setting of `data`, its source, its examples, the rows that were left out by reason, and the columns that are not
        read; `students`: for each student of the last evaluation its
        losses and accuracy, and under `data_...` how many and how varied its training examples are; `evaluations`: the
        students of every evaluation, by the evaluation's key; `influence`: for each stage that scored, by key, the
        influence, how varied the scored examples are, and the reference loss of the student; `data`: for each stage
        that made or judged data, by key, its numbers; `training`: for each stage that trained, by key, its numbers;
        `stages`: for each stage, by key, whether it has finished and its seconds.
    """
    run_directory = RunDirectory(root)
    sections = ("students", "evaluations", "influence", "data", "training", "stages")
    sources = run_directory.facts.get("data", {})
    summary: dict[str, Any] = {
        "run": str(root),
        "warnings": [note for one in sources.values() for note in one["notes"]],
        "sources": sources,
        **{section: {} for section in sections},
    }
    for key, entry in run_directory.entries.items():
        if not run_directory.begun(key):
            continue
        summary["stages"][key] = {"finished": entry.finished, "seconds": entry.seconds}
        metrics = _metrics(run_directory, key)
        if not metrics:
            continue
        kind = metrics.pop("kind")
        summary["warnings"] += [f"{key}: {sentence}" for sentence in metrics.get("warnings", [])]
        if kind == "report":
            if "students" in metrics:
                students = {
                    name: one | _trained_on(run_directory, key, name) for name, one in metrics["students"].items()
                }
                summary["students"] = summary["evaluations"][key] = students
        else:
            summary["training" if kind in MODEL_KINDS else "data"][key] = metrics
        if "positive_rate" in metrics:
            numbers = metrics | metrics.get("diversity", {}) | _of_responses(metrics)
            summary["influence"][key] = {
                name: numbers[name] for name in (*INFLUENCE, *BREADTH, RESPONSES, "reference_loss") if name in numbers
            }
    return summary


def write_summary(root: Path) -> dict[str, Any]:
    """Write `summary.json` into the run directory and return it."""
    summary = summarize(root)
    write_json(root / "summary.json", summary)
    return summary


def _metrics(run_directory: RunDirectory, key: str) -> dict[str, Any]:
    """The numbers of a stage; none before it has finished."""
    if not run_directory.finished(key) or METRICS not in run_directory.entries[key].files:
        return {}
    metrics: dict[str, Any] = json.loads((run_directory.verify(key, METRICS) / METRICS).read_text(encoding="utf-8"))
    return metrics


def _trained_on(run_directory: RunDirectory, evaluation: str, student: str) -> Mapping[str, float]:
    """How many and how varied the examples are on which a student was trained; nothing for a base model."""
    examples = _source(run_directory, _source(run_directory, evaluation, f"students.{student}"), "examples")
    metrics = _metrics(run_directory, examples)
    numbers = metrics | metrics.get("diversity", {}) | _of_responses(metrics)
    return {f"data_{name}": numbers[name] for name in ("accepted", *BREADTH, RESPONSES) if name in numbers}


def _of_responses(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The share of different responses; nothing where there are none."""
    measured = metrics.get("response_diversity", {})
    return {RESPONSES: measured["distinct_rate"]} if "distinct_rate" in measured else {}


def _source(run_directory: RunDirectory, key: str, setting: str) -> str:
    """The key of the stage that a stage read under this setting; empty where it read none."""
    entry = run_directory.entries.get(key)
    return entry.reads.get(setting, "") if entry is not None else ""
