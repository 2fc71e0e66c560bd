"""Figures of the data: how long examples are, why completions were rejected, and where the time went."""

from collections import Counter

from montessori_pl.report.page.figures import Figure, Plot, Row, Rows
from montessori_pl.report.page.histogram import histograms
from montessori_pl.report.page.run_data import RunData, StageData

MAX_REASONS = 20
"""So many reasons of a stage are drawn, the most frequent ones."""
LONGEST_REASON = 80
"""Characters of a reason that are drawn."""


def data_figures(run: RunData) -> list[Figure]:
    """Lengths and rejections."""
    return [*_lengths(run), *_rejections(run)]


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
