"""Tables of the page: verdicts, what each stage cost, what a run consists of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from montessori_pl.report.html import Markup, joined, tag
from montessori_pl.report.page.axes import shown
from montessori_pl.report.page.run_data import RunData, StageData
from montessori_pl.report.page.verdict import Verdict
from montessori_pl.report.runs import TOKENS

NOTHING = "\N{EN DASH}"
CLASSES = {"better": "good", "worse": "bad"}


def verdict_table(verdicts: Sequence[Verdict]) -> Markup:
    """A row for each verdict."""
    rows = []
    for one in verdicts:
        ends = one.difference.ends
        interval = f"[{_signed(ends[0])}, {_signed(ends[1])}]" if ends is not None else NOTHING
        rows.append(
            [
                one.who,
                one.baseline,
                one.measure.replace("_", " "),
                tag("td", one.word, class_=f"word {CLASSES.get(one.word, '')}".strip()),
                _signed(one.difference.mean),
                interval,
                one.basis or NOTHING,
                shown(one.ours),
                shown(one.theirs),
            ]
        )
    names = (
        "who",
        "beside",
        "measure",
        "verdict",
        "difference",
        "95% interval",
        "interval over",
        "value",
        "baseline's",
    )
    return table(names, rows, numbers={4, 5, 7, 8})


def sentence(verdicts: Sequence[Verdict]) -> str:
    """The most important verdict in words; empty where there is none."""
    if not verdicts:
        return ""
    one = verdicts[0]
    measure, ends = one.measure.replace("_", " "), one.difference.ends
    by = f"{_signed(one.difference.mean)}"
    if ends is not None:
        by += f", 95% interval [{_signed(ends[0])}, {_signed(ends[1])}] over {one.basis}"
    if one.word == "unknown":
        return f"{one.who} and {one.baseline} differ in {measure} by {by}; nothing says how far chance goes."
    if one.word == "not told apart":
        return f"{one.who} and {one.baseline} are not told apart in {measure}: {by}."
    return f"{one.who} is {one.word} than {one.baseline} in {measure}: {by}."


def cost_table(run: RunData) -> Markup:
    """Time, tokens and money of each stage, and of each record that it left behind or learned from.

    The last row is for all stages together, and their time for each example on which the last student was trained.
    """
    names = (
        "stage",
        "what",
        "state",
        "seconds",
        "records",
        "seconds per record",
        "tokens read",
        "tokens written",
        "US dollars",
    )
    costs = [_cost(run, stage) for stage in run.stages.values()]
    evaluated = run.evaluated()
    data = run.training_data(evaluated[-1], [*evaluated[-1].students][-1]) if evaluated else None
    whole = _Cost(
        "all stages, by training example",
        seconds=sum(cost.seconds for cost in costs),
        count=len(data.examples) if data is not None else 0,
        read=_sum(cost.read for cost in costs),
        written=_sum(cost.written for cost in costs),
        dollars=_sum(cost.dollars for cost in costs),
    )
    return table(names, [cost.cells() for cost in (*costs, whole)], numbers=set(range(3, 9)))


def hash_table(run: RunData) -> Markup:
    """The artifacts of all stages with their hashes."""
    rows = [
        [stage.key, name, tag("td", tag("code", digest))]
        for stage in run.stages.values()
        for name, digest in stage.hashes.items()
    ]
    return table(("stage", "file", "SHA-256"), rows)


def table(names: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> Markup:
    """A table that scrolls on its own where the screen is narrow.

    Args:
        names: of the columns.
        rows: cells; those that are no `Markup` are escaped, and `Markup` is a whole cell.
        numbers: the columns of numbers.
    """
    aligned = set(numbers)

    def cells(row: Sequence[str]) -> list[Markup]:
        return [
            cell if isinstance(cell, Markup) else tag("td", cell, class_="number" if number in aligned else None)
            for number, cell in enumerate(row)
        ]

    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    body = tag("tbody", joined(tag("tr", *cells(row)) for row in rows))
    return tag("div", tag("table", head, body), class_="scroll", tabindex=0)


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """A row of the table of costs."""

    stage: str = field(kw_only=False)
    what: str = ""
    state: str = ""
    seconds: float
    count: int
    """Records; 0 where there are none."""
    read: float | None
    """Tokens; none where they are not counted, as below."""
    written: float | None
    dollars: float | None

    def cells(self) -> list[str]:
        return [
            self.stage,
            self.what,
            self.state,
            shown(round(self.seconds, 1)),
            f"{self.count:,}" if self.count else NOTHING,
            f"{self.seconds / self.count:.3g}" if self.count else NOTHING,
            f"{self.read:,.0f}" if self.read is not None else NOTHING,
            f"{self.written:,.0f}" if self.written is not None else NOTHING,
            f"{self.dollars:.4f}" if self.dollars is not None else NOTHING,
        ]


def _cost(run: RunData, stage: StageData) -> _Cost:
    """What a stage cost; the records of a training are the examples or the pairs that it read."""
    count = len(stage.examples) or len(stage.scores) or len(stage.pairs) or int(stage.number("pairs") or 0)
    source = run.stage(stage.reads.get("examples"))
    if not count and stage.metrics.get("kind") == "student" and source is not None:
        count = len(source.examples)
    return _Cost(
        stage.key,
        what=stage.what,
        state="finished" if stage.finished else "interrupted, or going on",
        seconds=stage.seconds,
        count=count,
        read=stage.number("prompt_tokens"),
        written=stage.number(TOKENS),
        dollars=stage.number("cost"),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum of those that are known; none where none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _signed(value: float) -> str:
    text = shown(float(f"{value:.3g}"))
    return text if value < 0 else f"+{text}"
