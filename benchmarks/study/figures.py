"""What is drawn: differences of students, what alignment buys and costs, and what the training data ask for.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; worlds differ in their markers too.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from montessori_pl.classroom.pretraining_corpus import EASY_SKILLS, HARD_SKILLS
from montessori_pl.classroom.tasks import DISTRACTORS
from study.comparisons import compare, finished
from study.measures import MALFORMED, Cell
from study.settings import Settings

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = "os^Dv<>PX"
DPI = 120
WIDTH = 10.0
"""Inches; with `DPI`, figures are 1200 pixels wide."""
STUDENTS, TRADE_OFF, FAMILIES = "students.png", "influence_and_breadth.png", "families.png"
COSTS = "gain_and_cost.png"


def draw(cells: Sequence[Cell], settings: Settings, directory: Path) -> list[Path]:
    """Draw all figures for which there is something to draw; returns their files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    makers: dict[str, Callable[[Sequence[Cell], Settings], Figure | None]] = {
        STUDENTS: draw_students,
        TRADE_OFF: draw_trade_off,
        FAMILIES: draw_families,
        COSTS: draw_costs,
    }
    for name, make in makers.items():
        figure = make(cells, settings)
        if figure is not None:
            figure.savefig(directory / name, dpi=DPI)
            drawn.append(directory / name)
    return drawn


def draw_students(cells: Sequence[Cell], settings: Settings) -> Figure | None:
    """Accuracy and test loss against the baseline: cells, their mean and its interval."""
    measures = {
        "accuracy": "difference in accuracy on the test set\n(right is better)",
        "test loss": "difference in test loss, nats per token\n(left is better)",
    }
    found = compare(cells, [(name, settings.baseline) for name in settings.chosen if name != settings.baseline])
    arms = list(dict.fromkeys(one.ours for one in found))
    if not arms:
        return None
    by_worlds = all(one.difference.worlds for one in found)
    figure, panels = _panels(settings, arms, len(measures))
    for axes, (measure, label) in zip(panels, measures.items(), strict=True):
        rows = [
            _Row(one.ours, one.difference.by_world, one.difference.mean, one.difference.worlds or one.difference.t)
            for one in found
            if one.measure == measure
        ]
        _fill(axes, rows, settings, [0.0])
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xlabel(label)
    baseline = settings.arms[settings.baseline].title
    kind = "bootstrap over worlds and seeds" if by_worlds else "Student's t over cells"
    known = f", mean and 95% interval ({kind})" if found[0].difference.t else " and mean"
    figure.suptitle(f"Students of each arm minus {baseline}'s: cells{known}")
    _legend(figure, cells, settings)
    return figure


def draw_costs(cells: Sequence[Cell], settings: Settings) -> Figure | None:
    """What each arm gains in accuracy over the baseline, by how many times as long as the baseline's its run takes.

    The oracle has no cost: its data come from outside.
    """
    seconds = {name: [cell.measures["seconds"] for cell in finished(cells, name).values()] for name in settings.chosen}
    names = [name for name, found in seconds.items() if found and name not in (settings.baseline, settings.oracle)]
    found = [one for one in compare(cells, [(name, settings.baseline) for name in names]) if one.measure == "accuracy"]
    if not found or not seconds[settings.baseline]:
        return None
    figure = Figure(figsize=(WIDTH * 0.7, WIDTH * 0.45), layout="constrained")
    axes = figure.subplots()
    for index, one in enumerate(found):
        ratio = statistics.median(seconds[one.ours]) / statistics.median(seconds[settings.baseline])
        ends = one.difference.worlds or one.difference.t or (one.difference.mean, one.difference.mean)
        axes.plot([ratio, ratio], ends, color=COLOURS[index % len(COLOURS)], linewidth=2)
        label = settings.arms[one.ours].title
        axes.scatter([ratio], [one.difference.mean], s=48, zorder=3, label=label, **_look(index))
    axes.axhline(0, color="black", linewidth=1)
    axes.scatter([1], [0], s=48, color="black", zorder=3, label=settings.arms[settings.baseline].title)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"seconds of the run, times those of {settings.arms[settings.baseline].title} (medians over cells)")
    axes.set_ylabel("difference in accuracy, mean and 95%")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def draw_trade_off(cells: Sequence[Cell], settings: Settings) -> Figure | None:
    """Influence, diversity and held-out loss side by side."""
    measures = {
        "influence after": "influence of the training data,\n1e-3 nats per token (right is better)",
        "family entropy": "diversity: entropy over task\nfamilies, nats (right is more diverse)",
        "test loss": "the student's test loss,\nnats per token (left is better)",
    }
    arms = [name for name in settings.chosen if finished(cells, name)]
    if not arms:
        return None
    figure, panels = _panels(settings, arms, len(measures))
    for axes, (measure, label) in zip(panels, measures.items(), strict=True):
        rows = []
        for name in arms:
            values: dict[int, list[float]] = {}
            for cell in finished(cells, name).values():
                values.setdefault(cell.world, []).append(cell.measures[measure])
            rows.append(_Row(name, values, statistics.fmean(one for ours in values.values() for one in ours), None))
        _fill(axes, rows, settings, [])
        axes.set_xlabel(label)
    figure.suptitle("What the teacher writes, and what the student learns from it: cells and their mean")
    _legend(figure, cells, settings)
    return figure


