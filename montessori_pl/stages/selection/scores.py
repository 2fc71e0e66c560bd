"""What the stages that choose by scores share: the scores of one stage, or the mean of several."""

from montessori_pl.bounds import Text, Texts
from montessori_pl.data.records import Score, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.pairing import mean_scores
from montessori_pl.stages.base import SCORES, Input, Kind, StageContext, StageError

ScoreStages = Text | Texts
"""A setting that names the stage whose scores are meant, or several stages."""


def score_names(scores: str | list[str]) -> list[str]:
    """The stages that a setting `scores` names."""
    return [scores] if isinstance(scores, str) else scores


def score_inputs(names: list[str]) -> list[Input]:
    """The scores of these stages."""
    return [Input(_setting(names, name), name, Kind.SCORES) for name in names]


def read_scores(context: StageContext, names: list[str]) -> dict[str, Score]:
    """The scores of the one stage by example id, or the mean of all.

    Raises:
        StageError: the scores cannot be averaged.
    """
    directories = [context.input_dir(_setting(names, name)) for name in names]
    several = [{score.id: score for score in read_records(one / SCORES, Score)} for one in directories]
    if len(several) == 1:
        return several[0]
    try:
        return mean_scores(several)
    except ValueError as error:
        raise StageError(f"{context.key}, scores {', '.join(names)}: {error}") from error


def num_scored(context: EstimateContext, names: list[str]) -> int:
    """How many examples all of these stages score, as far as it can be foreseen."""
    return min(context.expected_input(_setting(names, name)).count for name in names)


def _setting(names: list[str], name: str) -> str:
    return "scores" if len(names) == 1 else f"scores.{name}"
