"""The summary as tables on the console."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from montessori_pl.report.student_numbers import STANDARD_ERROR, interval_of, is_about_another

DATA = "data_"
"""Begins the names of a student's numbers that are about the examples it was trained on."""
LENGTH_CONTROLLED = "length_controlled_"
"""Begins the name of a rate at equal lengths, which stands below the rate itself."""
CUT = "answers_cut"
"""The share of a student's answers that reached the token limit; stands below its accuracy where there are any."""


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print warnings, students, influence, data, and where everything lies."""
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="bold")
    if summary["evaluations"]:
        students = _by_name(summary["evaluations"])
        console.print(_students(students))
        if parts := _part_names(students):
            console.print(_parts(students, parts))
    if summary["influence"]:
        console.print(_influence(summary["influence"]))
    if summary["data"]:
        console.print(_data(summary["data"]))
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    root = Path(summary["run"])
    console.print(f"{seconds:.0f} s in {len(summary['stages'])} stages. Everything lies in {root}:")
    console.print("  summary.json    these numbers and more")
    console.print("  iteration_*/    records, scores, pairs, adapters and checkpoints, stage by stage")
    if (root / "wandb").is_dir():
        console.print("  wandb/          the metrics for Weights & Biases; `wandb sync` uploads them")


Students = Mapping[str, Mapping[str, float]]
"""The numbers of each student."""


def _by_name(evaluations: Mapping[str, Students]) -> Students:
    """All students; one that an earlier evaluation has shown with the same numbers is not repeated."""
    students: dict[str, Mapping[str, float]] = {}
    for key, evaluated in evaluations.items():
        for name, metrics in evaluated.items():
            if metrics not in students.values():
                students[name if name not in students else f"{name}, {key.split('/')[0]}"] = metrics
    return students


def _names(students: Students) -> list[str]:
    """The numbers that have a place of their own in a table."""
    names = dict.fromkeys(name for metrics in students.values() for name in metrics)
    return [name for name in names if not is_about_another(name) and not name.startswith((DATA, LENGTH_CONTROLLED))]


def _part_names(students: Students) -> list[str]:
    """Those that stand beside a number whose name theirs goes on with: `accuracy_FAMILY` beside `accuracy`."""
    names = _names(students)
    return [
        name
        for name in names
        if any(name.startswith(f"{whole}_") and not name.startswith(f"{whole}_against_") for whole in names)
    ]


def _parts(students: Students, parts: list[str]) -> Table:
    """These numbers down, students across: there are often many."""
    table = Table(title="students, further numbers", title_justify="left")
    table.add_column("")
    for student in students:
        table.add_column(student, justify="right")
    for name in parts:
        counts = all(float(metrics.get(name, 0)).is_integer() for metrics in students.values())
        shown = (_with_error(metrics, name, counts) for metrics in students.values())
        table.add_row(name.replace("_", " "), *shown)
    return table


def _students(students: Students) -> Table:
    """A row for each student."""
    parts = _part_names(students)
    shown = [name for name in _names(students) if name not in parts]
    table = Table(title="students", title_justify="left")
    table.add_column("student")
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("diversity of data")
    for student, metrics in students.items():
        data = {name.removeprefix(DATA): value for name, value in metrics.items() if name.startswith(DATA)}
        cells = {name: _with_error(metrics, name) for name in shown}
        if metrics.get(CUT) and "accuracy" in cells:
            cells["accuracy"] += f"\n{metrics[CUT]:.1%} cut"
        for name in cells:
            if (controlled := metrics.get(f"{LENGTH_CONTROLLED}{name}")) is not None:
                cells[name] += f"\n{controlled:.3f} LC"
        table.add_row(student, *cells.values(), _diversity(data, separator="\n"))
    return table


def _influence(influence: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each stage that scored."""
    table = Table(
        title="scores, diversity and held-out loss",
        title_justify="left",
        caption="diversity: entropy of the words and of the first words, in nats; distinct\n"
        "instructions; mean ROUGE-L of an instruction and the one most like it;\ndistinct responses",
        caption_justify="left",
    )
    table.add_column("stage")
    table.add_column("score")
    table.add_column("diversity")
    table.add_column("reference\nloss", justify="right")
    for key, numbers in influence.items():
        table.add_row(
            key.replace("/", "/\n"),  # or a console of 80 columns would break names in their middle
            f"{numbers['mean']:.3g} ± {numbers['standard_error']:.2g}\npositive {numbers['positive_rate']:.0%}",
            _diversity(numbers, separator=", "),
            f"{numbers['reference_loss']:.3f}" if "reference_loss" in numbers else "-",
        )
    return table


