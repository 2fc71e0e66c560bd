"""The summary as tables on the console."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print students, data, and where everything lies."""
    if summary["evaluations"]:
        console.print(_students(summary["evaluations"]))
    if summary["data"]:
        console.print(_data(summary["data"]))
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    root = Path(summary["run"])
    console.print(f"{seconds:.0f} s in {len(summary['stages'])} stages. Everything lies in {root}:", markup=False)
    console.print("  summary.json    these numbers and more", markup=False)
    console.print("  iteration_*/    records, scores, pairs, adapters and checkpoints, stage by stage", markup=False)
    if (root / "wandb").is_dir():
        console.print("  wandb/          the metrics for Weights & Biases; `wandb sync` uploads them", markup=False)


def _students(evaluations: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """A row for each student; one that an earlier evaluation has shown with the same numbers is not repeated."""
    students: dict[str, Mapping[str, float]] = {}
    for key, evaluated in evaluations.items():
        for name, metrics in evaluated.items():
            if metrics not in students.values():
                students[name if name not in students else f"{name}, {key.split('/')[0]}"] = metrics
    names = list(dict.fromkeys(name for metrics in students.values() for name in metrics))
    shown = [name for name in names if not name.endswith("_standard_error")]
    table = Table(title="students", title_justify="left")
    table.add_column("student")
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    for student, metrics in students.items():
        table.add_row(student, *[_with_error(metrics, name) for name in shown])
    return table


def _with_error(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    error = metrics.get(f"{name}_standard_error")
    if error is None and float(metrics[name]).is_integer():
        return f"{metrics[name]:.0f}"  # a count
    return f"{metrics[name]:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def _data(data: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="data", title_justify="left")
    table.add_column("stage")
    table.add_column("what came out")
    for key, metrics in data.items():
        table.add_row(key, "\n".join(_lines(metrics)))
    return table


def _lines(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    if "accepted" in metrics:
        lines.append(f"{metrics['accepted']} examples accepted")
        if metrics["rejected"]:
            lines.append("rejected: " + ", ".join(f"{reason} {count}" for reason, count in metrics["rejected"].items()))
        diversity = metrics["diversity"]
        lines.append(
            f"distinct {diversity['distinct_share']:.0%}, distinct bigrams {diversity['distinct_2']:.0%}, "
            f"mean maximal ROUGE-L {diversity['mean_max_rouge_l']:.2f}"
        )
    if "positive_share" in metrics:
        lines.append(
            f"mean score {metrics['mean']:.3g} ± {metrics['standard_error']:.2g}, "
            f"positive {metrics['positive_share']:.0%} of {metrics['count']}"
        )
    if "chosen" in metrics.get("signal", {}):
        chosen = metrics["signal"]["chosen"]
        lines.append(f"by {chosen['method']}, rank correlation with exact {chosen['agreement']['spearman']:.3f}")
    if "mean_margin" in metrics:
        lines.append(
            f"{metrics['pairs']} pairs from {metrics['prompts_with_pairs']} of {metrics['prompts']} prompts, "
            f"mean margin {metrics['mean_margin']:.3g}"
        )
    return lines
