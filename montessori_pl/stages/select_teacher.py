"""SelectTeacher: the one teacher whose responses suit the student best, and how sure that is."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from montessori_pl.bounds import Bounds, NonNegativeFloat, NotEmpty, Share, Text
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.models.loading import load_chat_template
from montessori_pl.routing import ConstantRouter, ResponsePool
from montessori_pl.routing.responses import Array
from montessori_pl.routing.selection import NEEDED, Rule, merit, ranking
from montessori_pl.stages.base import ROUTING, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.selection.responses import (
    MAX_REPEATED_RATE,
    leave_out_degenerate,
    read_pool,
    read_pool_scores,
    save_router,
)
from montessori_pl.stats.bootstrap import bootstrap_rows, percentile_interval

Beta = Annotated[float, Bounds(ge=0, infinite=True)]
"""How much the loss counts; at infinity nothing else does."""


class SelectTeacher(Stage):
    """Rank teachers by the compatibility-adjusted reward (CAR, arXiv 2411.07133) or by a plain baseline.

        CAR(teacher) = r / (1 + beta * L)

    r is the mean quality of the teacher's responses, L their mean loss per response token under the student. Whatever
    the rule, all rankings are reported: CAR for several beta, and the baselines, which CAR has to beat. Only prompts
    that all teachers have answered count, so that no teacher gains by having answered the easy ones.

    Args:
        examples: the stage whose responses are compared: several teachers' to the same instructions.
        quality: the stage that scored how good they are, for example with a reward model or `RecordedQualitySignal`.
        loss: the stage that scored them with `TrainingLossSignal`, or with `IFDSignal`, which adds the ranking by
            instruction-following difficulty; in CAR, under the student before any training (`student: base`). Null
            leaves out all rankings that need it.
        rule: `car`; or the highest mean `quality`, the lowest `loss`, the longest responses (`length`, in the student's
            tokens), the highest instruction-following difficulty (`ifd`).
        beta: how much the loss discounts the quality. The default is not verified: the paper's value was not found.
        betas: the sensitivity of CAR's ranking is reported for these.
        max_repeated_rate: a degenerate teacher is left out, with a warning: more than this share of its responses is
            given to other prompts too, it repeats itself far more than the median of the other teachers does, and what
            it repeats does not depend on the prompt. Teachers who rightly answer all prompts with a few labels are
            kept. Null leaves out no teacher, and only warns.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.ROUTING
    artifacts = (f"{ROUTING}/*",)
    uses = ("student",)

    def __init__(
        self,
        examples: Text,
        quality: Text,
        loss: Text | None,
        rule: Rule = "car",
        beta: NonNegativeFloat = 3.0,
        betas: Annotated[tuple[Beta, ...], NotEmpty()] = (0.0, 0.5, 1.0, 3.0, 10.0, math.inf),
        max_repeated_rate: Share | None = MAX_REPEATED_RATE,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.quality, self.loss = examples, quality, loss
        self.rule, self.beta, self.betas, self.max_repeated_rate = rule, beta, betas, max_repeated_rate
        if loss is None and rule in ("car", "loss", "ifd"):
            raise ValueError(f"rule {rule!r} needs the student's losses: name in `loss` the stage that scored them")

    def reads(self) -> list[Input]:
        """The responses and their scores."""
        loss = [] if self.loss is None else [Input("loss", self.loss, Kind.SCORES)]
        return [
            Input("examples", self.examples, Kind.EXAMPLES),
            Input("quality", self.quality, Kind.SCORES),
            *loss,
        ]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work: the scores are there."""
        return StageEstimate()

    def run(self, context: StageContext) -> dict[str, Any]:
        """Rank, and leave the ranking as a router that sends everything to the best."""
        pool, repetition = leave_out_degenerate(read_pool(context), self.max_repeated_rate)
        tables = self._complete(context, pool, self._tables(context, pool))
        means = {name: table.mean(axis=0) for name, table in tables.items()}
        merits = merit(self.rule, means, self.beta)
        save_router(context, ConstantRouter(pool.teachers, merits.tolist()))
        metrics = self._metrics(pool, tables, means, ranking(pool.teachers, merits)[0], context.seed)
        return {**repetition, **metrics, "warnings": [*repetition["warnings"], *metrics["warnings"]]}

    def _tables(self, context: StageContext, pool: ResponsePool) -> dict[str, Array]:
        """Quality and length, and what the signal of `loss` knows; each of shape (N, K)."""
        chat_template = load_chat_template(context.student().source)
        responses = [example for answers in pool.answers.values() for example in answers]
        columns = {
            "quality": {score.id: score.value for score in read_pool_scores(context, "quality")},
            "length": {
                one.id: float(len(chat_template.response_ids(one.response, sampled=one.response_tokens)))
                for one in responses
            },
        }
        scores = [] if self.loss is None else read_pool_scores(context, "loss")
        columns |= {
            name: {score.id: score.details[name] for score in scores}
            for name in ("loss", "ifd")
            if scores and all(name in score.details for score in scores)
        }
        if missing := set(NEEDED[self.rule]) - columns.keys():
            raise StageError(
                f"{context.key}: rule {self.rule!r} needs the {missing.pop()} of each response, which stage "
                f"{self.loss!r} does not tell; score with TrainingLossSignal there, or with IFDSignal"
            )
        return {name: pool.table(numbers) for name, numbers in columns.items()}

    def _complete(self, context: StageContext, pool: ResponsePool, tables: Mapping[str, Array]) -> dict[str, Array]:
        """The rows of the prompts to which all teachers have a scored response.

        Raises:
            StageError: there is none.
        """
        complete = ~np.isnan(np.stack(list(tables.values()))).any(axis=(0, 2))
        if not complete.any():
            known = {
                teacher: int((~np.isnan(tables["quality"][:, k])).sum()) for k, teacher in enumerate(pool.teachers)
            }
            raise StageError(
                f"{context.key} finds no prompt to which all {len(pool.teachers)} teachers have a scored response; of "
                f"{len(pool.prompts)} prompts, {', '.join(f'{name} has {count}' for name, count in known.items())}"
            )
        return {name: table[complete] for name, table in tables.items()}

    def _metrics(
        self, pool: ResponsePool, tables: Mapping[str, Array], means: Mapping[str, Array], best: str, seed: int
    ) -> dict[str, Any]:
        """The best teacher, how often it is the best of resampled prompts, and all numbers and rankings."""
        columns = np.concatenate(list(tables.values()), axis=1)
        resampled = _split(bootstrap_rows(columns, np.random.default_rng(seed)), tables)
        agreeing = np.mean([ranking(pool.teachers, one)[0] == best for one in merit(self.rule, resampled, self.beta)])
        num_prompts = len(tables["quality"])
        counted = f"{num_prompts} prompts that all teachers have answered"
        return {
            "teacher": best,
            "chosen_in_resamples": float(agreeing),
            "prompts": num_prompts,
            "prompts_left_out": len(pool.prompts) - num_prompts,
            "teachers": self._report(pool, means, resampled),
            "rankings": self._rankings(pool, means),
            "warnings": self._warnings(means),
            "finding": f"{best} is the best by {self.rule} on {counted}, and in {agreeing:.0%} of their resamples",
        }

    def _report(
        self, pool: ResponsePool, means: Mapping[str, Array], resampled: Mapping[str, Array]
    ) -> dict[str, dict[str, Any]]:
        """For each teacher its responses, and each mean with its interval."""
        if "loss" in means:
            means = {**means, "car": merit("car", means, self.beta)}
            resampled = {**resampled, "car": merit("car", resampled, self.beta)}
        counts = pool.counts()
        return {
            teacher: {
                "responses": counts[teacher],
                **{
                    name: dataclasses.asdict(percentile_interval(mean[place], resampled[name][:, place]))
                    for name, mean in means.items()
                },
            }
            for place, teacher in enumerate(pool.teachers)
        }

    def _rankings(self, pool: ResponsePool, means: Mapping[str, Array]) -> dict[str, list[str]]:
        """The teachers from the best to the worst by every rule for which the numbers are known."""
        rules: list[Rule] = ["quality", "loss", "length", "ifd"]
        baselines: dict[str, list[str]] = {
            rule: ranking(pool.teachers, merit(rule, means, 0)) for rule in rules if rule in means
        }
        betas = sorted({*self.betas, self.beta}) if "loss" in means else []
        return {
            **{f"car, beta {beta:g}": ranking(pool.teachers, merit("car", means, beta)) for beta in betas},
            **baselines,
        }

    def _warnings(self, means: Mapping[str, Array]) -> list[str]:
        lowest = means["quality"].min()
        if "loss" not in means or lowest > 0:
            return []
        return [
            f"the lowest mean quality of a teacher is {lowest:.3g}; for CAR all qualities were shifted, because a "
            "larger loss would raise a negative one, and the ranking depends on the shift"
        ]


def _split(columns: Array, tables: Mapping[str, Array]) -> dict[str, Array]:
    """Columns that were side by side, by the name of their table."""
    parts = np.split(columns, len(tables), axis=1)
    return dict(zip(tables, parts, strict=True))
