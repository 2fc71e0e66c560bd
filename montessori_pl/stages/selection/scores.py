"""What the stages that choose by scores share: the scores of one stage, or the mean of several."""

from collections.abc import Iterable, Mapping
from typing import Annotated

from montessori_pl.bounds import NotEmpty, PositiveFloat, Text, Texts
from montessori_pl.data.records import Score, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.pairing import mean_scores
from montessori_pl.stages.base import SCORES, Input, Kind, StageContext, StageError

ScoreStages = Text | Texts | Annotated[dict[str, PositiveFloat], NotEmpty()]
"""A setting that names the stage whose scores are meant; or several, each with its weight if they differ in that."""


def score_weights(scores: str | list[str] | dict[str, float]) -> dict[str, float]:
    """The stages that a setting `scores` names, and how much each counts."""
    if isinstance(scores, dict):
        return scores
    return dict.fromkeys([scores] if isinstance(scores, str) else scores, 1.0)


def score_inputs(names: Iterable[str]) -> list[Input]:
    """The scores of these stages."""
    names = list(names)
    return [Input(_setting(names, name), name, Kind.SCORES) for name in names]


def read_scores(context: StageContext, weights: Mapping[str, float]) -> dict[str, Score]:
    """The scores of the one stage by example id, or the weighted mean of all.

    Raises:
        StageError: the scores cannot be averaged.
    """
    names = list(weights)
    directories = [context.input_dir(_setting(names, name)) for name in names]
    several = [{score.id: score for score in read_records(one / SCORES, Score)} for one in directories]
    if len(several) == 1:
        return several[0]
    try:
        found = mean_scores(several, list(weights.values()))
    except ValueError as error:
        raise StageError(f"{context.key}, scores {', '.join(names)}: {error}") from error
    if lost := len(set().union(*several)) - len(found):
        context.say(f"{context.key}: {lost} examples are left out, which not all of {', '.join(names)} have scored")
    return found


def num_scored(context: EstimateContext, names: Iterable[str]) -> int:
    """How many examples all of these stages score, as far as it can be foreseen."""
    names = list(names)
    return min(context.expected_input(_setting(names, name)).count for name in names)


def num_prompts_scored(context: EstimateContext, names: Iterable[str]) -> int:
    """Of how many prompts all of these stages score samples, as far as it can be foreseen."""
    names = list(names)
    return min(context.expected_input(_setting(names, name)).prompts for name in names)


def _setting(names: list[str], name: str) -> str:
    return "scores" if len(names) == 1 else f"scores.{name}"
