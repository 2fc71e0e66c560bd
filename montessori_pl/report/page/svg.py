"""Figures as SVG within a page, whose style sheet gives the colours of both themes."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from montessori_pl.report.html import Markup, joined, tag
from montessori_pl.report.page.axes import MOST_TICKS, labels, limits, shown, ticks
from montessori_pl.report.page.figures import Figure, Guide, Plot, Row, Rows, Series, series_names

WIDTH, HEIGHT = 400, 250
"""Of a plot, in units that are pixels where there is room for them: on a telephone, a little less."""
TOP, RIGHT, BOTTOM, LEFT = 10, 22, 44, 68
ROW = 24
"""Height of a row."""
NUM_COLOURS = 8
TICK = 46
"""Least distance of two ticks of a horizontal axis, whose labels stand beside each other."""
LABEL = 30
"""Characters of a row's name that are shown before its number; the tooltip and the CSV have all of it."""
CHARACTER = 6.6
"""Mean width of a character."""

Scale = Callable[[float], float]


def figure(one: Figure) -> Markup:
    """A figure with its title, legend and note."""
    drawn = _plot(one) if isinstance(one, Plot) else _rows(one)
    names = series_names(one)
    legend = [tag("li", _swatch(number, one.style), name) for number, name in enumerate(names)]
    return tag(
        "figure",
        tag("figcaption", one.title),
        tag("ul", *legend, class_="legend") if len(names) > 1 else "",
        drawn,
        tag("p", one.note, class_="soft") if one.note else "",
    )


def _swatch(number: int, style: str) -> Markup:
    """What a series looks like."""
    colour = _colour(number)
    if style == "bars":
        mark = tag("rect", x=4, y=1, width=16, height=10, class_=f"bar {colour}")
    elif style in ("points", "dots"):
        mark = tag("circle", cx=12, cy=6, r=4, class_=f"dot {colour}")
    else:
        mark = tag("line", x1=1, y1=6, x2=23, y2=6, class_=f"line {colour}")
    return tag("svg", mark, viewBox="0 0 24 12", width=24, height=12, aria_hidden="true")


def _colour(number: int) -> str:
    return f"s{number % NUM_COLOURS}"