def draw_families(cells: Sequence[Cell], settings: Settings) -> Figure | None:
    """A heat map: which share of an arm's training data is of which family, over all cells."""
    arms = [name for name in settings.chosen if finished(cells, name)]
    if not arms:
        return None
    groups = {**{name: (name,) for name in (*EASY_SKILLS, *HARD_SKILLS)}, "distractors": tuple(DISTRACTORS)}
    groups[MALFORMED] = (MALFORMED,)
    shares = np.array(
        [[_percent(list(finished(cells, arm).values()), names) for names in groups.values()] for arm in arms]
    )
    figure = Figure(figsize=(WIDTH, 1.9 + 0.42 * len(arms)), layout="constrained")
    axes = figure.subplots()
    # Distractors are half of the data; the scale ends where the skills do, so that these can be told apart.
    skills = len(EASY_SKILLS) + len(HARD_SKILLS)
    largest = max(1e-9, shares[:, :skills].max())
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=largest, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share < 0.6 * largest else "black"
        axes.text(column, row, f"{share:.1f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(groups)), list(groups), rotation=35, ha="right")
    axes.set_yticks(range(len(arms)), settings.titles(arms))
    for boundary in (len(EASY_SKILLS), skills):
        axes.axvline(boundary - 0.5, color="white", linewidth=4)
    top = axes.secondary_xaxis("top")
    middles = [(len(EASY_SKILLS) - 1) / 2, len(EASY_SKILLS) + (len(HARD_SKILLS) - 1) / 2]
    top.set_xticks(middles, ["target skills that the base student knows", "target skills that it lacks"])
    top.tick_params(length=0)
    figure.colorbar(image, extend="max", pad=0.01, ticks=MaxNLocator(5, integer=True), format="%d%%")
    figure.suptitle("What the training data ask for: share of each family of tasks, percent, mean over cells")
    return figure


def _percent(cells: Sequence[Cell], names: Sequence[str]) -> float:
    return 100 * statistics.fmean(
        sum(cell.families.get(name, 0) for name in names) / sum(cell.families.values()) for cell in cells
    )


def _panels(settings: Settings, arms: Sequence[str], number: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side with one row for each arm, the first one on top."""
    figure = Figure(figsize=(WIDTH, 2.2 + 0.48 * len(arms)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, number, sharey=True))
    panels[0].set_yticks(range(len(arms)), settings.titles(arms))
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    for axes in panels:
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        for row in range(1, len(arms)):
            axes.axhline(row - 0.5, color="0.9", linewidth=0.8)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    return figure, panels


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is drawn for an arm in one panel."""

    arm: str
    values: Mapping[int, Sequence[float]]
    """One for each cell, by world."""
    mean: float
    ends: tuple[float, float] | None
    """Of the interval."""

    @property
    def numbers(self) -> list[float]:
        """All that must fit into the panel."""
        return [one for ours in self.values.values() for one in ours] + list(self.ends or ())


def _fill(axes: Axes, rows: Sequence[_Row], settings: Settings, shown: Sequence[float]) -> None:
    """The rows of a panel, from the top, with these numbers within the panel in any case.

    The overdosed arms would press all others together: where they leave the others' range, an arrow stands at its edge.
    """
    usual = [row for row in rows if row.arm not in settings.overdosed] or rows
    numbers = [*shown, *(number for row in usual for number in row.numbers)]
    margin = 0.06 * (max(numbers) - min(numbers)) or 0.01
    low, high = min(numbers) - margin, max(numbers) + margin
    axes.set_xlim(low, high)
    for place, row in enumerate(rows):
        for world, values in row.values.items():
            index = settings.worlds.index(world)
            height = place + 0.12 + 0.24 * (index + 0.5) / len(settings.worlds)
            inside = [value for value in values if low <= value <= high]
            axes.scatter(inside, [height] * len(inside), s=22, alpha=0.75, linewidths=0, **_look(index))
        if row.ends is not None:
            axes.plot(row.ends, [place - 0.14] * 2, color="black", linewidth=2.2, solid_capstyle="butt")
        axes.scatter([row.mean], [place - 0.14], s=42, color="black", zorder=3)
        beyond = [number for number in [row.mean, *row.numbers] if not low <= number <= high]
        for edge, side, arrow in ((low, "left", "\u2190"), (high, "right", "\u2192")):
            outside = [number for number in beyond if (number < low) == (edge == low)]
            if outside:
                extreme = min(outside) if edge == low else max(outside)
                text = f"{arrow} to {extreme:.2f}" if edge == low else f"to {extreme:.2f} {arrow}"
                axes.text(edge, place - 0.36, text, ha=side, va="center", fontsize=8)


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _legend(figure: Figure, cells: Sequence[Cell], settings: Settings) -> None:
    worlds = {cell.world for cell in cells if not cell.failed}
    handles = [
        Line2D([], [], linestyle="", markersize=5, label=f"world {world}", **_look(index))
        for index, world in enumerate(settings.worlds)
        if world in worlds
    ]
    mean = Line2D([], [], linestyle="", marker="o", color="black", markersize=6, label="mean")
    figure.legend(handles=[*handles, mean], loc="outside lower center", ncols=9, frameon=False, fontsize=9)
