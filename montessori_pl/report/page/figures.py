"""What a figure shows, as plain numbers: the page draws it as SVG, `--figures` as PNG, and both write it as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from montessori_pl.data.markup import csv_cell


@dataclass(frozen=True)
class Point:
    """A point of a plot."""

    x: float
    y: float
    low: float | None = None
    """Lower end of the interval of y; none where there is none."""
    high: float | None = None
    """Its upper end."""
    label: str = ""
    """What it stands for, where the axes do not say."""


@dataclass(frozen=True)
class Series:
    """Points of one colour."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Guide:
    """A line across a plot: a limit, or a zero."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True)
class Plot:
    """Numbers against numbers."""

    name: str
    """Of its files; unique within a run."""
    title: str
    x: str
    """What the axis shows, with its unit."""
    y: str
    series: Sequence[Series]
    style: Literal["steps", "lines", "points"]
    """`steps`: a histogram, each point the left end of a bin, and the last the right end of all; `lines`: points with
    lines between them; `points`: points alone."""
    guides: Sequence[Guide] = ()
    note: str = ""
    """What a reader has to know beside the axes."""

    def csv(self) -> str:
        """A row for each point."""
        rows = [
            (series.name, point.label, point.x, point.y, point.low, point.high)
            for series in self.series
            for point in series.points
        ]
        return _csv(("series", "label", "x", "y", "low", "high"), rows)


@dataclass(frozen=True)
class Row:
    """A number with a name."""

    label: str
    value: float
    start: float = 0.0
    """Where its bar begins."""
    low: float | None = None
    """Lower end of its interval; none where there is none."""
    high: float | None = None
    """Its upper end."""
    series: str = ""
    """What gives it its colour; rows without one have the same."""


@dataclass(frozen=True)
class Rows:
    """Numbers below each other, with their names."""

    name: str
    """Of its files; unique within a run."""
    title: str
    x: str
    """What the axis shows, with its unit."""
    rows: Sequence[Row]
    style: Literal["bars", "dots"]
    """`bars` reach from their starts to their values; `dots` show values with their intervals."""
    note: str = ""
    """What a reader has to know beside the axis."""

    def csv(self) -> str:
        """A line for each row."""
        rows = [(row.series, row.label, row.start, row.value, row.low, row.high) for row in self.rows]
        return _csv(("series", "label", "start", "value", "low", "high"), rows)


Figure = Plot | Rows


def series_names(figure: Figure) -> list[str]:
    """What the colours of a figure stand for; empty where there is one colour without a name."""
    if isinstance(figure, Plot):
        return [series.name for series in figure.series]
    return [name for name in dict.fromkeys(row.series for row in figure.rows) if name]


def _csv(names: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([csv_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return file.getvalue()
