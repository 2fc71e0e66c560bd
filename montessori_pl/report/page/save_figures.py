"""The figures of the page as PNG, drawn by Matplotlib, and as CSV."""

import importlib.util
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from montessori_pl.data.text import printable
from montessori_pl.report.page.figures import Figure, Plot, Rows, series_names
from montessori_pl.run_directory.atomic import write_atomically
from montessori_pl.run_directory.durable import make_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b6e99", "#c2570c", "#2e7d32", "#8e24aa", "#b8860b", "#c2185b", "#5d6d7e", "#00897b")
"""Those of the page's light theme."""
DASHES = ("-", "--", ":", "-.")
DOTS_PER_INCH = 150
LONGEST_NAME = 100
"""Characters of a file's name."""


class FigureError(ValueError):
    """Why figures cannot be drawn, in a sentence for the user."""


def check_can_draw() -> None:
    """Look for Matplotlib, before anything is read.

    Raises:
        FigureError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise FigureError(
            "--figures draws with Matplotlib, which is not installed: pip install 'montessori-pl[report]'; without "
            "--figures the page has all figures"
        )


def save_figures(figures: Sequence[Figure], directory: Path) -> None:
    """Write `NAME.png` and `NAME.csv` for each figure into a directory, which is made if it is not there."""
    make_directory(directory)
    for one in figures:
        name = re.sub(r"[^\w.-]", "_", one.name)[:LONGEST_NAME]  # an evaluator may call its measures anything
        write_atomically(directory / f"{name}.csv", one.csv())
        _draw(one, directory / f"{name}.png")


def _draw(one: Figure, path: Path) -> None:
    from matplotlib.figure import Figure as Canvas  # half a second, which is only for those who ask for it

    height = 3.6 if isinstance(one, Plot) else 1.1 + 0.28 * len(one.rows)
    canvas = Canvas(figsize=(6.4, height), layout="constrained")
    axes = canvas.add_subplot()
    if isinstance(one, Plot):
        _draw_plot(one, axes)
    else:
        _draw_rows(one, axes)
    axes.set_title(_plain(one.title), fontsize=10, loc="left")
    axes.set_xlabel(_plain(one.x), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len([name for name in series_names(one) if name]) > 1:
        canvas.legend(loc="outside lower left", fontsize=7, ncols=2, frameon=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font does not have
        canvas.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


def _draw_plot(plot: Plot, axes: "Axes") -> None:
    for number, series in enumerate(plot.series):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        x, y = [point.x for point in series.points], [point.y for point in series.points]
        name = _plain(series.name)
        if plot.style == "steps":
            axes.stairs(y[:-1], x, color=colour, linestyle=dash, linewidth=1.5, label=name)
            continue
        axes.plot(x, y, marker="o", linestyle=dash if plot.style == "lines" else "", color=colour, label=name)
        for point in series.points:
            if point.low is not None and point.high is not None:
                axes.vlines(point.x, point.low, point.high, color=colour)
    for guide in plot.guides:
        (axes.axvline if guide.axis == "x" else axes.axhline)(guide.value, color="black", linestyle="--", linewidth=0.8)
        if guide.label and guide.axis == "x":
            frame = axes.get_xaxis_transform()
            axes.text(guide.value, 0.98, f" {_plain(guide.label)}", transform=frame, va="top", fontsize=7)
        elif guide.label:
            frame = axes.get_yaxis_transform()
            axes.text(0.01, guide.value, _plain(guide.label), transform=frame, va="bottom", fontsize=7)
    axes.set_ylabel(_plain(plot.y), fontsize=9)


def _draw_rows(rows: Rows, axes: "Axes") -> None:
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(series_names(rows))}
    named: set[str] = set()
    for place, row in enumerate(rows.rows):
        colour = colours.get(row.series, COLOURS[0])
        name = "" if row.series in named else _plain(row.series)
        named.add(row.series)
        if rows.style == "bars":
            axes.barh(place, row.value - row.start, left=row.start, height=0.6, color=colour, label=name)
        else:
            axes.plot([row.value], [place], marker="o", linestyle="", color=colour, label=name)
            if row.low is not None and row.high is not None:
                axes.hlines(place, row.low, row.high, color=colour)
    axes.set_yticks(range(len(rows.rows)), [_plain(row.label) for row in rows.rows])
    axes.set_ylim(len(rows.rows) - 0.5, -0.5)


def _plain(text: str) -> str:
    """A text in which Matplotlib reads no mathematics."""
    return printable(text).replace("$", r"\$")