def _plot(plot: Plot) -> Markup:
    points = [point for series in plot.series for point in series.points]
    guides = {axis: [guide.value for guide in plot.guides if guide.axis == axis] for axis in ("x", "y")}
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    x_limits = limits([*(point.x for point in points), *guides["x"]])
    y_limits = limits([*ends, *guides["y"]], from_zero=plot.style == "steps")
    x, y = _scale(x_limits, LEFT, WIDTH - RIGHT), _scale(y_limits, HEIGHT - BOTTOM, TOP)
    parts = [*_x_axis(x_limits, x, plot.x, HEIGHT), *_y_axis(y_limits, y, plot.y)]
    for guide in plot.guides:
        place = x(guide.value) if guide.axis == "x" else y(guide.value)
        ends_of = (
            {"x1": place, "x2": place, "y1": TOP, "y2": HEIGHT - BOTTOM}
            if guide.axis == "x"
            else {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": place, "y2": place}
        )
        parts.append(tag("line", tag("title", guide.label), class_="guide", **_rounded(ends_of)))
        if guide.label:
            parts.append(_guide_label(guide, place))
    for number, series in enumerate(plot.series):
        parts += _series(plot, series, _colour(number), x, y)
    return _svg(f"{plot.title}: {plot.y} by {plot.x}", parts, HEIGHT)


def _guide_label(guide: Guide, place: float) -> Markup:
    """The name of a line, on the side on which there is room for it."""
    if guide.axis == "y":
        below = place < TOP + 16
        return tag("text", guide.label, **_rounded({"x": LEFT + 4, "y": place + 12 if below else place - 4}))
    left = place > WIDTH * 0.7
    at = _rounded({"x": place - 3 if left else place + 3, "y": TOP + 10})
    return tag("text", guide.label, text_anchor="end" if left else "start", **at)


def _series(plot: Plot, series: Series, colour: str, x: Scale, y: Scale) -> list[Markup]:
    parts = []
    if plot.style == "steps":
        base = y(0.0)
        path = f"M{x(series.points[0].x):.1f} {base:.1f}"
        for point, following in pairwise(series.points):
            path += f"V{y(point.y):.1f}H{x(following.x):.1f}"
        title = tag("title", series.name)
        return [tag("path", title, d=f"{path}V{base:.1f}", class_=f"line {colour}")]
    if plot.style == "lines":
        path = "".join(
            f"{'L' if number else 'M'}{x(point.x):.1f} {y(point.y):.1f}" for number, point in enumerate(series.points)
        )
        parts.append(tag("path", d=path, class_=f"line {colour}"))
    for point in series.points:
        if point.low is not None and point.high is not None:
            ends = {"x1": x(point.x), "x2": x(point.x), "y1": y(point.low), "y2": y(point.high)}
            parts.append(tag("line", class_=f"error {colour}", **_rounded(ends)))
        said = ": ".join(filter(None, (series.name, point.label))) or plot.title
        title = tag("title", f"{said} ({shown(point.x)}, {shown(point.y)})")
        parts.append(
            tag("circle", title, class_=f"dot {colour}", **_rounded({"cx": x(point.x), "cy": y(point.y)}), r=4)
        )
    return parts


def _rows(rows: Rows) -> Markup:
    colours = {name: _colour(number) for number, name in enumerate(series_names(rows))}
    height = TOP + ROW * len(rows.rows) + BOTTOM
    width = min(LABEL, max((len(row.label) for row in rows.rows), default=0)) * CHARACTER + 16
    bars = rows.style == "bars"
    ends = [end for row in rows.rows for end in (row.value, row.start if bars else None, row.low, row.high)]
    x_limits = limits([end for end in ends if end is not None], from_zero=bars)
    x = _scale(x_limits, width, WIDTH - RIGHT)
    parts = _x_axis(x_limits, x, rows.x, height, left=width)
    for number, row in enumerate(rows.rows):
        parts += _row(rows, row, colours.get(row.series, _colour(0)), x, TOP + ROW * number + ROW / 2, width)
    numbers = "; ".join(f"{row.label} {shown(row.value - row.start)}" for row in rows.rows)
    return _svg(f"{rows.title}, {rows.x}: {numbers}", parts, height)


def _row(rows: Rows, row: Row, colour: str, x: Scale, middle: float, width: float) -> list[Markup]:
    label = row.label if len(row.label) <= LABEL else f"{row.label[: LABEL - 1]}…"
    said = f"{row.label}: {shown(row.value - row.start)}"
    if row.low is not None and row.high is not None:
        said += f" [{shown(row.low)}, {shown(row.high)}]"
    parts = [tag("text", label, class_="row-label", **_rounded({"x": width - 8, "y": middle + 4}))]
    if rows.style == "bars":
        left, right = sorted((x(row.start), x(row.value)))
        box = {"x": left, "y": middle - 7, "width": max(1.0, right - left), "height": 14}
        parts.append(tag("rect", tag("title", said), class_=f"bar {colour}", **_rounded(box)))
        return parts
    if row.low is not None and row.high is not None:
        ends = {"x1": x(row.low), "x2": x(row.high), "y1": middle, "y2": middle}
        parts.append(tag("line", class_=f"error {colour}", **_rounded(ends)))
    place = _rounded({"cx": x(row.value), "cy": middle})
    parts.append(tag("circle", tag("title", said), class_=f"dot {colour}", **place, r=5))
    return parts


def _x_axis(ends: tuple[float, float], x: Scale, label: str, height: float, left: float = LEFT) -> list[Markup]:
    bottom = height - BOTTOM
    parts = []
    places = ticks(*ends, most=max(2, min(MOST_TICKS, int((WIDTH - RIGHT - left) / TICK))))
    for place, label_of in zip(places, labels(places), strict=True):
        parts.append(tag("line", class_="grid", **_rounded({"x1": x(place), "x2": x(place), "y1": TOP, "y2": bottom})))
        parts.append(tag("text", label_of, class_="tick-x", **_rounded({"x": x(place), "y": bottom + 15})))
    middle = _rounded({"x": (left + WIDTH - RIGHT) / 2, "y": height - 8})
    return [*parts, tag("text", label, class_="axis-x", **middle)]


def _y_axis(ends: tuple[float, float], y: Scale, label: str) -> list[Markup]:
    parts = []
    places = ticks(*ends)
    for place, label_of in zip(places, labels(places), strict=True):
        ends_of = {"x1": LEFT, "x2": WIDTH - RIGHT, "y1": y(place), "y2": y(place)}
        parts.append(tag("line", class_="grid", **_rounded(ends_of)))
        parts.append(tag("text", label_of, class_="tick-y", **_rounded({"x": LEFT - 6, "y": y(place) + 4})))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [*parts, tag("text", label, class_="axis-y", transform=f"translate(11 {middle:.1f}) rotate(-90)")]


def _scale(ends: tuple[float, float], first: float, last: float) -> Scale:
    low, high = ends
    return lambda value: first + (value - low) / (high - low) * (last - first)


def _svg(said: str, parts: Sequence[Markup], height: float) -> Markup:
    """A drawing, and what is said of it to those who do not see it."""
    return tag("svg", joined(parts), viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=said, class_="chart")


def _rounded(places: dict[str, float]) -> dict[str, str]:
    return {name: f"{place:.1f}".removesuffix(".0") for name, place in places.items()}
