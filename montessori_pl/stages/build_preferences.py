"""BuildPreferences: scores become preferences between completions of one prompt."""

import math
from typing import Annotated, Any, Literal

from montessori_pl.bounds import Bounds, PositiveInt, PositiveShare, Text
from montessori_pl.data.records import Example, PreferencePair
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import ExpectedRecords, StageEstimate
from montessori_pl.pairing import pair_examples
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.stages.base import PAIRS, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.selection.scores import (
    ScoreStages,
    num_prompts_scored,
    num_scored,
    read_scores,
    score_inputs,
    score_weights,
)


class BuildPreferences(Stage):
    """Make preference pairs of the teacher's completions, within a prompt.

    Args:
        examples: the stage whose examples were scored.
        scores: the stage that scored them; or several, whose scores are then divided by their standard deviation and
            averaged, all alike or by the weight of each (`{influence: 1.0, judged: 0.5}`): students that were warmed up
            apart agree on what helps, and not on noise.
        rule: `best_worst` pairs the best with the worst sample of each prompt; `signed`, the paper's rule, each sample
            above zero with each below.
        max_pairs_per_prompt: keep so many pairs of a prompt, those with the largest margins; null keeps all.
        noise_margin: keep a pair only if its scores differ by more than so many standard errors; 0 keeps all. No pair
            has an example whose score has none, as with one valid judgement.
        weights: how much each pair counts in alignment: `equal`, or in proportion to its `margin`. A pair whose scores
            hardly differ says little, and with equal weights it says it as loudly as the others.
        max_first_word_rate: keeps diversity: the largest part of all weight for pairs whose chosen instructions begin
            with the same word; where there are too few words for that, each has the same part. Null sets no limit.
        at_random: the control: as many pairs for each prompt as the rule would make, but both sides drawn at random.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.PAIRS
    artifacts = (PAIRS,)

    def __init__(
        self,
        examples: Text,
        scores: ScoreStages,
        rule: Literal["best_worst", "signed"] = "signed",
        max_pairs_per_prompt: PositiveInt | None = None,
        noise_margin: Annotated[float, Bounds(ge=0, le=100)] = 0.0,
        weights: Literal["equal", "margin"] = "equal",
        max_first_word_rate: PositiveShare | None = None,
        at_random: bool = False,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.scores, self.rule = examples, score_weights(scores), rule
        self.max_pairs_per_prompt, self.noise_margin, self.weights = max_pairs_per_prompt, noise_margin, weights
        self.max_first_word_rate, self.at_random = max_first_word_rate, at_random

    def reads(self) -> list[Input]:
        """The examples and their scores."""
        return [Input("examples", self.examples, Kind.EXAMPLES), *score_inputs(self.scores)]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work, but pairs: as many as the rule makes where all margins are clear and half of all scores positive."""
        given = context.expected_input("examples")
        prompts = num_prompts_scored(context, self.scores)
        per_prompt = max(1.0, num_scored(context, self.scores) / max(1, prompts))
        signed = min(per_prompt * (per_prompt - 1) / 4, self.max_pairs_per_prompt or math.inf)
        count = round(prompts * (min(1.0, per_prompt - 1) if self.rule == "best_worst" else signed))
        samples = [_like(example) for example in given.some() if example.prompt_id]
        expected_output = ExpectedRecords(
            count=count, upper_bound=count, prompts=min(count, prompts), instructions=0, samples=samples
        )
        return StageEstimate(expected_output=expected_output)

    def run(self, context: StageContext) -> dict[str, Any]:
        """Pair all prompts."""
        examples = context.examples("examples")
        scores = read_scores(context, self.scores)
        differences = {id_: score.terms for id_, score in scores.items() if score.terms}
        # Where some scores have no terms, as approximate ones, all stand on their own standard errors.
        paired = len(differences) == len(scores)
        pairs = pair_examples(
            examples,
            scores,
            rule=self.rule,
            max_pairs_per_prompt=self.max_pairs_per_prompt,
            noise_margin=self.noise_margin,
            differences=differences if paired else None,
            weights=self.weights,
            max_first_word_rate=self.max_first_word_rate,
            shuffle_seed=context.seed if self.at_random else None,
        )
        prompts = {example.prompt_id for example in examples if example.prompt_id}
        if not pairs:
            raise StageError(
                f"{context.key} found no pair in {len(prompts)} prompts with {len(scores)} scored examples under rule "
                f"{self.rule!r} with noise_margin {self.noise_margin:g}; pairs need two scored completions of one "
                "prompt that the rule tells apart: ask more samples of each prompt, or choose another rule"
            )
        write_records(context.directory / PAIRS, pairs)
        needed = self.noise_margin > 0 and not paired
        unsure = sum(score.standard_error is None for score in scores.values()) if needed else 0
        return {
            "prompts": len(prompts),
            "pairs": len(pairs),
            "prompts_with_pairs": len({pair.prompt_id for pair in pairs}),
            "mean_margin": sum(pair.margin for pair in pairs) / len(pairs),
            **({"scores_without_standard_error": unsure} if unsure else {}),
        }


def _like(example: Example) -> PreferencePair:
    """A pair of completions like that of this example."""
    return PreferencePair(
        id=example.id,
        prompt=example.prompt,
        chosen=example.completion,
        rejected=example.completion,
        chosen_id=example.id,
        rejected_id=example.id,
        system=example.system,
        margin=0.0,
        prompt_format=example.prompt_format,
        prefill=example.prefill,
    )
