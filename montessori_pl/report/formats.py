"""A comparison as text for a console, as CSV and as Markdown. What no run has is left out of each."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from montessori_pl.data.markup import csv_cell, in_cell, in_markdown
from montessori_pl.report.comparison import COST, MEASURES, SCORE, SECTIONS, STUDENT, RunComparison, scored_by
from montessori_pl.report.groups import Group
from montessori_pl.run_directory.console import PlainConsole
from montessori_pl.stats.means import MeanInterval

NOTHING = "-"
MEANS = "Means over seeds; ± is half of the 95% interval by Student's t, which there is from 3 seeds on."
DIFFERENCES = "Differences are over the seeds that both have (pairs); unpaired: of means, with Welch's interval."


@dataclass(frozen=True)
class _Column:
    """A column for people."""

    section: str
    title: str
    cells: list[str]
    """One for each group."""


def as_text(comparison: RunComparison, width: int) -> str:
    """Tables of a few columns each, so that they fit a console, and the warnings."""
    file = io.StringIO()
    console = PlainConsole(file=file, width=width)
    for table in _tables(_leading(comparison.groups), _values(comparison)):
        console.print(table)
    console.print(MEANS)
    if comparison.differences:
        for table in _tables(_pairs(comparison), _differences(comparison), f" minus {comparison.baseline}"):
            console.print(table)
        console.print(DIFFERENCES)
    for warning in _warnings(comparison):
        console.print(f"warning: {warning}")
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def as_markdown(comparison: RunComparison) -> str:
    """One table as GitHub shows it, another for the differences, and the warnings."""
    blocks = [_markdown_table([*_leading(comparison.groups), *_values(comparison)]), MEANS]
    if comparison.differences:
        blocks += [
            f"Minus {in_markdown(comparison.baseline)}:",
            _markdown_table([*_pairs(comparison), *_differences(comparison)]),
            DIFFERENCES,
        ]
    if warnings := _warnings(comparison):
        blocks += ["Warnings:", "\n".join(f"- {in_markdown(warning)}" for warning in warnings)]
    return "\n\n".join(blocks) + "\n"


def as_csv(comparison: RunComparison) -> str:
    """A row for each group, numbers in full, the limits of intervals under `..._low` and `..._high`."""
    rows = []
    for group in comparison.groups:
        row: dict[str, object] = {"group": group.name, "seeds": len(group.finished)}
        row["unfinished"] = len(group.unfinished) or ""
        row |= {"last_stage": _last_stages(group), "student": _students(group)}
        row["influence_stage"] = ", ".join(scored_by(group))
        for one in MEASURES:
            row |= _numbers(one.name, comparison.means[group.name].get(one.name))
        row["warnings"] = _count_warnings(group)
        difference = comparison.differences.get(group.name)
        row |= {"baseline": comparison.baseline if difference else "", "pairs": difference.pairs if difference else ""}
        for one in MEASURES:
            row |= _numbers(f"{one.name}_difference", difference.measures.get(one.name) if difference else None)
        rows.append({name: csv_cell(value) if isinstance(value, str) else value for name, value in row.items()})
    names = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _leading(groups: Iterable[Group]) -> list[_Column]:
    """What begins every table."""
    return [_Column("", "group", [group.name for group in groups])]


def _values(comparison: RunComparison) -> list[_Column]:
    """The groups' own numbers."""
    groups = comparison.groups
    columns = [
        _Column(STUDENT, "seeds", [_seeds(group) for group in groups]),
        _Column(STUDENT, "last finished stage", [_last_stages(group) or NOTHING for group in groups]),
        _Column(STUDENT, "student", [_students(group) or NOTHING for group in groups]),
    ]
    for section in SECTIONS:
        if section == SCORE:
            stages = [", ".join(scored_by(group)) or NOTHING for group in groups]
            columns.append(_Column(section, "scored by", stages))
        for one in MEASURES:
            if one.section == section:
                cells = [_shown(comparison.means[group.name].get(one.name), one.digits) for group in groups]
                columns.append(_Column(section, one.title, cells))
    columns.append(_Column(COST, "warnings", [str(_count_warnings(group)) for group in groups]))
    return _present(columns)


def _pairs(comparison: RunComparison) -> list[_Column]:
    """What begins every table of differences."""
    groups = [group for group in comparison.groups if group.name in comparison.differences]
    pairs = [str(one.pairs) if one.pairs else "unpaired" for one in comparison.differences.values()]
    return [*_leading(groups), _Column("", "pairs", pairs)]


def _differences(comparison: RunComparison) -> list[_Column]:
    """The groups' differences to the baseline."""
    found = comparison.differences.values()
    return _present(
        _Column(
            one.section, one.title, [_shown(difference.measures.get(one.name), one.digits, "+") for difference in found]
        )
        for one in MEASURES
    )


def _present(columns: Iterable[_Column]) -> list[_Column]:
    return [column for column in columns if set(column.cells) != {NOTHING}]


def _tables(leading: Sequence[_Column], columns: Sequence[_Column], title: str = "") -> Iterator[Table]:
    """A table for each section, with intervals below their means."""
    for section in dict.fromkeys(column.section for column in columns):
        table = Table(title=section + title, title_justify="left")
        shown = [*leading, *(column for column in columns if column.section == section)]
        for column in shown:
            table.add_column(column.title, justify="left" if column is shown[0] else "right")
        for cells in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*(cell.replace(" ± ", "\n± ") for cell in cells))
        yield table


def _markdown_table(columns: Sequence[_Column]) -> str:
    rows = [[column.title for column in columns], ["---", *["---:"] * (len(columns) - 1)]]
    rows += [
        [in_cell(in_markdown(cell)) for cell in cells]
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(interval: MeanInterval | None, digits: str, sign: str = "") -> str:
    if interval is None:
        return NOTHING
    mean = format(interval.mean, sign + digits)
    return mean if interval.half_width is None else f"{mean} ± {format(interval.half_width, digits)}"


def _numbers(name: str, interval: MeanInterval | None) -> dict[str, object]:
    """A mean and the ends of its interval; empty where there is none."""
    if interval is None:
        return {name: "", f"{name}_low": "", f"{name}_high": ""}
    low, high = interval.ends or ("", "")
    return {name: interval.mean, f"{name}_low": low, f"{name}_high": high}


def _seeds(group: Group) -> str:
    return f"{len(group.finished)} of {len(group.runs)}" if group.unfinished else str(len(group.runs))


def _last_stages(group: Group) -> str:
    """How far the runs have come that have not finished."""
    return ", ".join(dict.fromkeys(run.last_stage or "none" for run in group.unfinished))


def _students(group: Group) -> str:
    return ", ".join(dict.fromkeys(run.student for run in group.finished if run.student))


def _count_warnings(group: Group) -> int:
    return sum(len(run.warnings) for run in group.runs)


def _warnings(comparison: RunComparison) -> list[str]:
    """Every run's, a sentence each."""
    return [
        f"{group.name}, seed {run.seed}: {warning}"
        for group in comparison.groups
        for run in group.runs
        for warning in run.warnings
    ]
