"""SelectBest: the best-scored examples, to be learned, or shown to a teacher as shots."""

import dataclasses
import statistics
from typing import Any

import numpy as np

from montessori_pl.bounds import NonNegativeFloat, PositiveShare, Text
from montessori_pl.data.records import Score, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.stages.base import EXAMPLES, SCORES, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.selection.scores import ScoreStages, num_scored, read_scores, score_inputs, score_weights
from montessori_pl.stats.gradients import choose_various, gradient_vendi
from montessori_pl.synthesis.diversity import diversity_metrics


class SelectBest(Stage):
    """Choose the best share of the scored examples.

    A student learns them; or they are shown as shots (`Synthesize` with `seed_tasks`), and a teacher writes more like
    them without being trained.

    Scores are of single examples, and the best of them may all teach the same. With `redundancy` they are chosen one
    after the other, each with the highest

        score / standard deviation of all scores - redundancy * mean cosine of its gradient with those of the chosen

    which in the manner of maximal marginal relevance (Carbonell and Goldstein, 1998) sets what an example is worth
    against what others of its kind have taught already.

    Args:
        examples: the stage whose examples were scored.
        scores: the stage that scored them; or several, whose scores are then divided by their standard deviation and
            averaged, all alike or by the weight of each (`{influence: 1.0, judged: 0.5}`).
        share: how many are chosen, as a share of those that have a score, and a gradient where these count; at least
            one. Ids decide between equal ones.
        redundancy: how much an example loses that pulls the way of all that are chosen; 0 looks at scores alone.
        gradients: the stage that kept the examples' gradients, by `ProjectedGradientSignal`, for `redundancy`.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES,)

    def __init__(
        self,
        examples: Text,
        scores: ScoreStages,
        share: PositiveShare = 0.5,
        redundancy: NonNegativeFloat = 0.0,
        gradients: Text | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if (redundancy > 0) is (gradients is None):
            raise ValueError(
                f"redundancy is {redundancy:g}, and gradients are {gradients or 'not given'}: set both, or neither"
            )
        self.examples, self.scores, self.share = examples, score_weights(scores), share
        self.redundancy, self.gradients = redundancy, gradients

    def reads(self) -> list[Input]:
        """The examples and their scores, and their gradients where these count."""
        gradients = [Input("gradients", self.gradients, Kind.SCORES)] if self.gradients is not None else []
        return [Input("examples", self.examples, Kind.EXAMPLES), *score_inputs(self.scores), *gradients]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work, but its share of the examples."""
        given = context.expected_input("examples")
        count = max(1, round(self.share * num_scored(context, self.scores)))
        upper_bound, instructions = max(1, given.at_most(count)), min(count, given.instructions)
        return StageEstimate(
            expected_output=dataclasses.replace(given, count=count, upper_bound=upper_bound, instructions=instructions)
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Choose, and keep the order of the examples.

        Raises:
            StageError: there is nothing to choose from, or there are no gradients.
        """
        examples = context.examples("examples")
        scores = read_scores(context, self.scores)
        values = {example.id: scores[example.id].value for example in examples if example.id in scores}
        gradients = self._gradients(context)
        if gradients is not None:
            values = {id_: value for id_, value in values.items() if id_ in gradients}
        if not values:
            what = "a score" if gradients is None else "both a score and a gradient"
            raise StageError(f"{context.key} has nothing to choose from: none of {len(examples)} examples has {what}")
        ranked = sorted(values, key=lambda id_: (-values[id_], id_))
        number = max(1, round(self.share * len(ranked)))
        best, various = ranked[:number], {}
        if gradients is not None:
            rows = np.array([gradients[id_] for id_ in ranked])
            places = choose_various([values[id_] for id_ in ranked], rows, number, self.redundancy)
            best = [ranked[place] for place in places]
            various = {"g_vendi": gradient_vendi(rows[places]), "g_vendi_of_all": gradient_vendi(rows)}
        chosen = set(best)
        kept = [example for example in examples if example.id in chosen]
        write_records(context.directory / EXAMPLES, kept)
        return {
            "accepted": len(kept),
            "rejected": {"not among the best": len(ranked) - len(best), "unscored": len(examples) - len(ranked)},
            "threshold": min(values[id_] for id_ in best),
            "mean_score": statistics.fmean(values[id_] for id_ in best),
            "mean_score_of_all": statistics.fmean(values.values()),
            **various,
            **diversity_metrics(kept),
        }

    def _gradients(self, context: StageContext) -> dict[str, tuple[float, ...]] | None:
        if self.gradients is None:
            return None
        records = read_records(context.input_dir("gradients") / SCORES, Score)
        found = {one.id: one.gradient for one in records if one.gradient}
        if not found:
            raise StageError(
                f"{context.key} finds no gradients in {self.gradients!r}; let that stage score with "
                "callbacks.ProjectedGradientSignal"
            )
        return found
