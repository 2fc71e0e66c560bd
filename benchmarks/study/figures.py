"""What is drawn: differences of students, what alignment buys and costs, and what the training data ask for.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; worlds differ in their markers too.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from montessori_pl.classroom.curriculum import EASY_SKILLS, HARD_SKILLS
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


def draw(cells: Sequence[Cell], settings: Settings, directory: Path) -> list[Path]:
    """Draw all figures for which there is something to draw; returns their files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    makers: dict[str, Callable[[Sequence[Cell], Settings], Figure | None]] = {
        STUDENTS: draw_students,
        TRADE_OFF: draw_trade_off,
        FAMILIES: draw_families,
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
        "accuracy": "accuracy on the test set (right is better)",
        "test loss": "test loss, nats per token (left is better)",
    }
    found = compare(cells, [(name, settings.baseline) for name in settings.chosen if name != settings.baseline])
    arms = list(dict.fromkeys(one.ours for one in found))
    if not arms:
        return None
    by_worlds = all(one.interval.worlds for one in found)
    figure, panels = _panels(settings, arms, len(measures))
    for axes, (measure, label) in zip(panels, measures.items(), strict=True):
        axes.axvline(0, color="black", linewidth=1)
        for row, one in enumerate(one for one in found if one.measure == measure):
            _points(axes, row, one.interval.differences, settings)
            ends = one.interval.worlds if by_worlds else one.interval.t
            _mean_mark(axes, row, one.interval.mean, ends)
        axes.set_xlabel(f"difference in {label}")
    baseline = settings.arms[settings.baseline].title
    kind = "bootstrap over worlds and seeds" if by_worlds else "Student's t over cells"
    figure.suptitle(f"Students of each arm minus {baseline}'s: cells, mean and 95% interval ({kind})")
    _legend(figure, cells, settings)
    return figure


def draw_trade_off(cells: Sequence[Cell], settings: Settings) -> Figure | None:
    """Influence, breadth and held-out loss side by side."""
    measures = {
        "influence after": "influence of the training data,\n1e-3 nats per token (right is better)",
        "family entropy": "breadth: entropy over task\nfamilies, nats (right is better)",
        "test loss": "the student's test loss,\nnats per token (left is better)",
    }
    arms = [name for name in settings.chosen if finished(cells, name)]
    if not arms:
        return None
    figure, panels = _panels(settings, arms, len(measures))
    for axes, (measure, label) in zip(panels, measures.items(), strict=True):
        for row, name in enumerate(arms):
            values: dict[int, list[float]] = {}
            for cell in finished(cells, name).values():
                if measure in cell.measures:
                    values.setdefault(cell.world, []).append(cell.measures[measure])
            if values:
                _points(axes, row, values, settings)
                _mean_mark(axes, row, statistics.fmean(value for ours in values.values() for value in ours), None)
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
        [[_share(list(finished(cells, arm).values()), names) for names in groups.values()] for arm in arms]
    )
    figure = Figure(figsize=(WIDTH, 1.9 + 0.42 * len(arms)), layout="constrained")
    axes = figure.subplots()
    # Distractors are half of the data; the scale ends where the skills do, so that these can be told apart.
    skills = len(EASY_SKILLS) + len(HARD_SKILLS)
    largest = max(1e-9, shares[:, :skills].max())
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=largest, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share < 0.6 * largest else "black"
        axes.text(column, row, f"{100 * share:.1f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(groups)), list(groups), rotation=35, ha="right")
    axes.set_yticks(range(len(arms)), settings.titles(arms))
    for boundary in (len(EASY_SKILLS), skills):
        axes.axvline(boundary - 0.5, color="white", linewidth=4)
    top = axes.secondary_xaxis("top")
    middles = [(len(EASY_SKILLS) - 1) / 2, len(EASY_SKILLS) + (len(HARD_SKILLS) - 1) / 2]
    top.set_xticks(middles, ["target skills that the base student knows", "target skills that it lacks"])
    top.tick_params(length=0)
    bar = figure.colorbar(image, extend="max", pad=0.01)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
    figure.suptitle("What the training data ask for: share of each family of tasks, percent, mean over cells")
    return figure


def _share(cells: Sequence[Cell], names: Sequence[str]) -> float:
    return statistics.fmean(
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


def _points(axes: Axes, row: int, values: dict[int, Any], settings: Settings) -> None:
    """The cells of an arm, each world a little below the one before it."""
    for world, ours in values.items():
        index = settings.worlds.index(world)
        height = row + 0.12 + 0.24 * (index + 0.5) / len(settings.worlds)
        axes.scatter(ours, [height] * len(ours), s=22, alpha=0.75, linewidths=0, **_look(index))


def _mean_mark(axes: Axes, row: int, mean: float, ends: tuple[float, float] | None) -> None:
    """The mean above the cells, with its interval."""
    if ends is not None:
        axes.plot(ends, [row - 0.14] * 2, color="black", linewidth=2.2, solid_capstyle="butt")
    axes.scatter([mean], [row - 0.14], s=42, color="black", marker="|" if ends is None else "o", zorder=3)
    if ends is None:
        axes.scatter([mean], [row - 0.14], s=42, color="black", marker="o", zorder=3)


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
