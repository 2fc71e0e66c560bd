"""The summary of a finished or half-finished run: `summary.json`, made from the manifest and the stages' metrics."""

import json
from pathlib import Path
from typing import Any

from montessori_pl.workspace import Workspace, write_atomically

MODEL_KINDS = ("student", "teacher")


def summarize(root: Path) -> dict[str, Any]:
    """Collect the numbers of a run.

    Returns:
        `students`: for each student of the last evaluation its losses and accuracy; `evaluations`: the students of
        every evaluation, by the evaluation's key; `data`: for each stage that made or
        judged data, by key, its numbers; `training`: for each stage that trained, by key, its numbers; `stages`: for
        each stage, by key, whether it has finished and its seconds.
    """
    workspace = Workspace(root)
    sections = ("students", "evaluations", "data", "training", "stages")
    summary: dict[str, Any] = {"run": str(root), **{section: {} for section in sections}}
    for key, entry in workspace.entries.items():
        if not workspace.begun(key):
            continue
        summary["stages"][key] = {"finished": entry.finished, "seconds": entry.seconds}
        path = workspace.directory(key) / "metrics.json"
        if not entry.finished or not path.exists():
            continue
        metrics = json.loads(path.read_text(encoding="utf-8"))
        kind = metrics.pop("kind")
        if kind == "report":
            if "students" in metrics:
                summary["students"] = summary["evaluations"][key] = metrics["students"]
        else:
            summary["training" if kind in MODEL_KINDS else "data"][key] = metrics
    return summary


def write_summary(root: Path) -> dict[str, Any]:
    """Write `summary.json` into the run directory and return it."""
    summary = summarize(root)
    write_atomically(root / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary
