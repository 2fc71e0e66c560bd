"""SelectBest: the best-scored examples, to be shown to a teacher as shots."""

import dataclasses
import statistics
from typing import Any

from montessori_pl.bounds import PositiveShare, Text
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.stages.base import EXAMPLES, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.selection.scores import ScoreStages, num_scored, read_scores, score_inputs, score_names
from montessori_pl.synthesis.diversity import diversity_metrics


class SelectBest(Stage):
    """Choose the best share of the scored examples.

    Shown as shots (`Synthesize` with `seed_tasks`), they let a teacher write more like them without being trained.

    Args:
        examples: the stage whose examples were scored.
        scores: the stage that scored them; or several, whose scores are then divided by their root mean square and
            averaged.
        share: how many are chosen, as a share of those that have a score; at least one. Ids decide between equal ones.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES,)

    def __init__(
        self, examples: Text, scores: ScoreStages, share: PositiveShare = 0.5, first_iteration_only: bool = False
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.scores, self.share = examples, score_names(scores), share

    def reads(self) -> list[Input]:
        """The examples and their scores."""
        return [Input("examples", self.examples, Kind.EXAMPLES), *score_inputs(self.scores)]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work, but its share of the examples."""
        given = context.expected_input("examples")
        count = max(1, round(self.share * num_scored(context, self.scores)))
        upper_bound, instructions = max(1, given.at_most(count)), min(count, given.instructions)
        return StageEstimate(
            expected_output=dataclasses.replace(given, count=count, upper_bound=upper_bound, instructions=instructions)
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Choose, and keep the order of the examples."""
        examples = context.examples("examples")
        scores = read_scores(context, self.scores)
        values = {example.id: scores[example.id].value for example in examples if example.id in scores}
        if not values:
            raise StageError(f"{context.key} has nothing to choose from: none of {len(examples)} examples has a score")
        ranked = sorted(values, key=lambda id_: (-values[id_], id_))
        best = ranked[: max(1, round(self.share * len(ranked)))]
        chosen = set(best)
        kept = [example for example in examples if example.id in chosen]
        write_records(context.directory / EXAMPLES, kept)
        return {
            "accepted": len(kept),
            "rejected": {"not among the best": len(ranked) - len(best), "unscored": len(examples) - len(ranked)},
            "threshold": values[best[-1]],
            "mean_score": statistics.fmean(values[id_] for id_ in best),
            "mean_score_of_all": statistics.fmean(values.values()),
            **diversity_metrics(kept),
        }
