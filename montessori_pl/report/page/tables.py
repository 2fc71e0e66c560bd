"""Tables of the page: verdicts, what each stage cost, what a run consists of."""

from collections.abc import Iterable, Sequence

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
                one.measure.replace("_", " "),
                tag("td", one.word, class_=f"word {CLASSES.get(one.word, '')}".strip()),
                _signed(one.difference.mean),
                interval,
                one.basis or NOTHING,
                shown(one.ours),
                shown(one.theirs),
            ]
        )
    names = ("who", "measure", "verdict", "difference", "95% interval", "interval over", "value", "baseline's")
    return table(names, rows, numbers={3, 4, 6, 7})


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
    """Time, tokens and money of each stage, and of each record that it left behind."""
    rows = [_cost(run, stage) for stage in run.stages.values()]
    total = sum(stage.seconds for stage in run.stages.values())
    rows.append(["all stages", "", "", shown(round(total, 1)), *[""] * 5])
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
    return table(names, rows, numbers=set(range(3, 9)))


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


def _cost(run: RunData, stage: StageData) -> list[str]:
    """A row of the table; the records of a training are the examples or the pairs that it read."""
    count = len(stage.examples) or len(stage.scores) or len(stage.pairs) or int(stage.metrics.get("pairs", 0))
    source = run.stage(stage.reads.get("examples"))
    if not count and stage.metrics.get("kind") == "student" and source is not None:
        count = len(source.examples)
    written, read, cost = (stage.metrics.get(name) for name in (TOKENS, "prompt_tokens", "cost"))
    return [
        stage.key,
        stage.what,
        "finished" if stage.finished else "interrupted, or going on",
        shown(round(stage.seconds, 1)),
        f"{count:,}" if count else NOTHING,
        f"{stage.seconds / count:.3g}" if count else NOTHING,
        f"{read:,.0f}" if read is not None else NOTHING,
        f"{written:,.0f}" if written is not None else NOTHING,
        f"{cost:.4f}" if cost is not None else NOTHING,
    ]


def _signed(value: float) -> str:
    text = shown(float(f"{value:.3g}"))
    return text if value < 0 else f"+{text}"
