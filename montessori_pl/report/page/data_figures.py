"""Figures of the data: how long examples are, why completions were rejected, and where the time went."""

from collections import Counter

from montessori_pl.data.text import is_number
from montessori_pl.report.page.figures import Figure, Plot, Point, Row, Rows, Series
from montessori_pl.report.page.histogram import histograms
from montessori_pl.report.page.run_data import RunData, StageData, mapping

MAX_REASONS = 20
"""So many reasons of a stage are drawn, the most frequent ones."""
LONGEST_REASON = 80
"""Characters of a reason that are drawn."""
COUNTED = {
    "prompts": "All that a student reads and is not to write: system message, turns, and what its chat template writes "
    "around them.",
    "responses": "What `max_length` cuts off is not counted.",
}
"""What a training counts the tokens of, and what a reader has to know of it."""
LENGTHS = "length_quantiles"
"""The number of a training that holds lengths of its examples in tokens, from the shortest to the longest."""


def data_figures(run: RunData) -> list[Figure]:
    """Lengths and rejections."""
    return [*_lengths(run), *_lengths_in_tokens(run), *_rejections(run)]


def timeline(run: RunData) -> list[Figure]:
    """The stages one after another: the time that was spent in them, all sessions together."""
    rows, start = [], 0.0
    for stage in run.stages.values():
        state = "finished" if stage.finished else "interrupted, or going on"
        rows.append(Row(stage.key, start + stage.seconds, start=start, series=state))
        start += stage.seconds
    if not start:
        return []
    return [
        Rows(
            name="timeline",
            title="Timeline",
            x="seconds of work",
            rows=rows,
            style="bars",
            note="Stages stand one after another, without the time between sessions.",
        )
    ]


def _lengths(run: RunData) -> list[Figure]:
    found: list[Figure] = []
    stages = [stage for stage in run.stages.values() if stage.examples]
    for what in ("instruction", "response"):
        samples = {stage.key: [len(getattr(one, what)) for one in stage.examples] for stage in stages}
        if any(map(any, samples.values())):
            found.append(
                Plot(
                    name=f"lengths-of-{what}s",
                    title=f"Lengths of {what}s",
                    x="characters",
                    y="share of examples",
                    series=histograms(samples, whole=True),
                    style="steps",
                    note="The outermost bins hold what lies beyond them.",
                )
            )
    return found


def _lengths_in_tokens(run: RunData) -> list[Figure]:
    """As the students counted them that learned the examples: texts alone do not say."""
    found: list[Figure] = []
    for what, note in COUNTED.items():
        series = []
        for stage in run.stages.values():
            ends = mapping(stage.metrics.get(LENGTHS)).get(what)
            if isinstance(ends, list) and len(ends) > 1 and all(map(is_number, ends)):
                points = [Point(float(end), place / (len(ends) - 1)) for place, end in enumerate(ends)]
                series.append(Series(stage.key, points))
        if series:
            found.append(
                Plot(
                    name=f"tokens-of-{what}",
                    title=f"Lengths of training {what} in tokens",
                    x="tokens of the student",
                    y="share of examples at most as long",
                    series=series,
                    style="lines",
                    note=note,
                )
            )
    return found


def _rejections(run: RunData) -> list[Figure]:
    return [
        Rows(
            name=f"rejections-{stage.key.replace('/', '-')}",
            title=f"Rejected in {stage.key}",
            x="completions",
            rows=[Row(reason[:LONGEST_REASON], count) for reason, count in _reasons(stage)[:MAX_REASONS]],
            style="bars",
            note=f"{len(stage.rejections):,} rejected beside {len(stage.examples):,} accepted.",
        )
        for stage in run.stages.values()
        if stage.rejections
    ]


def _reasons(stage: StageData) -> list[tuple[str, int]]:
    return Counter(one.reason for one in stage.rejections).most_common()