def _diversity(numbers: Mapping[str, float], separator: str) -> str:
    """How varied examples are, on several lines; a dash where it was not measured."""
    if not numbers.keys() >= {"token_entropy", "first_word_entropy", "distinct_rate", "mean_max_rouge_l"}:
        return "-"
    responses = (
        f"\nresponses {_percent(numbers['response_distinct_rate'])}" if "response_distinct_rate" in numbers else ""
    )
    return (
        f"words {numbers['token_entropy']:.2f}{separator}first {numbers['first_word_entropy']:.2f}\n"
        f"distinct {numbers['distinct_rate']:.0%}{separator}ROUGE {numbers['mean_max_rouge_l']:.2f}"
        f"{responses}"
    )


def _percent(share: float) -> str:
    """With a digit after the point where the share is small, for one of 805 is not none."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _with_error(metrics: Mapping[str, float], name: str, counts: bool = True) -> str:
    if name not in metrics:
        return "-"
    error, interval = metrics.get(f"{name}{STANDARD_ERROR}"), interval_of(metrics, name)
    if interval is not None:
        return f"{metrics[name]:.3f}\n{interval[0]:.3f} to {interval[1]:.3f}"
    if error is None and counts and float(metrics[name]).is_integer():
        return f"{metrics[name]:.0f}"
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
            f"distinct {diversity['distinct_rate']:.0%}, distinct bigrams {diversity['distinct_2']:.0%}, "
            f"mean maximal ROUGE-L {diversity['mean_max_rouge_l']:.2f}"
        )
        if responses := metrics.get("response_diversity"):
            lines.append(
                f"responses: distinct {_percent(responses['distinct_rate'])}, "
                f"ROUGE-L {responses['mean_max_rouge_l']:.2f}"
            )
    if "mistakes" in metrics:
        lines.append(f"{metrics['mistakes']} mistakes in {metrics['looked_at']} examples")
    if "generated_tokens" in metrics:
        paid = f" for {metrics['cost']:.4f} US dollars" if "cost" in metrics else ""
        lines.append(f"{metrics['generated_tokens']} tokens written, {metrics['prompt_tokens']} read{paid}")
    if "count" in metrics:
        references = f" on {metrics['references']} references" if "references" in metrics else ""
        lines.append(f"{metrics['count']} examples scored{references}")
    if "chosen" in metrics.get("signal", {}):
        chosen = metrics["signal"]["chosen"]
        agreed = chosen["agreement"]["spearman"]  # none where all scores of the sample are alike
        beside = f", rank correlation with exact {agreed:.3f}" if agreed is not None else ""
        lines.append(f"by {chosen['method']}{beside}")
    if "mean_margin" in metrics:
        lines.append(
            f"{metrics['pairs']} pairs from {metrics['prompts_with_pairs']} of {metrics['prompts']} prompts, "
            f"mean margin {metrics['mean_margin']:.3g}"
        )
    if "shares" in metrics:
        lines.append("answered by " + ", ".join(f"{name} {share:.0%}" for name, share in metrics["shares"].items()))
    if "finding" in metrics:
        lines.append(metrics["finding"])
    return lines
