"""Figures of scores: their distributions, their means by stage, and beside them how varied the writing is."""

from collections.abc import Mapping

from montessori_pl.report.page.figures import Figure, Guide, Plot, Point, Row, Rows, Series
from montessori_pl.report.page.histogram import histograms
from montessori_pl.report.page.run_data import RunData, StageData, mapping
from montessori_pl.synthesis.collapse import LOWER_IS_WORSE, CollapseLimits

NORMAL_95 = 1.96
"""Standard errors on each side of a mean that hold in 95 of 100 samples."""
INFLUENCE = "influence"
"""Word in the method of scores that are influence, in nats per token."""


def score_figures(run: RunData) -> list[Figure]:
    """All figures of scores; what a run has no scores for is left out."""
    return [*_distributions(run), *_means(run), *_diversity_against_scores(run)]


def unit(stage: StageData) -> str:
    """What the scores of a stage are."""
    method = stage.scores[0].method
    return "influence, nats per token" if INFLUENCE in method else "score"


def _distributions(run: RunData) -> list[Figure]:
    """One for each student: scores of what different teachers wrote compare only if one student gave them."""
    found: list[Figure] = []
    for number, ((student, axis), stages) in enumerate(_by_student(run).items(), start=1):
        samples = {stage.key: [score.value for score in stage.scores] for stage in stages}
        found.append(
            Plot(
                name=f"scores-{number}",
                title=f"Scores measured on {student}" if student else "Scores",
                x=axis,
                y="share of examples",
                series=histograms(samples),
                style="steps",
                guides=[Guide("x", 0.0, "")] if INFLUENCE in axis else [],
                note=f"{_described(run, stages)} The outermost bins hold what lies beyond them.",
            )
        )
    return found


def _means(run: RunData) -> list[Figure]:
    by_unit: dict[str, list[StageData]] = {}
    for stage in run.scored():
        by_unit.setdefault(unit(stage), []).append(stage)
    return [
        Rows(
            name=f"mean-scores-{number}",
            title="Mean score by stage",
            x=axis,
            rows=[_mean(stage) for stage in stages],
            style="dots",
            note="With 95% intervals over examples. Different students do not give comparable scores.",
        )
        for number, (axis, stages) in enumerate(by_unit.items(), start=1)
    ]


def _diversity_against_scores(run: RunData) -> list[Figure]:
    """For each number of diversity that has a limit: is influence bought with narrower writing?"""
    found: list[Figure] = []
    stages = [stage for stage in run.scored() if _has_mean(stage)]
    for name in ("token_entropy", "first_word_entropy"):
        series = [
            Series(stage.key, [Point(stage.diversity[name], *_interval(stage.metrics), label="mean")])
            for stage in stages
            if name in stage.diversity
        ]
        if series:
            found.append(
                Plot(
                    name=f"scores-by-{name.replace('_', '-')}",
                    title=f"Diversity against score: {LOWER_IS_WORSE[name]}",
                    x=f"{LOWER_IS_WORSE[name]}, nats",
                    y=f"mean {unit(stages[0])}",
                    series=series,
                    style="points",
                    guides=_guard_limits(run, name),
                    note="With 95% intervals over examples. Only scores that one student gave compare. A guard's limit "
                    "is drawn as a part of what its whole baseline has; the guard compares equally many completions.",
                )
            )
    return found


def _guard_limits(run: RunData, name: str) -> list[Guide]:
    """The limits of the guards of a run, each of which refers to a baseline of its iteration."""
    limits: dict[float, Guide] = {}
    for stage in run.stages.values():
        guard = mapping(stage.settings.get("guard"))
        baseline = run.stage(stage.reads.get("guard.baseline"))
        share = mapping(guard.get("limits")).get(name, getattr(CollapseLimits(), name))
        if baseline is not None and share is not None and name in baseline.diversity:
            value = baseline.diversity[name] * share
            limits.setdefault(value, Guide("x", value, "guard's limit"))
    return [*limits.values()]


def _by_student(run: RunData) -> dict[tuple[str, str], list[StageData]]:
    """The stages that scored, by the student on which they did and by what their scores are."""
    found: dict[tuple[str, str], list[StageData]] = {}
    for stage in run.scored():
        found.setdefault((stage.reads.get("student", ""), unit(stage)), []).append(stage)
    return found


def _described(run: RunData, stages: list[StageData]) -> str:
    """Who wrote what was scored."""
    clauses = []
    for stage in stages:
        source = run.stage(stage.reads.get("examples"))
        writer = source.reads.get("teacher", "") if source is not None else ""
        by = f", written by the teacher {writer}" if writer else ""
        clauses.append(f"{stage.key}: {len(stage.scores):,} examples of {stage.reads.get('examples', '?')}{by}.")
    return " ".join(clauses)


def _mean(stage: StageData) -> Row:
    values = [score.value for score in stage.scores]
    if _has_mean(stage):
        mean, low, high = _interval(stage.metrics)
        return Row(stage.key, mean, low=low, high=high)
    return Row(stage.key if stage.finished else f"{stage.key} (so far)", sum(values) / len(values))


def _has_mean(stage: StageData) -> bool:
    return stage.number("mean") is not None and stage.number("standard_error") is not None


def _interval(metrics: Mapping[str, float]) -> tuple[float, float, float]:
    """A mean and the ends of its 95% interval."""
    mean, half = metrics["mean"], NORMAL_95 * metrics["standard_error"]
    return mean, mean - half, mean + half
